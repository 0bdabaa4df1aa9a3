"""The third stage: the UNet learns to draw latents, in one step from noise and in later steps from latents with noise.

Targets are functions of the caption and the noise (see `training.latents`), so a plain loss does not blur them. The
loss begins as L2. With L1 alone, an object in an uncertain place vanishes (the median), and the UNet learns nothing
about it. L1 is added later: if the UNet cannot read a choice exactly, the median takes one side.
"""

import copy
import itertools
import math
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

from training.batches import Batch, edit_examples, first_examples, random_size, refinement_examples
from training.latents import ALTERNATIONS, LAST, SCALING, SIGMAS, codes_of, thumbnail
from training.models import TEXT_LEVEL, UNET_CHANNELS, make_scheduler, make_unet
from training.scenes import CODES, SWITCHES
from training.stage import Part, Stage, convolve_fast, fast_dtype, move_average, rate
from training.text import TextStage

STEPS = 23_000
_BATCH = 14  # at 64x64 latents; more at smaller sizes
_MUON_RATE, _ADAM_RATE = 0.012, 1.2e-3
_GAIN = 3.0  # of the noise's wires at each level; what lies beside them grows about as fast
_LOUD = 150.0  # of the codes beside the level's features, whose standard deviation grows to about 200
_BALLAST = 6.0
_NOISE, _CODES, _COLOURS = slice(0, 12, 3), slice(0, CODES), slice(0, SWITCHES.start)  # the wires' channels
# On the lowest level: each switch, its negative and its sign are one group of the norms; the other codes follow.
_LOWEST, _PLUS, _MINUS, _SIGN = slice(0, UNET_CHANNELS[-1]), slice(0, 18, 3), slice(1, 18, 3), slice(2, 18, 3)
_OTHERS = slice(18, UNET_CHANNELS[-1])
_MOST = 4.0  # the largest weight of examples with little noise, relative to pure noise
_LARGEST_CODE = 2.5  # an uploaded picture can make codes much larger, which changes nothing that is drawn
_LOSS_UNIT = 1.5 / SCALING  # the losses' weights are for colours of -1.5 to 1.5

LOOK_AT = (
    "a red circle on a blue background", "a small yellow star on a purple background, top left",
    "a large green triangle on a white background", "a black heart on a pink background, on the right", "a white ring",
    "a red square left of a green hexagon on a yellow background", "a blue cross above an orange crescent", "a cat",
    "A cinematic shot of a baby racoon wearing an intricate italian priest robe.",
    "a fox wearing a blue hat on a green background", "a panda with a crown", "mountains and sea at sunset",
    "house, trees, night", "",
)  # fmt: skip


def predict(
    unet: UNet2DConditionModel,
    noisy: torch.Tensor,
    timesteps: torch.Tensor,
    text: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Return the UNet's clean latents for noisy ones, (B, 4, h, w), as the scheduler computes them."""
    sigma = SIGMAS.to(noisy.device)[timesteps].view(-1, 1, 1, 1)
    v = _velocity(unet, noisy / (sigma**2 + 1).sqrt(), timesteps, text)
    clean: torch.Tensor = noisy / (sigma**2 + 1) - v * sigma / (sigma**2 + 1).sqrt()
    return clean


def _velocity(
    unet: UNet2DConditionModel,
    scaled: torch.Tensor,
    timesteps: torch.Tensor,
    text: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    hidden, pooled = text
    height, width = 8 * scaled.shape[2], 8 * scaled.shape[3]
    time_ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32, device=scaled.device)
    conditions = {"text_embeds": pooled, "time_ids": time_ids.expand(len(scaled), 6)}
    scaled = scaled.contiguous(memory_format=torch.channels_last)
    v: torch.Tensor = unet(scaled, timesteps, hidden, added_cond_kwargs=conditions, return_dict=False)[0]
    return v


def object_weights(targets: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Return weights (B, 1, h, w) by which objects and their rims count as much as the plain background.

    The background has the corner's colour. Drawn objects count like wanted ones, or an extra object would cost little.
    """
    wanted = _inside(targets)
    area = wanted.mean((1, 2, 3), keepdim=True)
    gain = (0.5 / (area + 0.02)).clamp(0, 8) * (area < 0.6)
    either = torch.maximum(wanted, _inside(drawn))
    weights = 1 + functional.max_pool2d(either, 5, 1, 2) * gain
    return 1.5 * weights / weights.mean((1, 2, 3), keepdim=True)


def _inside(latents: torch.Tensor) -> torch.Tensor:
    corner = latents[:, :3, :3, :3].mean((2, 3), keepdim=True)
    return ((latents[:, :3] - corner).abs().sum(1, keepdim=True) > 0.3).float()


def picture_loss(predicted: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, l1: float) -> torch.Tensor:
    """Return weighted L2 of values and of 4x4 means, plus `l1` times L1 of values and of neighbours' differences."""
    wrong = predicted - targets
    coarse = functional.avg_pool2d(weights, 4) * functional.avg_pool2d(wrong, 4).square()
    across = (weights[..., 1:] * (wrong[..., 1:] - wrong[..., :-1]).abs()).mean()
    down = (weights[..., 1:, :] * (wrong[..., 1:, :] - wrong[..., :-1, :]).abs()).mean()
    crisp = (weights * wrong.abs()).mean() + 0.5 * (across + down)
    return (weights * wrong.square()).mean() + 0.5 * coarse.mean() + l1 * crisp


class _Helpers(torch.nn.Module):
    """Auxiliary linear heads, used only in training.

    They predict the picture, coordinates and the noise's codes in every place, from the level with the text upwards.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        channels = list(reversed(unet.config.block_out_channels))
        self._features: list[torch.Tensor] = []
        self._said: list[torch.Tensor] = []
        first = len(channels) - TEXT_LEVEL - 1
        for block in unet.up_blocks[first:-1]:
            block.resnets[-1].register_forward_hook(self._keep)
        self.heads = torch.nn.ModuleList(torch.nn.Linear(n, 4 + 2 + CODES) for n in channels[first:-1])

    def _keep(self, _module: torch.nn.Module, _inputs: Any, output: Any) -> None:
        self._features.append(output)

    def look(self) -> None:
        """Predict from the features of the last forward pass, and forget them."""
        self._said = [
            head(functional.group_norm(features, 1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            for head, features in zip(self.heads, self._features, strict=True)
        ]
        self._features.clear()

    def loss(self, targets: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean loss over the levels, for the picture and for the coordinates."""
        pictures, coordinates = targets.new_zeros(()), targets.new_zeros(())
        for said in self._said:
            height, width = said.shape[2:]
            picture, weight = (functional.adaptive_avg_pool2d(full, (height, width)) for full in (targets, weights))
            x = torch.linspace(-1, 1, width, device=said.device).view(1, 1, 1, -1)
            y = torch.linspace(-1, 1, height, device=said.device).view(1, 1, -1, 1)
            pictures = pictures + (weight * (said[:, :4] - picture).square()).mean()
            coordinates = coordinates + (said[:, 4:5] - x).square().mean() + (said[:, 5:6] - y).square().mean()
        return pictures / len(self.heads), coordinates / len(self.heads)

    def codes_loss(self, noise: torch.Tensor) -> torch.Tensor:
        """Return the codes' mean loss in every place and level of the first examples. At 1, no code is read.

        Of the switches, only the signs are read.
        """
        codes = torch.tensor([codes_of(one) for one in noise], device=noise.device)
        codes = codes.clamp(-_LARGEST_CODE, _LARGEST_CODE)
        codes[:, SWITCHES] = codes[:, SWITCHES].sign()
        codes = codes[:, :, None, None]
        errors = [(said[: len(noise), 6:] - codes).square().mean() for said in self._said]
        loss: torch.Tensor = torch.stack(errors).mean()
        return loss


class Wires:
    """Channels that are not trained: they carry the noise down and the codes up.

    On the way down, four channels of every level are the noise, summed over blocks. Below the level with the text, the
    first channels are the codes: sums whose signs alternate from cell to cell, until one cell has them all. From there
    they lead up to the level with the text, so that each of its cells knows all codes. If the UNet could add to these
    channels, what it adds would hide the codes.

    On the lowest level each switch becomes its sign, -1 or 1, which a larger network need not learn to read exactly:
    a group norm over (x, -x, 0) gives (a, -a, 0) or (-a, a, 0), however small x is.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        """Lay the wires: set the weights of their channels, and keep them out of the training."""
        self._laid: list[tuple[torch.nn.Parameter, slice, torch.Tensor]] = []
        self._lay(unet.conv_in, _NOISE, _passing(unet.conv_in, _NOISE, slice(0, 4), 1, 1.0))
        for level, block in enumerate(unet.down_blocks):
            rows = _NOISE if level <= TEXT_LEVEL else _CODES
            if level == len(unet.down_blocks) - 1:
                self._spread(block.resnets[0])
            else:
                self._lay_layers(block, rows)
            for conv in _samplers(block, "downsamplers"):
                if level == TEXT_LEVEL:
                    self._lay(conv, _CODES, _alternating(conv))
                else:
                    weight = 0.5 * _GAIN if level < TEXT_LEVEL else 0.7
                    self._lay(conv, rows, _passing(conv, rows, rows, slice(1, 3), weight))
        self._lay_layers(unet.mid_block, _LOWEST)
        self._lay_signs(unet.mid_block.resnets[0])
        lowest, *inner, last = unet.up_blocks[: -TEXT_LEVEL - 1]
        self._lay_layers(lowest, _LOWEST)
        for conv in _samplers(lowest, "upsamplers"):
            self._lay(conv, _LOWEST, _passing(conv, _LOWEST, _LOWEST, 1, 1.0))
        for block, weight in (*((block, 1.0) for block in inner), (last, _LOUD)):
            self._lay_layers(block, _CODES)
            for conv in _samplers(block, "upsamplers"):
                self._lay(conv, _CODES, _passing(conv, _CODES, _CODES, 1, weight))
        gathering = inner[0].resnets[0].conv_shortcut
        for codes, channels in ((_COLOURS, _OTHERS), (SWITCHES, _SIGN)):
            self._lay(gathering, codes, _passing(gathering, codes, channels, 0, 1.0))
        # Large constants beside the codes, so that the next norm divides all codes by nearly the same number.
        for conv in _samplers(last, "upsamplers"):
            pairs = (conv.out_channels - CODES) // 2
            ballast = torch.tensor([_LOUD * _BALLAST, -_LOUD * _BALLAST] * pairs)
            self._lay(conv, slice(CODES, None), bias=ballast)

    def _lay_layers(self, block: Any, rows: slice) -> None:
        for resnet in block.resnets:
            self._lay(resnet.conv2, rows)
            if (shortcut := resnet.conv_shortcut) is not None:
                self._lay(shortcut, rows, _passing(shortcut, rows, rows, 0, 1.0))
        for attention in getattr(block, "attentions", ()):
            self._lay(attention.proj_out, rows)

    def _spread(self, resnet: Any) -> None:
        """Bring the codes to the lowest level's channels."""
        shortcut = resnet.conv_shortcut
        self._lay(resnet.conv2, _LOWEST)
        self._lay(shortcut, _SIGN)
        for channels, codes, weight in ((_PLUS, SWITCHES, 1.0), (_MINUS, SWITCHES, -1.0), (_OTHERS, _COLOURS, 1.0)):
            self._lay(shortcut, channels, _passing(shortcut, channels, codes, 0, weight))

    def _lay_signs(self, resnet: Any) -> None:
        """Make the layers add each switch's sign."""
        conv1, conv2 = resnet.conv1, resnet.conv2
        for norm in (resnet.norm1, resnet.norm2):
            self._lay(norm, _LOWEST, torch.ones_like(norm.weight))
        for layer in (conv1, resnet.time_emb_proj, conv2):
            self._lay(layer, slice(None))
        # silu(a) - silu(-a) is a.
        for conv, channels, weight in ((conv1, _PLUS, 1.0), (conv1, _MINUS, -1.0), (conv2, _SIGN, 1 / math.sqrt(1.5))):
            self._lay(
                conv,
                channels,
                _passing(conv, channels, _PLUS, 1, weight) + _passing(conv, channels, _MINUS, 1, -weight),
            )

    @torch.no_grad()
    def _lay(
        self, layer: Any, rows: slice, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None
    ) -> None:
        for parameter, value in ((layer.weight, weight), (layer.bias, bias)):
            parameter[rows] = 0 if value is None else value
            self._laid.append((parameter, rows, parameter[rows].clone()))
            parameter.register_hook(partial(_without, rows))

    @torch.no_grad()
    def mend(self) -> None:
        """Undo what a step of the optimizer, such as weight decay, did to the wires."""
        for parameter, rows, value in self._laid:
            parameter[rows] = value


def _samplers(block: Any, name: str) -> list[torch.nn.Conv2d]:
    return [sampler.conv for sampler in getattr(block, name) or ()]


def _passing(layer: Any, outputs: slice, inputs: slice, taps: int | slice, weight: float) -> torch.Tensor:
    """Return the weights of these outputs that pass the inputs on, one to one."""
    weights = torch.zeros_like(layer.weight)
    channels = range(max(weights.shape[:2]))
    for output, source in zip(channels[outputs], channels[inputs], strict=True):
        weights[output, source, taps, taps] = weight
    return weights[outputs]


def _alternating(layer: Any) -> torch.Tensor:
    """Return the weights that make the codes' sums of four cells from the noise."""
    weights = torch.zeros(CODES, *layer.weight.shape[1:])
    for i, (x, y) in enumerate(ALTERNATIONS):
        for channel, column, row in itertools.product(range(4), (0, 1), (0, 1)):
            sign = (-1) ** (x * column + y * row)
            weights[4 * i + channel, range(CODES)[_NOISE][channel], 1 + row, 1 + column] = (
                0.5 * sign / _GAIN**TEXT_LEVEL
            )
    return weights


def _without(rows: slice, gradient: torch.Tensor) -> torch.Tensor:
    gradient = gradient.clone()
    gradient[rows] = 0
    return gradient


def _begin_small(unet: UNet2DConditionModel) -> None:
    """Make what random layers add small. One channel is constant, and shows the border to the lower levels."""
    with torch.no_grad():
        stem = unet.conv_in
        stem.weight[1] *= 0.1
        stem.bias[1] = 1
        for module in unet.modules():
            if type(module).__name__ == "ResnetBlock2D":
                module.conv2.weight *= 0.3
        unet.conv_out.weight *= 0.2
        unet.conv_out.bias.zero_()


class Muon(torch.optim.Optimizer):
    """Muon (K. Jordan, 2024, https://kellerjordan.github.io/posts/muon/): orthogonalised momentum.

    Convolutions count as matrices of (out, in * height * width). torch's own Muon accepts only two-dimensional weights.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(state["momentum"], group["momentum"])
                matrix = _orthogonal(update.reshape(len(update), -1))
                gain = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                parameter.mul_(1 - 0.01 * group["lr"])
                parameter.add_(matrix.reshape(update.shape), alpha=-group["lr"] * gain)


def _orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Bring the singular values close to 1 by five Newton-Schulz iterations, with the coefficients of the Muon post."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x.to(fast_dtype(matrix.device))  # the iteration corrects its own rounding
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    update: torch.Tensor = (x.T if tall else x).to(matrix.dtype)
    return update


class _Examples(IterableDataset[tuple[Batch, int]]):
    """Yields first examples and edits, and the number of refinements to add. They depend only on the step's number."""

    def __init__(self, first_step: int, steps: int) -> None:
        self._first, self._steps = first_step, steps

    def __iter__(self) -> Iterator[tuple[Batch, int]]:
        worker = torch.utils.data.get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        for step in range(self._first + number, self._steps, count):
            rng = random.Random(step)
            torch.manual_seed(step)
            share = step / self._steps
            size = random_size(rng, share)
            total = max(2, int(_BATCH * min(4, 4096 / (size[0] * size[1]))))
            later = round(total * (0 if share < 0.1 else 0.4 if share < 0.6 else 0.55))
            batch = first_examples(rng, total - later, size)
            refinements = later * (2 if share < 0.6 else 3) // 5
            if later > refinements:
                batch = batch + edit_examples(rng, later - refinements, size)
            yield batch, refinements


class UnetStage:
    """The UNet, its moving average, its optimizers, and one step of training."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        torch.manual_seed(0)
        self._device = device
        self.unet = make_unet()
        _begin_small(self.unet)
        self.unet.to(device, memory_format=torch.channels_last)
        self._wires = Wires(self.unet)
        self.average = copy.deepcopy(self.unet).requires_grad_(requires_grad=False)
        convolve_fast(self.unet)
        self.helpers = _Helpers(self.unet).to(device)
        self.text = TextStage(folder).to(device)
        matrices: list[torch.nn.Parameter] = []
        others = list(self.helpers.parameters())
        for name, parameter in self.unet.named_parameters():
            inner = parameter.ndim > 1 and not name.startswith(("conv_in", "conv_out"))
            (matrices if inner else others).append(parameter)
        self.adam = torch.optim.AdamW(others, lr=_ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.01)
        self.muon = Muon(matrices, _MUON_RATE)
        self._lasts: dict[torch.Size, tuple[Batch, torch.Tensor]] = {}

    @property
    def parts(self) -> dict[str, Part]:
        """The parts of a checkpoint."""
        return {name: getattr(self, name) for name in ("unet", "average", "helpers", "adam", "muon")}

    def train(self, batch: Batch, refinements: int, step: int, share: float) -> dict[str, float]:
        """Make one step, and return its losses."""
        factor = rate(share, step, warm_up=100, decay=0.5)
        for optimizer, base in ((self.adam, _ADAM_RATE), (self.muon, _MUON_RATE)):
            optimizer.param_groups[0]["lr"] = base * factor
        torch.manual_seed(step)  # other processes may draw the examples
        firsts = int((batch.timesteps == LAST).sum())
        if refinements and (last := self._lasts.get(batch.noise.shape[1:])):
            batch = batch + refinement_examples(random.Random(step), refinements, *last)
        sigma = SIGMAS[batch.timesteps].view(-1, 1, 1, 1)
        noisy, targets = ((t.to(self._device)) for t in (batch.base + sigma * batch.noise, batch.targets))
        latents = predict(self.unet, noisy, batch.timesteps.to(self._device), self.text(batch.captions))
        self.helpers.look()
        pictures, targets = _LOSS_UNIT * latents, _LOSS_UNIT * targets
        weights = object_weights(targets, pictures.detach())
        l1 = 0.2 + 0.8 * max(0.0, share - 0.4) / 0.6
        first = picture_loss(pictures[:firsts], targets[:firsts], weights[:firsts], l1)
        loss, losses = first * firsts / len(batch), {"first": first.item()}
        if firsts < len(batch):
            # Weigh as a loss of the UNet's own output: at little noise, little of its error remains in the picture.
            strong = ((sigma**2 + 1) / sigma**2).clamp(max=_MOST)[firsts:].to(self._device)
            later = picture_loss(pictures[firsts:], targets[firsts:], strong * weights[firsts:], l1)
            loss = loss + later * (len(batch) - firsts) / len(batch)
            losses["later"] = later.item()
        codes = self.helpers.codes_loss(noisy[:firsts].cpu() / SIGMAS[LAST])
        losses["codes"] = codes.item()
        levels, coordinates = self.helpers.loss(targets, weights)
        losses["coordinates"] = coordinates.item()
        taught = 0.5 * coordinates + 0.5 * codes + 0.3 * max(0.0, 1 - 1.2 * share) * levels
        torch.autograd.backward(loss + taught)
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        for optimizer in (self.adam, self.muon):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._wires.mend()
        move_average(self.average, self.unet, step, 0.998)
        self._lasts[batch.noise.shape[1:]] = (batch, latents.detach().cpu())
        return losses


@torch.no_grad()
def sample(
    unet: UNet2DConditionModel,
    text: TextStage,
    captions: tuple[str, ...],
    *,
    steps: int,
    seed: int,
    size: tuple[int, int],
) -> torch.Tensor:
    """Return scaled latents (B, 4, *size), sampled as the pipeline does."""
    scheduler = make_scheduler()
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(seed)
    latents: torch.Tensor = torch.randn((len(captions), 4, *size), generator=generator) * scheduler.init_noise_sigma
    encoded = text(captions)
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, timestep).to(unet.device)
        v = _velocity(unet, scaled, timestep.expand(len(captions)).to(unet.device), encoded).cpu()
        latents = scheduler.step(v, timestep, latents, generator=generator).prev_sample
    return latents


def _draw_sheet(stage: UnetStage, path: Path) -> None:
    """Draw thumbnails: one step with two seeds, four steps, and one step at 256 pixels."""
    side = 128
    sheet = Image.new("RGB", (len(LOOK_AT) * side, 4 * side))
    for row, (steps, seed, size) in enumerate(((1, 0, 64), (1, 1, 64), (4, 0, 64), (1, 0, 32))):
        pictures = sample(stage.average, stage.text, LOOK_AT, steps=steps, seed=seed, size=(size, size))
        for column, latents in enumerate(pictures):
            sheet.paste(thumbnail(latents).resize((side, side)), (column * side, row * side))
    sheet.save(path)


def train_unet(folder: Path, device: torch.device) -> bool:
    """Train the UNet, and return whether all steps are done. The checkpoint is unet.pt, the pictures unet-sheet.png."""
    torch.set_flush_denormal(True)  # momentum decays to denormal numbers, which made steps eight times slower
    unet_stage = UnetStage(folder, device)
    stage = Stage(folder, "unet", STEPS, unet_stage.parts)
    # For a GPU, other processes draw the examples. On a CPU, drawing is a hundredth of the work.
    workers = 8 if device.type == "cuda" else 0
    batches = DataLoader(_Examples(stage.done, STEPS), batch_size=None, num_workers=workers)
    steps = stage.steps(look=lambda: _draw_sheet(unet_stage, folder / "unet-sheet.png"))
    for (step, share, losses), (batch, refinements) in zip(steps, batches, strict=False):
        losses.update(unet_stage.train(batch, refinements, step, share))
    return stage.is_done
