"""SDXL-Turbo on diffusers: load both modes from one set of weights, and make pictures with them."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, AutoPipelineForImage2Image, AutoPipelineForText2Image, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from app.errors import DeadPictureError, WeightsError, first_line
from app.pipelines import npu
from app.pipelines.base import (
    MAX_PROMPT_TOKENS,
    GenerationParams,
    Img2ImgParams,
    LoadedPipelines,
    Mode,
    PipelineImage,
)
from app.pipelines.device import TorchDevice, choose_dtype, choose_vae_dtype, open_device
from app.pipelines.device_errors import device_errors

_MODELS = {
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
}
"""The models of SDXL-Turbo's model_index.json."""


class SdxlTurboPipeline:
    """One mode of SDXL-Turbo around a diffusers pipeline.

    diffusers encodes the prompt and denoises; the VAE is called here. diffusers' own decode casts the whole VAE to fp32
    and back around every picture when its config has `force_upcast`; here its dtype is settled when it is loaded.
    """

    def __init__(self, pipe: Any, device: TorchDevice) -> None:
        """Wrap `pipe` (a StableDiffusionXLPipeline or StableDiffusionXLImg2ImgPipeline) that is already on `device`."""
        self._pipe = pipe
        self._vae: AutoencoderKL = pipe.vae
        self._device = device

    def __call__(self, batch: Sequence[GenerationParams], /) -> list[PipelineImage]:
        """Make the batch's pictures one after the other, so that neighbours cannot change a picture's rounding.

        The contract is `Pipeline.__call__`.
        """
        with device_errors(self._device.torch_device), torch.inference_mode():
            return [self._generate(params) for params in batch]

    @property
    def dtypes(self) -> dict[str, str]:
        """The number format of each model, such as `float16`."""
        return {name: str(getattr(self._pipe, name).dtype).removeprefix("torch.") for name in _MODELS}

    @contextmanager
    def timed_stages(self) -> Iterator[dict[str, float]]:
        """Collect the seconds that each stage takes meanwhile. Waits for the device around each, which slows it."""
        stages = {
            "text": (self._pipe.text_encoder, self._pipe.text_encoder_2),
            "unet": (self._pipe.unet,),
            "vae encode": (self._vae.encoder,),
            "vae decode": (self._vae.decoder,),
        }
        seconds: dict[str, float] = {}
        with ExitStack() as hooks:
            for name, modules in stages.items():
                clock = _Stopwatch(name, seconds, self._device)
                for module in modules:
                    hooks.callback(module.register_forward_pre_hook(clock.start).remove)
                    hooks.callback(module.register_forward_hook(clock.stop).remove)
            yield seconds

    def _generate(self, params: GenerationParams) -> PipelineImage:
        # Noise comes from the CPU on every device: the same seed gives the same noise everywhere, and torch_npu takes
        # no CPU generator for an op of its own. diffusers draws on the generator's device and moves the result.
        generator = torch.Generator("cpu").manual_seed(params.seed)
        latents = self._denoise(params, generator)
        tokens = self._count_tokens(params.prompt)
        return PipelineImage(
            image=self._decode(latents),
            prompt_tokens=min(tokens, MAX_PROMPT_TOKENS),
            prompt_truncated=tokens > MAX_PROMPT_TOKENS,
        )

    def _denoise(self, params: GenerationParams, generator: torch.Generator) -> torch.Tensor:
        """Return latents of shape (1, 4, height / 8, width / 8)."""
        common: dict[str, Any] = {
            "prompt": params.prompt,
            "num_inference_steps": params.num_inference_steps,
            "guidance_scale": 0.0,  # SDXL-Turbo is trained without guidance (model card)
            "generator": generator,
            "output_type": "latent",
        }
        latents: torch.Tensor
        if isinstance(params, Img2ImgParams):
            start = self._encode(params.image, generator)
            latents = self._pipe(image=start, strength=params.strength, **common).images
        else:
            latents = self._pipe(width=params.width, height=params.height, **common).images
        return latents

    def _encode(self, image: Image.Image, generator: torch.Generator) -> torch.Tensor:
        """Return the latents of an RGB picture, drawn from the VAE's posterior as diffusers' img2img does."""
        pixels = self._pipe.image_processor.preprocess(image).to(self._device.torch_device, self._vae.dtype)
        latents: torch.Tensor = self._vae.encode(pixels).latent_dist.sample(generator) * self._vae.config.scaling_factor
        return latents.to(self._pipe.unet.dtype)

    def _decode(self, latents: torch.Tensor) -> Image.Image:
        """Return the RGB picture of one picture's latents.

        Raises:
            DeadPictureError: It is none.
        """
        pixels = self._vae.decode(latents.to(self._vae.dtype) / self._vae.config.scaling_factor).sample
        check_alive(pixels)
        image: Image.Image = self._pipe.image_processor.postprocess(pixels, output_type="pil")[0]
        return image

    def _count_tokens(self, prompt: str) -> int:
        """Count the prompt's CLIP tokens before the cut; both encoders read their own tokenizer's."""
        return max(len(tokenizer(prompt).input_ids) for tokenizer in (self._pipe.tokenizer, self._pipe.tokenizer_2))


class _Stopwatch:
    """Adds up the seconds between a module's hooks."""

    def __init__(self, stage: str, seconds: dict[str, float], device: TorchDevice) -> None:
        self._stage, self._seconds, self._device = stage, seconds, device
        self._started = 0.0

    def start(self, *_: object) -> None:
        self._device.synchronize()
        self._started = time.monotonic()

    def stop(self, *_: object) -> None:
        self._device.synchronize()
        self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + time.monotonic() - self._started


def check_alive(pixels: torch.Tensor) -> None:
    """Check one picture of shape (1, 3, height, width) as the VAE made it, before anything is clamped.

    NaN shows as black. On Ascend 310P and 910 it saturates to 0 on the way, so that what arrives is finite and the same
    everywhere; what a VAE really decodes never is, not even for a white picture.

    Raises:
        DeadPictureError: It has values that are no numbers, or one single value in each channel.
    """
    finite = torch.isfinite(pixels).all()
    constant = (pixels.amax(dim=(-2, -1)) == pixels.amin(dim=(-2, -1))).all()
    is_finite, is_constant = torch.stack((finite, constant)).tolist()  # one wait for the device
    if not is_finite:
        raise DeadPictureError("The model's output is no picture: it has values that are no numbers.")
    if is_constant:
        raise DeadPictureError("The model's output is no picture: every pixel has the same value.")


def load_sdxl_turbo(
    folder: Path,
    *,
    model: str,
    device_name: str = "auto",
    dtype_name: str = "auto",
    vae_dtype_name: str = "auto",
    attention: npu.Attention = "sdpa",
    npu_graphs: bool = False,
) -> LoadedPipelines:
    """Open the device and load both modes from one set of weights; the contract is `PipelineLoader`.

    Args:
        folder: A diffusers folder with fp16 safetensors, already checked by `app.weights`.
        model: The name to report.
        device_name: As `open_device` takes it.
        dtype_name: As `choose_dtype` takes it.
        vae_dtype_name: As `choose_vae_dtype` takes it.
        attention: `sdpa`, or diffusers' own processor for NPUs.
        npu_graphs: Whether to compile the UNet into NPU graphs, at the sizes that it is called at until it is warm.

    Raises:
        DeviceUnavailableError: The device is not there, or cannot do what is asked for.
        DeviceLostError: The device failed.
        DeviceOutOfMemoryError: The weights do not fit into its memory.
        WeightsError: diffusers cannot load the folder.
    """
    # diffusers would log the part of a prompt that it cuts, transformers that it is long. The response says both.
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()

    device = open_device(device_name)
    torch_device = device.torch_device
    dtype = choose_dtype(dtype_name, torch_device)
    npu.check_options(torch_device, dtype, attention=attention, graphs=npu_graphs)
    try:
        txt2img = AutoPipelineForText2Image.from_pretrained(
            str(folder),
            **{name: _load_model(kind, folder / name, dtype) for name, kind in _MODELS.items()},
            local_files_only=True,
            add_watermarker=False,
        )
    except WeightsError:
        raise
    except Exception as error:  # foreign code on files of any content: the operator needs the folder and the reason
        raise WeightsError(f"The weights in {folder} cannot be loaded: {first_line(error)}.") from error
    txt2img.set_progress_bar_config(disable=True)
    _settle_vae_dtype(txt2img.vae, vae_dtype_name, dtype)
    with device_errors(torch_device):
        txt2img.to(torch_device)
    on_warm = npu.fit(txt2img.unet, attention=attention, graphs=npu_graphs)
    # The scheduler holds the step index, so each mode has its own (huggingface/diffusers#7851); all else is shared.
    scheduler = type(txt2img.scheduler).from_config(txt2img.scheduler.config)
    img2img = AutoPipelineForImage2Image.from_pipe(txt2img, scheduler=scheduler)
    img2img.set_progress_bar_config(disable=True)
    return LoadedPipelines(
        by_mode={
            Mode.TXT2IMG: SdxlTurboPipeline(txt2img, device),
            Mode.IMG2IMG: SdxlTurboPipeline(img2img, device),
        },
        device=device,
        model=model,
        device_name=str(torch_device),
        dtype=str(dtype).removeprefix("torch."),
        on_warm=on_warm,
    )


def _load_model(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """Load one model, and refuse one with holes: transformers fills a missing tensor with random numbers.

    Which names belong where is the libraries' business, as they rename tensors of older files; so they are asked.
    """
    model, info = kind.from_pretrained(
        str(folder),
        dtype=dtype,
        variant="fp16",
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    if missing := sorted(info["missing_keys"]):
        raise WeightsError(
            f"{folder} lacks {len(missing)} of the model's tensors, {missing[0]} among them. Pull the weights again."
        )
    return model


def _settle_vae_dtype(vae: AutoencoderKL, name: str, dtype: torch.dtype) -> None:
    """Give the VAE its dtype for good; what goes in and out is cast at its border."""
    vae.to(choose_vae_dtype(name, dtype, force_upcast=vae.config.force_upcast))
    vae.register_to_config(force_upcast=False)
