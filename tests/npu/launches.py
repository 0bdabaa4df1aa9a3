"""Counts what one picture costs the host at SDXL-Turbo's size: the service beside diffusers, on the simulated NPU.

    python -m tests.npu.launches

prints the table of docs/performance.md. Weights and results are hollow: shapes without content, so nothing is computed.
"""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tests.npu.simulator import Npu, install

install()  # before diffusers is imported

import diffusers  # noqa: E402 - for that reason, as all below
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import CLIPTokenizer  # noqa: E402

from app.inference.samples import sample_pictures  # noqa: E402
from app.pipelines.base import LoadedPipelines, Mode  # noqa: E402
from app.pipelines.device import open_device  # noqa: E402
from app.pipelines.sdxl_turbo import assemble  # noqa: E402
from app.settings import Settings  # noqa: E402
from app.weights.source import DemoSource  # noqa: E402
from app.weights.store import locate  # noqa: E402
from benchmarks.full_size import FULL, make_models  # noqa: E402

SIZE = (512, 512)


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """The kernels of one call, those `hidden` inside of operators, copies between host and device, and waits."""

    launches: int
    hidden: int
    copies: int
    waits: int


def count(npu: Npu, call: Callable[[], object]) -> Count:
    """Count a call. Views and allocations are no launches; a fused operator is one."""
    counters = (npu.launches, npu.hidden, npu.copies, npu.waits)
    for counter in counters:
        counter.clear()
    call()
    return Count(
        **dict(zip(("launches", "hidden", "copies", "waits"), (sum(c.values()) for c in counters), strict=True))
    )


def hollow_pipeline(npu: Npu) -> Any:
    """Return diffusers' pipeline in SDXL-Turbo's shapes and fp16, on the simulated NPU."""
    npu.capacity_bytes = 1 << 40
    models = {}
    for name, make in make_models(FULL).items():
        with torch.device("meta"):
            model = make()
        for parameter in model.parameters():
            parameter.data = parameter.data.half()
        npu.allocates_hollow = True
        models[name] = model.eval().to_empty(device="npu")
        npu.allocates_hollow = False
    models["vae"].register_to_config(force_upcast=True)  # as SDXL-Turbo's
    folder = locate(DemoSource(), Settings().weights_dir)  # the tokens' number does not matter: there are always 77
    for name in ("tokenizer", "tokenizer_2"):
        models[name] = CLIPTokenizer.from_pretrained(str(folder / name))
    models["scheduler"] = diffusers.EulerAncestralDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing="trailing",
    )
    pipe = diffusers.StableDiffusionXLPipeline(**models, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def loaded_pipelines(npu: Npu, *, modes: Iterable[Mode] = Mode, **options: Any) -> LoadedPipelines:
    """Return the service's pipelines in SDXL-Turbo's shapes, warm in the modes, with default settings and `options`."""
    settings = Settings.model_validate({"device": "npu", "batching": "fast", "max_batch": 4, **options})
    loaded = assemble(hollow_pipeline(npu), open_device("npu"), settings, model="SDXL-Turbo")
    for mode in modes:
        for pictures in {1, loaded.warm_up_batches[-1]}:
            loaded.by_mode[mode](sample_pictures(mode, SIZE, pictures))
    loaded.on_warm()
    return loaded


def ours(npu: Npu, loaded: LoadedPipelines, mode: Mode, *, steps: int, pictures: int, cached: bool) -> Count:
    """Count one call of the service, with the device's check after it."""
    full: dict[str, Any] = {"strength": 1.0} if mode is Mode.INPAINT else {}
    batch = [
        replace(params, **full, num_inference_steps=steps, prompt=f"{params.prompt}, {steps} steps, {pictures}")
        for params in sample_pictures(mode, SIZE, pictures)
    ]
    pipeline: Any = loaded.by_mode[mode]

    def call() -> None:
        with pipeline.batch_sizes.unsplit():
            pipeline(batch)
        loaded.device.check()

    pipeline([replace(params, prompt="something else") for params in batch])  # what is made once for this kind
    if cached:
        call()
    return count(npu, call)


def theirs(npu: Npu, pipe: Any, mode: Mode, *, steps: int, pictures: int) -> Count:
    """Count one call of diffusers' own pipeline, as the model's card has it."""
    arguments: dict[str, Any] = {"width": SIZE[0], "height": SIZE[1]}
    image = Image.linear_gradient("L").resize(SIZE).convert("RGB")
    if mode is Mode.IMG2IMG:
        pipe = diffusers.AutoPipelineForImage2Image.from_pipe(pipe)
        arguments = {"image": [image] * pictures, "strength": 0.5}
    elif mode is Mode.INPAINT:
        pipe = diffusers.AutoPipelineForInpainting.from_pipe(pipe)
        mask = Image.new("L", SIZE)
        mask.paste(255, (0, 0, SIZE[0] // 2, SIZE[1]))
        arguments |= {"image": [image] * pictures, "mask_image": [mask] * pictures, "strength": 1.0}
    pipe.set_progress_bar_config(disable=True)
    prompts = [f"a cat {number}" for number in range(pictures)]
    generators = [torch.Generator("cpu").manual_seed(number) for number in range(pictures)]
    call = partial(
        pipe,
        prompts,
        num_inference_steps=steps,
        guidance_scale=0.0,
        generator=generators,
        output_type="np",
        **arguments,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # diffusers' own, about what it does itself
        return count(npu, call)


CASES: Mapping[str, tuple[Mode, int, int, bool]] = {
    "text to image, 1 step, new prompt": (Mode.TXT2IMG, 1, 1, False),
    "text to image, 1 step, cached prompt": (Mode.TXT2IMG, 1, 1, True),
    "text to image, 4 steps, new prompt": (Mode.TXT2IMG, 4, 1, False),
    "image to image, 1 of 2 steps, new prompt": (Mode.IMG2IMG, 2, 1, False),
    "image to image, 2 of 4 steps, new prompt": (Mode.IMG2IMG, 4, 1, False),
    "inpainting, 4 of 4 steps, new prompt": (Mode.INPAINT, 4, 1, False),
    "text to image, 1 step, 4 pictures, new prompts": (Mode.TXT2IMG, 1, 4, False),
    "image to image, 1 of 2 steps, 4 pictures, new prompts": (Mode.IMG2IMG, 2, 4, False),
}
"""Mode, steps, pictures, and whether the prompts are cached. diffusers caches none."""


def measure(npu: Npu, names: Iterable[str] = CASES) -> dict[str, tuple[Count, Count]]:
    """Count the cases; return diffusers' count and the service's."""
    cases = {name: CASES[name] for name in names}
    pipe = hollow_pipeline(npu)
    stock = {
        name: theirs(npu, pipe, mode, steps=steps, pictures=pictures)
        for name, (mode, steps, pictures, _) in cases.items()
    }
    loaded = loaded_pipelines(npu, modes={mode for mode, _, _, _ in cases.values()})
    return {
        name: (stock[name], ours(npu, loaded, mode, steps=steps, pictures=pictures, cached=cached))
        for name, (mode, steps, pictures, cached) in cases.items()
    }


HEAD = (
    "| one call, 512x512 | launches | with hidden ones | ratio | copies | waits |",
    "| --- | --- | --- | --- | --- | --- |",
)


def rows(counts: Mapping[str, tuple[Count, Count]]) -> Iterator[str]:
    """Yield the rows of the table."""
    for name, (stock, own) in counts.items():
        sums = [f"{one.launches + one.hidden:,}" for one in (stock, own)]
        yield (
            f"| {name} | {stock.launches:,} → {own.launches:,} | {' → '.join(sums)} "
            f"| {own.launches / stock.launches:.2f} | {stock.copies} → {own.copies} | {stock.waits} → {own.waits} |"
        )


if __name__ == "__main__":
    sys.stdout.write("\n".join([*HEAD, *rows(measure(install())), ""]))
