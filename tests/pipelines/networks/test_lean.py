"""Networks with fewer operations compute what diffusers' and transformers' own compute."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from app.pipelines.networks.lean import LeanResnet, lean_text_encoding, make_lean
from app.pipelines.networks.operators import Operators

BATCH, WIDTH = 2, 48


def unet(**options: Any) -> UNet2DConditionModel:
    torch.manual_seed(0)
    shapes = {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "transformer_layers_per_block": (1, 2),
        "projection_class_embeddings_input_dim": 80,
        "cross_attention_dim": WIDTH,
    }
    return UNet2DConditionModel(**shapes | options).eval()


def predicted(network: UNet2DConditionModel, size: tuple[int, int], width: int = WIDTH) -> torch.Tensor:
    chance = torch.Generator().manual_seed(1)
    conditions = {"text_embeds": torch.randn(BATCH, 32, generator=chance), "time_ids": torch.ones(BATCH, 6)}
    latents, prompt = torch.randn(BATCH, 4, *size, generator=chance), torch.randn(BATCH, 77, width, generator=chance)
    with torch.inference_mode():
        made: torch.Tensor = network(latents, torch.tensor(999.0), prompt, added_cond_kwargs=conditions).sample
    return made


def vae(**options: Any) -> AutoencoderKL:
    torch.manual_seed(0)
    shapes = {
        "block_out_channels": (32, 64),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 4,
    }
    return AutoencoderKL(**shapes | options).eval()


@pytest.mark.parametrize("size", [(8, 8), (9, 65)], ids=["even", "odd"])
@pytest.mark.parametrize(
    ("options", "is_lean"),
    [
        ({}, True),
        ({"use_linear_projection": False}, False),
        ({"resnet_time_scale_shift": "scale_shift"}, True),
        ({"act_fn": "gelu"}, True),
        ({"mid_block_scale_factor": 2}, True),
        ({"encoder_hid_dim": 40, "encoder_hid_dim_type": "text_proj"}, False),
        ({"down_block_types": ("DownBlock2D", "SimpleCrossAttnDownBlock2D")}, False),
        ({"attention_type": "gated"}, False),
        ({"dual_cross_attention": False, "upcast_attention": True}, True),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_unet_predicts_the_same_noise_whatever_its_blocks_are(
    options: dict[str, Any], is_lean: bool, size: tuple[int, int]
) -> None:
    width = options.get("encoder_hid_dim", WIDTH)
    stock, lean = unet(**options), unet(**options)
    make_lean(lean, vae(), Operators())
    torch.testing.assert_close(predicted(lean, size, width), predicted(stock, size, width), atol=2e-5, rtol=2e-5)
    assert ("process_encoder_hidden_states" in vars(lean)) == is_lean


@pytest.mark.parametrize("options", [{}, {"act_fn": "gelu"}, {"mid_block_add_attention": False}], ids=str)
def test_a_vae_encodes_and_decodes_the_same(options: dict[str, Any]) -> None:
    stock, lean = vae(**options), vae(**options)
    make_lean(unet(), lean, Operators())
    pixels, latents = torch.randn(BATCH, 3, 32, 40), torch.randn(BATCH, 4, 8, 9)
    with torch.inference_mode():
        torch.testing.assert_close(
            lean.encode(pixels).latent_dist.parameters, stock.encode(pixels).latent_dist.parameters
        )
        torch.testing.assert_close(lean.decode(latents).sample, stock.decode(latents).sample)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "relu"])
@pytest.mark.parametrize("end_id", [2, 999])
def test_a_text_encoder_s_last_state_but_one_and_its_pooled_output_are_the_same(activation: str, end_id: int) -> None:
    config = CLIPTextConfig(
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        num_hidden_layers=3,
        vocab_size=1000,
        projection_dim=24,
        bos_token_id=0,
        eos_token_id=end_id,
        hidden_act=activation,
    )
    ids = torch.randint(3, 900, (BATCH, 77), generator=torch.Generator().manual_seed(0))
    ids[:, 40:] = 999
    for kind, pooled in ((CLIPTextModel, False), (CLIPTextModelWithProjection, True)):
        torch.manual_seed(0)
        encoder = kind(config).eval()
        with torch.inference_mode():
            stock = encoder(ids, output_hidden_states=True)
            state, projected = lean_text_encoding(encoder, Operators(), pooled=pooled)(ids)
        torch.testing.assert_close(state, stock.hidden_states[-2])
        if pooled:
            torch.testing.assert_close(projected, stock.text_embeds)


def test_no_weight_is_kept_twice() -> None:
    stock, lean = unet(), unet()
    make_lean(lean, vae(), Operators())
    tensors = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in lean.parameters()}
    assert sum(tensors.values()) == sum(tensor.nbytes for tensor in stock.parameters())
    assert any(isinstance(module.forward, LeanResnet) for module in lean.modules())
