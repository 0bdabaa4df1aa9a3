"""SDXL-Turbo on diffusers: load both modes from one set of weights, and make pictures with them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, AutoPipelineForImage2Image, AutoPipelineForText2Image, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from app.errors import InferenceError, WeightsError
from app.pipelines.base import (
    MAX_PROMPT_TOKENS,
    GenerationParams,
    Img2ImgParams,
    LoadedPipelines,
    Mode,
    PipelineImage,
)
from app.pipelines.device import as_turbo_error, choose_dtype, open_device

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

    def __init__(self, pipe: Any, device: torch.device) -> None:
        """Wrap `pipe` (a StableDiffusionXLPipeline or StableDiffusionXLImg2ImgPipeline) that is already on `device`."""
        self._pipe = pipe
        self._vae: AutoencoderKL = pipe.vae
        self._device = device

    def __call__(self, batch: Sequence[GenerationParams], /) -> list[PipelineImage]:
        """Make the batch's pictures one after the other, so that neighbours cannot change a picture's rounding.

        The contract is `Pipeline.__call__`.
        """
        try:
            with torch.inference_mode():
                return [self._generate(params) for params in batch]
        except RuntimeError as error:
            if (ours := as_turbo_error(error, self._device)) is not None:
                raise ours from error
            raise

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
        pixels = self._pipe.image_processor.preprocess(image).to(self._device, self._vae.dtype)
        latents: torch.Tensor = self._vae.encode(pixels).latent_dist.sample(generator) * self._vae.config.scaling_factor
        return latents.to(self._pipe.unet.dtype)

    def _decode(self, latents: torch.Tensor) -> Image.Image:
        """Return the RGB picture of one picture's latents.

        Raises:
            InferenceError: It has NaN or infinities, which would show as black.
        """
        pixels = self._vae.decode(latents.to(self._vae.dtype) / self._vae.config.scaling_factor).sample
        if not torch.isfinite(pixels).all():
            raise InferenceError("The model's output is not a picture: it has values that are no numbers.")
        image: Image.Image = self._pipe.image_processor.postprocess(pixels, output_type="pil")[0]
        return image

    def _count_tokens(self, prompt: str) -> int:
        """Count the prompt's CLIP tokens before the cut; both encoders read their own tokenizer's."""
        return max(len(tokenizer(prompt).input_ids) for tokenizer in (self._pipe.tokenizer, self._pipe.tokenizer_2))


def load_sdxl_turbo(folder: Path, *, model: str, device_name: str, dtype_name: str) -> LoadedPipelines:
    """Open the device and load both modes from one set of weights; the contract is `PipelineLoader`.

    Args:
        folder: A diffusers folder with fp16 safetensors, already checked by `app.weights`.
        model: The name to report.
        device_name: As `open_device` takes it.
        dtype_name: As `choose_dtype` takes it.

    Raises:
        DeviceUnavailableError: The device is not there.
        WeightsError: diffusers cannot load the folder.
    """
    # diffusers would log the part of a prompt that it cuts, transformers that it is long. The response says both.
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()

    device = open_device(device_name)
    dtype = choose_dtype(dtype_name, device)
    try:
        txt2img = AutoPipelineForText2Image.from_pretrained(
            str(folder),
            **{name: _load_model(kind, folder / name, dtype) for name, kind in _MODELS.items()},
            local_files_only=True,
            add_watermarker=False,
        )
        _settle_vae_dtype(txt2img.vae)
        txt2img.to(device)
    except WeightsError:
        raise
    except Exception as error:  # foreign code on files of any content: the operator needs the folder and the reason
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(f"The weights in {folder} cannot be loaded: {first_line}") from error
    txt2img.set_progress_bar_config(disable=True)
    # The scheduler holds the step index, so each mode has its own (huggingface/diffusers#7851); all else is shared.
    scheduler = type(txt2img.scheduler).from_config(txt2img.scheduler.config)
    img2img = AutoPipelineForImage2Image.from_pipe(txt2img, scheduler=scheduler)
    img2img.set_progress_bar_config(disable=True)
    return LoadedPipelines(
        by_mode={
            Mode.TXT2IMG: SdxlTurboPipeline(txt2img, device),
            Mode.IMG2IMG: SdxlTurboPipeline(img2img, device),
        },
        model=model,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
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


def _settle_vae_dtype(vae: AutoencoderKL) -> None:
    """Keep the VAE in fp32 for good where its config says that it overflows in fp16 (black pictures otherwise)."""
    if vae.dtype == torch.float16 and vae.config.force_upcast:
        vae.to(torch.float32)
    vae.register_to_config(force_upcast=False)
