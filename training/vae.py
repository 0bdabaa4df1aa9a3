"""The second and the fourth stage: the VAE's encoder learns the defined latents, and the decoder to draw from them.

In the second stage the decoder gets true latents, slightly noisy or blurred. In the fourth it gets the UNet's latents
for a caption and noise with a known right picture, and learns to draw that picture crisply.
"""

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from torch.nn import functional

from training.captions import caption_of
from training.drawing import draw
from training.latents import SCALING, codes_of, image_latents, thumbnail
from training.models import make_unet, make_vae
from training.scenes import random_codes, random_layout, random_scene
from training.stage import Stage, convolve_fast, move_average, rate
from training.text import TextStage
from training.unet import LOOK_AT, sample

STEPS = 5_000
POLISH_STEPS = 1200
_RATE = 8e-4
_POLISH_RATE = 3e-4


def _to_tensor(pictures: list[Image.Image]) -> torch.Tensor:
    arrays = [np.asarray(picture, np.float32).transpose(2, 0, 1) / 127.5 - 1 for picture in pictures]
    return torch.from_numpy(np.stack(arrays))


def _to_image(picture: torch.Tensor) -> Image.Image:
    return Image.fromarray(((picture.cpu().permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8))


def _drawings(rng: random.Random, count: int, side: int) -> torch.Tensor:
    pictures = []
    for _ in range(count):
        codes = random_codes(rng)
        layout = random_layout(rng) if rng.random() < 0.5 else None
        antialias = 2 if side > 400 else 3
        scene = random_scene(rng)
        pictures.append(draw(scene, codes, layout=layout, width=side, height=side, antialias=antialias))
    return _to_tensor(pictures)


def _soft_pictures(count: int, side: int) -> torch.Tensor:
    """Return pictures of random soft colours, which train the encoder for photographs."""
    pictures = torch.zeros(count, 3, side, side)
    for grain, weight in ((32, 0.5), (8, 0.2), (2, 0.1)):
        spots = torch.randn(count, 3, side // grain + 1, side // grain + 1)
        pictures += weight * functional.interpolate(spots, size=(side, side), mode="bilinear")
    return pictures.clamp(-1, 1)


def _disturbed(latents: torch.Tensor, rng: random.Random) -> torch.Tensor:
    latents = latents + rng.choice((0, 0.01, 0.03, 0.06)) * torch.randn_like(latents)
    if rng.random() < 0.4:
        line = torch.tensor([1.0, 2.0, 1.0]) / 4
        kernel = (line[:, None] * line).expand(4, 1, 3, 3).to(latents.device)
        soft = functional.conv2d(functional.pad(latents, (1, 1, 1, 1), mode="replicate"), kernel, groups=4)
        latents = torch.lerp(latents, soft, rng.uniform(0.2, 0.8))
    return latents


def drawing_loss(decoded: torch.Tensor, pictures: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Return L1 with sevenfold weight near edges, plus L1 of the differences between neighbouring pixels."""
    flat = functional.interpolate(latents[:, :3], scale_factor=8)
    near_edges = ((pictures - flat).abs().amax(1, keepdim=True) > 0.05).float()
    wrong = decoded - pictures
    across = (wrong[..., 1:] - wrong[..., :-1]).abs().mean()
    down = (wrong[..., 1:, :] - wrong[..., :-1, :]).abs().mean()
    return (wrong.abs() * (1 + 6 * near_edges)).mean() + across + down


def _pass_first_channels(conv: Any, count: int, *, halve: bool = False) -> None:
    for i in range(count):
        conv.weight[i] = 0
        conv.bias[i] = 0
        if halve:
            conv.weight[i, i, :2, :2] = 0.25
        else:
            conv.weight[i, i, conv.weight.shape[2] // 2, conv.weight.shape[3] // 2] = 1


@torch.no_grad()
def _begin_as_resize(vae: AutoencoderKL) -> None:
    """Initialise the encoder to average blocks and the decoder to enlarge them, by linear fits of their last layers.

    The first channels and a constant channel pass through the residual stream. The log variance means no noise.
    """
    means, log_variances = torch.eye(8, 8), torch.tensor([0.0] * 4 + [-20.0] * 4)
    means[4:] = 0
    vae.quant_conv.load_state_dict({"weight": means.view(8, 8, 1, 1), "bias": log_variances})
    vae.post_quant_conv.load_state_dict({"weight": torch.eye(4).view(4, 4, 1, 1), "bias": torch.zeros(4)})
    for part, channels in ((vae.encoder, 3), (vae.decoder, 4)):
        part.conv_in.weight[: channels + 1] = 0
        part.conv_in.bias[: channels + 1] = 0
        part.conv_in.bias[channels] = 4
        for i in range(channels):
            part.conv_in.weight[i, i, 1, 1] = 1
        for module in part.modules():
            match type(module).__name__:
                case "ResnetBlock2D":
                    module.conv2.weight *= 0.2
                    module.conv2.bias.zero_()
                    if module.conv_shortcut is not None:
                        _pass_first_channels(module.conv_shortcut, channels + 1)
                case "Downsample2D":
                    _pass_first_channels(module.conv, channels + 1, halve=True)
                case "Upsample2D":
                    _pass_first_channels(module.conv, channels + 1)
        part.conv_norm_out.bias[: channels + 1] = 3
    images = torch.cat([_drawings(random.Random(0), 20, 128), _soft_pictures(8, 128)])
    latents = image_latents(images)
    _fit_last_layer(vae.encoder, images, latents)
    _fit_last_layer(vae.decoder, latents, images)


def _fit_last_layer(part: Any, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
    """Set the last layer to the least-squares fit of the outputs."""
    seen: list[torch.Tensor] = []
    hook = part.conv_out.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    part(inputs)
    hook.remove()
    features = seen[0].permute(0, 2, 3, 1).reshape(-1, seen[0].shape[1])
    features = torch.cat([features, torch.ones(len(features), 1)], 1)
    wanted = outputs.permute(0, 2, 3, 1).reshape(-1, outputs.shape[1])
    rows = torch.randperm(len(features))[:20_000]
    fit = torch.linalg.lstsq(features[rows].double(), wanted[rows].double(), driver="gelsd").solution.float()
    part.conv_out.weight[: wanted.shape[1]] = 0
    part.conv_out.weight[: wanted.shape[1], :, 1, 1] = fit[:-1].T
    part.conv_out.bias[: wanted.shape[1]] = fit[-1]


def train_vae(folder: Path, device: torch.device) -> bool:
    """Train encoder and decoder, and return whether all steps are done. The checkpoint is vae.pt."""
    torch.manual_seed(0)
    vae = make_vae()
    _begin_as_resize(vae)
    vae.to(device)
    average = copy.deepcopy(vae).requires_grad_(requires_grad=False)
    convolve_fast(vae)
    optimizer = torch.optim.AdamW(
        [{"params": list(vae.decoder.parameters())}, {"params": list(vae.encoder.parameters())}],
        betas=(0.9, 0.99),
        weight_decay=1e-4,
    )
    stage = Stage(folder, "vae", STEPS, {"vae": vae, "average": average, "optimizer": optimizer})
    for step, share, losses in stage.steps(look=lambda: _draw_round_trips(average, folder / "vae-sheet.png")):
        rng = random.Random(step)
        torch.manual_seed(step)
        factor = rate(share, step, warm_up=60, decay=0.6)
        for group, base in zip(optimizer.param_groups, (_RATE, _RATE / 4), strict=True):
            group["lr"] = base * factor
        # Whole pictures, not crops, because group normalisation depends on the plain share of a picture.
        side = 512 if step % 8 == 7 else rng.choice((192, 256, 256))
        pictures = _drawings(rng, 1 if side > 400 else 3, side)
        if step % 8 == 3:
            pictures = torch.cat([pictures[:-1], _soft_pictures(1, side)])
        pictures = pictures.to(device)
        latents = image_latents(pictures)
        decoded = vae.decoder(vae.post_quant_conv(_disturbed(latents, rng)))
        loss = drawing_loss(decoded, pictures, latents)
        losses["decoder"] = loss.item()
        if step % 3 == 0 and side < 400:
            encoder_loss = (vae.quant_conv(vae.encoder(pictures))[:, :4] - latents).abs().mean()
            losses["encoder"] = encoder_loss.item()
            loss = loss + encoder_loss
        torch.autograd.backward(loss)
        for part in (vae.encoder, vae.decoder):
            torch.nn.utils.clip_grad_norm_(part.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        move_average(average, vae, step, 0.995)
    return stage.is_done


def polish_decoder(folder: Path, device: torch.device) -> bool:
    """Train the decoder on the UNet's own latents, and return whether all steps are done: polish.pt."""
    torch.manual_seed(0)
    text = TextStage(folder).to(device)
    unet = make_unet().to(device)
    unet.load_state_dict(torch.load(folder / "unet.pt", map_location="cpu")["average"])
    unet.requires_grad_(requires_grad=False)
    vae = make_vae()
    vae.load_state_dict(torch.load(folder / "vae.pt", map_location="cpu")["average"])
    vae.to(device).requires_grad_(requires_grad=False)
    decoder = vae.decoder.requires_grad_(requires_grad=True)
    average = copy.deepcopy(decoder).requires_grad_(requires_grad=False)
    convolve_fast(decoder)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=_POLISH_RATE, betas=(0.9, 0.99), weight_decay=1e-4)

    stage = Stage(folder, "polish", POLISH_STEPS, {"decoder": decoder, "average": average, "optimizer": optimizer})

    def look() -> None:
        _draw_decoded(unet, text, vae, average, folder / "polish-sheet.png")

    for step, share, losses in stage.steps(look=look):
        rng = random.Random(-step - 1)
        torch.manual_seed(step)
        optimizer.param_groups[0]["lr"] = _POLISH_RATE * rate(share, step, warm_up=30, decay=0.7)
        # Half-size pictures are cheap; full-size pictures are the goal.
        side = 512 if step % 2 else 256
        latents, pictures = (t.to(device) for t in _own_latents(rng, 1 if side > 400 else 3, side, unet, text))
        if step % 6 >= 4:
            latents = image_latents(pictures)
        decoded = decoder(vae.post_quant_conv(latents))
        loss = drawing_loss(decoded, pictures, image_latents(pictures))
        losses["decoder"] = loss.item()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        move_average(average, decoder, step, 0.99)
    return stage.is_done


def _own_latents(
    rng: random.Random, count: int, side: int, unet: UNet2DConditionModel, text: TextStage
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the UNet's unscaled latents after one step or four, and the right pictures for them."""
    seed, shape = rng.randrange(1 << 30), (count, 4, side // 8, side // 8)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    scenes = [random_scene(rng) for _ in range(count)]
    captions = tuple(caption_of(scene, rng) for scene in scenes)
    pictures = [
        draw(scene, codes_of(own), width=side, height=side, antialias=2)
        for scene, own in zip(scenes, noise, strict=True)
    ]
    latents = sample(unet, text, captions, steps=rng.choice((1, 4)), seed=seed, size=shape[2:])
    return latents / SCALING, _to_tensor(pictures)


@torch.no_grad()
def _draw_decoded(
    unet: UNet2DConditionModel, text: TextStage, vae: AutoencoderKL, decoder: torch.nn.Module, path: Path
) -> None:
    """Draw the pictures of the UNet and the decoder for captions: one step above, four steps below."""
    side = 256
    sheet = Image.new("RGB", (len(LOOK_AT) * side, 2 * side))
    for row, steps in enumerate((1, 4)):
        latents = sample(unet, text, LOOK_AT, steps=steps, seed=0, size=(64, 64)).to(unet.device) / SCALING
        for column in range(len(LOOK_AT)):
            decoded = decoder(vae.post_quant_conv(latents[column : column + 1])).clamp(-1, 1)
            sheet.paste(_to_image(decoded[0]).resize((side, side)), (column * side, row * side))
    sheet.save(path)


@torch.no_grad()
def _draw_round_trips(vae: AutoencoderKL, path: Path) -> None:
    """Draw pictures, the thumbnails of their latents, and the decoder's pictures."""
    pictures = _drawings(random.Random(1), 8, 256).to(next(vae.parameters()).device)
    latents = vae.quant_conv(vae.encoder(pictures))[:, :4]
    decoded = vae.decoder(vae.post_quant_conv(latents)).clamp(-1, 1)
    sheet = Image.new("RGB", (8 * 256, 3 * 256))
    for column, (picture, latent, copied) in enumerate(zip(pictures, latents, decoded, strict=True)):
        small = thumbnail(latent.cpu() * SCALING).resize((256, 256), Image.Resampling.NEAREST)
        for row, shown in enumerate((_to_image(picture), small, _to_image(copied))):
            sheet.paste(shown, (256 * column, 256 * row))
    sheet.save(path)
