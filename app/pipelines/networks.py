"""The networks of SDXL-Turbo as functions of tensors: plain, recorded on the CPU, or compiled into graphs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from diffusers import AutoencoderTiny

from app.pipelines.base import MAX_PROMPT_TOKENS
from app.pipelines.graphs import WarmGraphs, cuda_graphs
from app.pipelines.prompts import EncodeText
from app.pipelines.traced import trace

Batching = Literal["off", "exact", "fast"]

Compile = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Makes of a function of tensors one that is compiled, at each new size, when it is called."""

_EXAMPLE_SIDES = (9, 11)
"""Latents to record with: odd sides take the way that holds for all; even ones would fix where sides are doubled."""

_SELF_TEST_SIDES = (8, 12)
_SELF_TEST_BATCH = 3


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


def traced_networks(pipe: Any, plain: Networks, *, exact: bool) -> Networks:
    """Return the networks of a pipeline in fp32 on the CPU, recorded; the UNet as exactly as is asked for."""
    for network in (pipe.text_encoder, pipe.text_encoder_2, pipe.unet, pipe.vae):
        network.requires_grad_(requires_grad=False)
    example = _noise_inputs(pipe, batch=2, sides=_EXAMPLE_SIDES)
    latents = example[0]
    scale = pipe.vae_scale_factor
    pixels = torch.zeros(1, 3, _EXAMPLE_SIDES[0] * scale, _EXAMPLE_SIDES[1] * scale)
    ids = torch.zeros(1, MAX_PROMPT_TOKENS, dtype=torch.long)
    return Networks(
        encode_text=tuple(trace(encode, [ids], exact=False) for encode in plain.encode_text),
        predict_noise=trace(plain.predict_noise, example, exact=exact),
        encode=trace(plain.encode, [pixels], exact=False),
        decode=trace(plain.decode, [latents[:1]], exact=False),
    )


def predicts_alike_in_a_batch(pipe: Any, networks: Networks) -> bool:
    """Tell whether the UNet, on the CPU, makes the same bits of a sample alone and in a batch. Takes moments."""
    latents, timestep, *conditions = _noise_inputs(pipe, batch=_SELF_TEST_BATCH, sides=_SELF_TEST_SIDES)
    with torch.inference_mode():
        together = networks.predict_noise(latents, timestep, *conditions)
        return all(
            torch.equal(
                networks.predict_noise(
                    latents[i : i + 1], timestep, *(condition[i : i + 1] for condition in conditions)
                ),
                together[i : i + 1],
            )
            for i in range(_SELF_TEST_BATCH)
        )


def _noise_inputs(pipe: Any, *, batch: int, sides: tuple[int, int]) -> list[torch.Tensor]:
    """Return inputs of the UNet, all samples different."""
    chance = torch.Generator("cpu").manual_seed(0)
    config, projection = pipe.unet.config, pipe.text_encoder_2.config.projection_dim
    return [
        torch.randn(batch, config.in_channels, *sides, generator=chance),
        torch.tensor(999.0),
        torch.randn(batch, MAX_PROMPT_TOKENS, config.cross_attention_dim, generator=chance),
        torch.randn(batch, projection, generator=chance),
        torch.tensor([[512.0, 512.0, 0.0, 0.0, 512.0, 512.0]]).repeat(batch, 1),
    ]


def compiled_networks(
    plain: Networks, device: torch.device, *, compile_function: Compile = cuda_graphs
) -> tuple[Networks, Callable[[], None]]:
    """Return the networks by graphs, and what to call when they are warm."""
    graphs: list[WarmGraphs] = []
    with torch.inference_mode():
        for encode in plain.encode_text:
            # At its first call an encoder of transformers takes a lock to prepare itself, which cannot be compiled.
            encode(torch.zeros(1, MAX_PROMPT_TOKENS, dtype=torch.long, device=device))

    def by_graphs(function: Callable[..., Any]) -> WarmGraphs:
        graphs.append(WarmGraphs(function, compile_function(function)))
        return graphs[-1]

    def stop_compiling() -> None:
        for graph in graphs:
            graph.stop_compiling()

    networks = Networks(
        encode_text=tuple(by_graphs(encode) for encode in plain.encode_text),
        predict_noise=by_graphs(plain.predict_noise),
        encode=by_graphs(plain.encode),
        decode=by_graphs(plain.decode),
    )
    return networks, stop_compiling


def with_npu_graphs(plain: Networks, compile_function: Compile) -> tuple[Networks, Callable[[], None]]:
    """Return the networks with the UNet by graphs of an NPU, and what to call when it is warm."""
    graphs = WarmGraphs(plain.predict_noise, compile_function(plain.predict_noise))
    return replace(plain, predict_noise=graphs), graphs.stop_compiling
