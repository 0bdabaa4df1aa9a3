"""The networks of SDXL-Turbo as functions of tensors: plain, recorded on the CPU, or compiled into graphs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderTiny

from app.pipelines.prompts import EncodeText


@dataclass(frozen=True, slots=True, kw_only=True)
class Networks:
    """What the pipelines call. Tensors are on the device and in the dtype of the network that they go into.

    Attributes:
        encode_text: One for each text encoder.
        predict_noise: The UNet: latents (batch, 4, height / 8, width / 8), the timestep (a single number), prompt
            embeddings, pooled prompt embeddings and time ids (batch, 6), to noise of the latents' shape.
        encode: The VAE: pixels (batch, 3, height, width) in -1..1 to the parameters of the latents' distribution
            (batch, 8, height / 8, width / 8), or, of a tiny VAE, the latents.
        decode: The VAE: latents in its own scale to pixels in about -1..1.
    """

    encode_text: tuple[EncodeText, ...]
    predict_noise: Callable[..., torch.Tensor]
    encode: Callable[[torch.Tensor], torch.Tensor]
    decode: Callable[[torch.Tensor], torch.Tensor]


def plain_networks(pipe: Any) -> Networks:
    """Return the networks of a diffusers pipeline as they are."""
    unet, vae = pipe.unet, pipe.vae

    def predict_noise(
        latents: torch.Tensor,
        timestep: torch.Tensor,
        embeds: torch.Tensor,
        pooled: torch.Tensor,
        time_ids: torch.Tensor,
    ) -> torch.Tensor:
        noise: torch.Tensor = unet(
            latents,
            timestep,
            encoder_hidden_states=embeds,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
            return_dict=False,
        )[0]
        return noise

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        encoded = vae.encode(pixels)
        parameters: torch.Tensor = (
            encoded.latents if isinstance(vae, AutoencoderTiny) else encoded.latent_dist.parameters
        )
        return parameters

    def decode(latents: torch.Tensor) -> torch.Tensor:
        pixels: torch.Tensor = vae.decode(latents, return_dict=False)[0]
        return pixels

    return Networks(
        encode_text=tuple(_text_encoding(encoder) for encoder in (pipe.text_encoder, pipe.text_encoder_2)),
        predict_noise=predict_noise,
        encode=encode,
        decode=decode,
    )


def _text_encoding(encoder: Any) -> EncodeText:
    def encode(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        encoded = encoder(ids, output_hidden_states=True)
        return encoded.hidden_states[-2], encoded[0]  # SDXL reads the last state but one

    return encode
