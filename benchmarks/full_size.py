"""Builds a model with SDXL-Turbo's real shapes and random weights, to measure time and memory without its weights.

    python -m benchmarks.full_size [--folder FOLDER] [--shards] [--nano]

The folder has the files that `pull` downloads from stabilityai/sdxl-turbo, about 7 GB. Its tokenizers have CLIP's real
vocabulary. The pictures mean nothing. A VAE of TAESDXL's shape is built beside it. The same machine and versions of the
libraries give the same bytes.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderTiny
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from app.weights.vocabulary import END, START, read_merges, words
from benchmarks.nano_sdxl import TOKENS, assemble, make_unet, make_vae

_ROOT = Path(__file__).parents[1]
FOLDER = _ROOT / "build" / "full-size" / "sdxl-turbo"
"""The model that `make full-size` builds."""

_CPU = torch.device("cpu")

_MOST_NOISE = 14.6
"""The scheduler's largest sigma, and about the deviation of the latents that a call with one step decodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """The size arguments of the models' classes. A text encoder's are those of CLIPTextConfig.

    `tiny_vae` is the tiny VAE's number of channels.
    """

    text_encoder: Mapping[str, int]
    text_encoder_2: Mapping[str, int]
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    tiny_vae: int


FULL = Shapes(
    text_encoder={"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    text_encoder_2={"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 20},
    unet={
        "block_out_channels": (320, 640, 1280),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    vae={
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "sample_size": 1024,
    },
    tiny_vae=64,
)
"""The shapes of stabilityai/sdxl-turbo and of TAESDXL."""

NANO = Shapes(
    text_encoder={"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    text_encoder_2={"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    unet={
        "block_out_channels": (32, 64, 128),
        "layers_per_block": 1,
        "transformer_layers_per_block": (1, 1, 2),
        "attention_head_dim": (1, 2, 4),
        "cross_attention_dim": 96,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 112,
        "norm_num_groups": 8,
    },
    vae={"block_out_channels": (8, 16, 16, 16), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 512},
    tiny_vae=8,
)
"""Small shapes, to test the scripts."""


def build_missing(folder: Path, *, shapes: Shapes = FULL, device: torch.device = _CPU, shards: bool = False) -> None:
    """Build the model in `folder` and the tiny VAE beside it, each unless its folder exists. Prints the progress.

    A build that is interrupted leaves a folder with the ending `.part`, which the next build replaces.

    Args:
        folder: The model's folder.
        shapes: The sizes of the networks.
        device: Here the networks are initialized and run in fp32, one after another. It needs 11 GB of memory.
        shards: Whether the UNet is written in three files with an index.

    Raises:
        ValueError: The output of the random weights is not a picture.
    """
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()  # each conversion to fp16 is a warning
    _build(tiny_vae_beside(folder), lambda part: _write_tiny_vae(part, shapes, device))
    _build(folder, lambda part: _write_model(part, shapes, device, shards=shards))


def tiny_vae_beside(folder: Path) -> Path:
    """Return the folder of the tiny VAE that belongs to the model in `folder`."""
    return folder.with_name(f"{folder.name}-tiny-vae")


def make_models(shapes: Shapes) -> dict[str, Callable[[], Any]]:
    """Return the functions that make SDXL-Turbo's models, by name: in fp32, with the random weights of their classes.

    The models are made on the device of the context; on `meta` they have no weights, and only their config counts.
    """
    return {
        "text_encoder": lambda: CLIPTextModel(_text_config(shapes.text_encoder, "quick_gelu")),
        "text_encoder_2": lambda: CLIPTextModelWithProjection(_text_config(shapes.text_encoder_2, "gelu")),
        "unet": lambda: make_unet(**shapes.unet),
        "vae": lambda: make_vae(**shapes.vae),
    }


def write_tokenizer(folder: Path, *, pad: str) -> Any:
    """Write CLIP's tokenizer to `folder` in the four files of SDXL-Turbo's repository, and return it.

    Args:
        folder: The tokenizer's folder.
        pad: The token that fills a prompt to 77 tokens: the end token in `tokenizer`, `!` in `tokenizer_2`.
    """
    merges = read_merges()
    ids = {word: i for i, word in enumerate(words(merges))}
    marks = {"bos_token": START, "eos_token": END, "pad_token": pad, "unk_token": END}
    plain = {"lstrip": False, "rstrip": False, "single_word": False}
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(ids[word]): {"content": word, "normalized": word == START, "special": True, **plain}
            for word in sorted({START, END, pad}, key=ids.__getitem__)
        },
        **marks,
        "clean_up_tokenization_spaces": True,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": TOKENS,
        "tokenizer_class": "CLIPTokenizer",
    }
    folder.mkdir(parents=True)
    for name, content in {"vocab": ids, "special_tokens_map": marks, "tokenizer_config": config}.items():
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges), ""]), encoding="utf-8")
    return CLIPTokenizer.from_pretrained(str(folder))


def _text_config(sizes: Mapping[str, int], activation: str) -> CLIPTextConfig:
    """Return a text encoder's configuration. With SDXL's eos id 2, the end is taken to be the prompt's largest id."""
    width = sizes["hidden_size"]
    return CLIPTextConfig(
        **sizes,
        vocab_size=len(words(read_merges())),
        intermediate_size=4 * width,
        projection_dim=width,
        hidden_act=activation,
        max_position_embeddings=TOKENS,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )


def _build(folder: Path, write: Callable[[Path], None]) -> None:
    """Have `folder` written under another name, and rename it when it is complete. Does nothing if it exists."""
    if folder.exists():
        print(f"{folder} exists", flush=True)
        return
    began = time.monotonic()
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write(part)
    part.rename(folder)
    print(f"{folder} is complete after {time.monotonic() - began:.0f} s", flush=True)


@torch.no_grad()
def _write_model(folder: Path, shapes: Shapes, device: torch.device, *, shards: bool) -> None:
    """Write the pipeline. Each model's input is the output of the one before, so the last output is a picture."""
    models = make_models(shapes)
    with torch.device("meta"):
        blank = {name: make() for name, make in models.items()}
    tokenizers = {
        "tokenizer": write_tokenizer(folder / "tokenizer", pad=END),
        "tokenizer_2": write_tokenizer(folder / "tokenizer_2", pad="!"),
    }
    pipeline = assemble(**blank, **tokenizers)
    pipeline.save_config(folder)
    pipeline.scheduler.save_pretrained(folder / "scheduler")
    progress = _progress(blank)

    embeds, pooled = [], None
    for name, tokenizer in zip(("text_encoder", "text_encoder_2"), tokenizers.values(), strict=True):
        with progress(name), device:
            encoded = _write_text_encoder(models[name], tokenizer, folder / name)
            embeds.append(encoded.hidden_states[-2])
            pooled = encoded.get("text_embeds")
    with progress("unet"), device:
        conditions = {"text_embeds": pooled, "time_ids": torch.tensor([[512.0, 512, 0, 0, 512, 512]])}
        latents = _write_unet(
            models["unet"], torch.cat(embeds, -1), conditions, pipeline.scheduler, folder=folder / "unet", shards=shards
        )
    with progress("vae"), device:
        _write_vae(models["vae"], latents, folder / "vae")


def _write_text_encoder(make: Callable[[], Any], tokenizer: Any, folder: Path) -> Any:
    """Write the text encoder, and return its output for a prompt."""
    encoder = _seeded(make)
    prompt = tokenizer("a red circle", padding="max_length", return_tensors="pt").input_ids
    encoded = encoder(prompt.to(encoder.device), output_hidden_states=True)
    # SDXL-Turbo's files name the tensors of both encoders `text_model.*`. transformers 5 names only the second's so.
    tensors = encoder.half().state_dict().items()
    named = {name if name.startswith("text_") else f"text_model.{name}": tensor for name, tensor in tensors}
    _save(encoder, folder, state_dict=named)
    return encoded


def _write_unet(
    make: Callable[[], Any],
    embeds: torch.Tensor,
    conditions: Mapping[str, Any],
    scheduler: Any,
    *,
    folder: Path,
    shards: bool,
) -> torch.Tensor:
    """Write the UNet, and return the latents of a call with one step, of shape (1, 4, 64, 64)."""
    unet = _seeded(make)
    scheduler.set_timesteps(1, device=unet.device)
    step = scheduler.timesteps[0]
    noise = torch.randn(1, 4, 64, 64) * scheduler.init_noise_sigma
    with _spread(unet.conv_out, mean=0.0, deviation=1.0):
        noisy = scheduler.scale_model_input(noise, step)
        predicted = unet(noisy, step, embeds, added_cond_kwargs=conditions).sample
    # A half of its size gives three files, because a tensor is never split.
    bound = unet.half().get_memory_footprint() // 2 if shards else "10GB"
    _save(unet, folder, max_shard_size=bound)
    latents: torch.Tensor = scheduler.step(predicted, step, noise).prev_sample
    return latents


def _write_vae(make: Callable[[], Any], latents: torch.Tensor, folder: Path) -> None:
    vae = _seeded(make)
    with _spread(vae.decoder.conv_out, mean=0.0, deviation=0.4):
        picture = vae.decode(latents / vae.config.scaling_factor).sample
    _check_picture(picture)
    _save(vae, folder)


@torch.no_grad()
def _write_tiny_vae(folder: Path, shapes: Shapes, device: torch.device) -> None:
    channels = (shapes.tiny_vae,) * 4
    with device:
        vae = _seeded(lambda: AutoencoderTiny(encoder_block_out_channels=channels, decoder_block_out_channels=channels))
        # The decoder returns 2 x - 1 for its last layer's output x.
        with _spread(vae.decoder.layers[-1], mean=0.5, deviation=0.2):
            picture = vae.decode(_MOST_NOISE * torch.randn(1, 4, 64, 64)).sample
        _check_picture(picture)
        _save(vae, folder)


def _seeded(make: Callable[[], Any]) -> Any:
    """Make a model whose weights depend on no other model."""
    torch.manual_seed(0)
    return make()


def _save(model: Any, folder: Path, **options: Any) -> None:
    model.half().save_pretrained(folder, variant="fp16", **options)


@contextmanager
def _spread(last: torch.nn.Conv2d, *, mean: float, deviation: float) -> Iterator[None]:
    """Scale a network's last layer in its first run, so that each channel of its output has this mean and deviation."""

    def scale(layer: torch.nn.Conv2d, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        spread, centre = torch.std_mean(output, dim=(0, 2, 3))
        factor = deviation / spread
        assert layer.bias is not None
        layer.weight *= factor[:, None, None, None]
        layer.bias.copy_((layer.bias - centre) * factor + mean)
        return (output - centre[:, None, None]) * factor[:, None, None] + mean

    handle = last.register_forward_hook(scale)
    yield
    handle.remove()


def _check_picture(pixels: torch.Tensor) -> None:
    least = 0.05
    if not (torch.isfinite(pixels).all() and pixels.std() > least):
        raise ValueError("The output of the random weights is not a picture. Change their distribution.")


def _progress(models: Mapping[str, torch.nn.Module]) -> Callable[[str], Any]:
    """Return a context for the building of each model, which prints the part of the work that is done."""
    sizes_gb = {name: 2e-9 * sum(weights.numel() for weights in model.parameters()) for name, model in models.items()}
    total_gb = sum(sizes_gb.values())
    done_gb, began = 0.0, time.monotonic()

    @contextmanager
    def building(name: str) -> Iterator[None]:
        nonlocal done_gb
        print(f"{name}: building {sizes_gb[name]:.2f} GB", flush=True)
        yield
        done_gb += sizes_gb[name]
        elapsed_s = time.monotonic() - began
        print(f"{name}: done; {done_gb:.2f} of {total_gb:.2f} GB written after {elapsed_s:.0f} s", flush=True)

    return building


def main(arguments: Sequence[str]) -> None:
    """Build what is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.full_size", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--folder", type=Path, help="the model's folder (default in build/full-size)")
    parser.add_argument("--shards", action="store_true", help="write the UNet in three files")
    parser.add_argument("--nano", action="store_true", help="test the script: small networks")
    options = parser.parse_args(arguments)
    name = FOLDER.name + ("-shards" if options.shards else "") + ("-nano" if options.nano else "")
    folder = (options.folder or FOLDER.with_name(name)).resolve()
    build_missing(folder, shapes=NANO if options.nano else FULL, shards=options.shards)


if __name__ == "__main__":
    main(sys.argv[1:])
