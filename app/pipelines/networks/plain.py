"""The networks of SDXL-Turbo as functions of tensors: plain, exact in batches on a CPU, or compiled into graphs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffusers import AutoencoderTiny
from torch import Tensor

from app.pipelines.prompts import EncodeText


@dataclass(frozen=True, slots=True, kw_only=True)
class Networks:
    """The functions that the pipelines call. Tensors are on the device, in the dtype of the network that takes them.

    Attributes:
        encode_text: One function for each text encoder.
        predict_noise: The UNet: latents (batch, 4, height / 8, width / 8), the timestep (a single number), prompt
            embeddings, pooled prompt embeddings and time ids (batch, 6), to noise of the latents' shape.
        encode: The VAE: pixels (batch, 3, height, width) in -1..1 to the parameters of the latents' distribution
            (batch, 8, height / 8, width / 8). A tiny VAE returns the latents.
        decode: The VAE: latents in its own scale to pixels in about -1..1.
        stop_compiling: To be called when all sizes are warm: no later call compiles.
    """

    encode_text: tuple[EncodeText, ...]
    predict_noise: Callable[..., Tensor]
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    stop_compiling: Callable[[], None] = lambda: None


def plain_networks(pipe: Any) -> Networks:
    """Return the networks of a diffusers pipeline as they are."""
    unet, vae = pipe.unet, pipe.vae

    def predict_noise(latents: Tensor, timestep: Tensor, embeds: Tensor, pooled: Tensor, time_ids: Tensor) -> Any:
        return unet(
            latents,
            timestep,
            encoder_hidden_states=embeds,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
            return_dict=False,
        )[0]

    def encode(pixels: Tensor) -> Any:
        encoded = vae.encode(pixels)
        return encoded.latents if isinstance(vae, AutoencoderTiny) else encoded.latent_dist.parameters

    def decode(latents: Tensor) -> Any:
        return vae.decode(latents, return_dict=False)[0]

    return Networks(
        encode_text=tuple(_text_encoding(encoder) for encoder in (pipe.text_encoder, pipe.text_encoder_2)),
        predict_noise=predict_noise,
        encode=encode,
        decode=decode,
    )


def _text_encoding(encoder: Any) -> EncodeText:
    def encode(ids: Tensor) -> tuple[Tensor, Tensor]:
        encoded = encoder(ids, output_hidden_states=True)
        return encoded.hidden_states[-2], encoded[0]  # SDXL reads the last state but one

    return encode
