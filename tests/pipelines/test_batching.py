"""The same request gives the same picture, alone and in any company."""

import dataclasses
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from app.errors import DeviceOutOfMemoryError
from app.images.sizes import Size
from app.inference.batching_lock import BatchingLock
from app.inference.registry import PipelineRegistry
from app.modes.img2img import Img2ImgParams
from app.modes.inpaint import Area, Fill, InpaintParams
from app.modes.txt2img import Txt2ImgParams
from app.pipelines.base import GenerationParams, LoadedPipelines, Mode
from app.pipelines.batch_sizes import BatchSizes
from app.pipelines.sdxl_turbo import load_sdxl_turbo
from app.settings import Settings
from tests.support.processor import needs_int8

SIDES = (64, 72, 80, 96)
"""Multiples of 8 that are multiples of what the UNet halves its sides by, and that are not."""

ONE_MODE_OR_ALL = [
    Mode.TXT2IMG,
    *(pytest.param(mode, marks=[pytest.mark.long, pytest.mark.only_long]) for mode in Mode if mode is not Mode.TXT2IMG),
]
"""Text to image; with --long all modes. The bytes of a batch are compared in every mode, in fp32."""

SAME_NOISE = 256
"""At a multiple of so many pixels, a seed gives nearly the same noise in bf16 as in fp32. At others torch draws other
numbers, because it draws latents in groups of 16."""


def load(folder: Path, **options: Any) -> LoadedPipelines:
    return load_sdxl_turbo(folder, Settings(device="cpu", **options), model="tiny")


@pytest.fixture(scope="module")
def exact(tiny_folder: Path) -> LoadedPipelines:
    return load(tiny_folder)


def pixels(pipelines: LoadedPipelines, batch: Sequence[GenerationParams]) -> list[Any]:
    return [made.pixels for made in pipelines.by_mode[batch[0].mode](batch)]


def random_batch(mode: Mode, chance: random.Random) -> list[GenerationParams]:
    """Two to eight pictures of one kind, of prompts of all lengths."""
    width, height, steps = chance.choice(SIDES), chance.choice(SIDES), chance.randint(1, 4)
    strength = chance.choice([strength for strength in (0.3, 0.5, 0.7, 1.0) if steps * strength >= 1])
    batch: list[GenerationParams] = []
    for _ in range(chance.randint(2, 8)):
        prompt = "".join(chance.choices("abcdefgh ", k=chance.choice((0, 3, 20, 90))))
        seed = chance.randrange(1 << 32)
        if mode is Mode.TXT2IMG:
            batch.append(Txt2ImgParams(prompt=prompt, seed=seed, num_inference_steps=steps, width=width, height=height))
            continue
        start = Image.effect_noise((width, height), chance.randint(1, 100)).convert("RGB")
        fields: dict[str, Any] = {"prompt": prompt, "seed": seed, "num_inference_steps": steps, "strength": strength}
        if mode is Mode.IMG2IMG:
            batch.append(Img2ImgParams(image=start, **fields))
        else:
            fill: Fill = chance.choice(("original", "noise"))
            batch.append(InpaintParams(area=random_area(start, chance), fill=fill, **fields))
    return batch


def random_area(picture: Image.Image, chance: random.Random) -> Area:
    """A rectangle of the picture to draw; often only that and its surroundings are drawn, at the picture's size."""
    mask, size = Image.new("L", picture.size), Size(*picture.size)
    (left, right), (top, bottom) = (sorted(chance.sample(range(side + 1), 2)) for side in picture.size)
    mask.paste(255, (left, top, right, bottom))
    padding = chance.choice((None, 0, 16))
    return Area.of(
        np.asarray(picture), mask, size, feather=chance.choice((0, 8)), padding=padding, max_pixels=size.pixels
    )


@pytest.mark.long
@pytest.mark.usefixtures("any_batch_pays")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("mode", list(Mode))
def test_in_many_random_mixes_every_picture_has_the_bytes_that_it_has_alone(
    exact: LoadedPipelines, mode: Mode, threads: int, rounds: Callable[[int, int], int]
) -> None:
    chance = random.Random(f"{mode}{threads}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(rounds(3, 100)):
            batch = random_batch(mode, chance)
            together = pixels(exact, batch)
            for params, picture in zip(batch, together, strict=True):
                assert np.array_equal(picture, pixels(exact, [params])[0]), params
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("any_batch_pays")
@pytest.mark.parametrize("dtype", ["bf16", pytest.param("int8", marks=needs_int8)])
@pytest.mark.parametrize("mode", ONE_MODE_OR_ALL)
def test_in_other_number_formats_a_picture_has_the_same_bytes_in_a_batch_too_and_shows_the_same(
    exact: LoadedPipelines, tiny_folder: Path, mode: Mode, dtype: str
) -> None:
    chance, other, compared = random.Random(6), load(tiny_folder, dtype=dtype), 0
    for _ in range(3):
        batch = random_batch(mode, chance)
        for params, picture in zip(batch, pixels(other, batch), strict=True):
            assert np.array_equal(picture, pixels(other, [params])[0]), params
            if params.width * params.height % SAME_NOISE == 0:
                difference = np.abs(picture.astype(int) - pixels(exact, [params])[0])
                assert 0 < difference.mean() < 8
                compared += 1
    assert compared > 1


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "AVX2", reason="this processor has no AVX512, so other tests show it"
)
def test_the_bytes_are_the_same_where_the_processor_has_no_avx512(tiny_folder: Path) -> None:
    """MKL has other kernels there, which round by the batch at other shapes; it reads this variable when it starts."""
    code = f"""
import random
from pathlib import Path
from app.pipelines.base import Mode
from app.pipelines.batch_sizes import BatchSizes
from tests.pipelines.test_batching import load, pixels, random_batch
BatchSizes.limit = lambda self, key: max(self._allowed(key))
pipelines, chance = load(Path({str(tiny_folder)!r})), random.Random(5)
for _ in range(6):
    batch = random_batch(Mode.TXT2IMG, chance)
    for params, picture in zip(batch, pixels(pipelines, batch), strict=True):
        assert (picture == pixels(pipelines, [params])[0]).all()
print(pipelines.by_mode[Mode.TXT2IMG].batch_limit(batch[0].batch_key))
"""
    environment = {**os.environ, "MKL_ENABLE_INSTRUCTIONS": "AVX2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "8", "and not because they are made one by one"


@pytest.mark.usefixtures("any_batch_pays")
@pytest.mark.parametrize("mode", list(Mode))
def test_a_batch_goes_through_the_unet_at_once_and_off_makes_one_at_a_time(tiny_folder: Path, mode: Mode) -> None:
    """Else the same bytes would be no feat."""
    batch = random_batch(mode, random.Random(2))
    assert _samples(load(tiny_folder), batch) == [len(batch)] * batch[0].effective_steps
    assert _samples(load(tiny_folder, batching="off"), batch) == [1] * batch[0].effective_steps * len(batch)


@pytest.mark.parametrize("must_be_exact", [False, True])
async def test_while_warming_up_every_size_goes_through_the_unet_at_once(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, must_be_exact: bool
) -> None:
    """As on an accelerator: graphs are compiled for what is made then, and batches are compared."""
    sizes = BatchSizes([1, 2, 4], must_be_exact=must_be_exact)
    monkeypatch.setattr("app.pipelines.sdxl_turbo._choose_batch_sizes", lambda *_: sizes)
    given: list[int] = []

    def load_as_on_an_accelerator() -> LoadedPipelines:
        loaded = dataclasses.replace(load(tiny_folder), warm_up_batches=(1, 2, 4))
        _count(loaded.by_mode[Mode.TXT2IMG], given)
        return loaded

    lock = BatchingLock(hang_limit_s=60)
    async with PipelineRegistry(load_as_on_an_accelerator, lock, warm_up_sizes=[(64, 64)]) as registry:
        assert {1, 2, 4} == set(given)
        assert all(sizes.allows(kind(64).batch_key, size) for size in (1, 2, 4))
        assert registry.loaded.by_mode[Mode.TXT2IMG].batch_limit(kind(64).batch_key) in (2, 4), "larger ones are tried"


def _samples(pipelines: LoadedPipelines, batch: Sequence[GenerationParams]) -> list[int]:
    """How many samples each call of the UNet is given."""
    given: list[int] = []
    pipeline: Any = pipelines.by_mode[batch[0].mode]
    _count(pipeline, given)
    pipeline(batch)
    return given


def _count(pipeline: Any, given: list[int]) -> None:
    """Have each call of the UNet append its number of samples to `given`."""
    predict_noise = pipeline.networks.predict_noise  # what is called is what is looked at

    def count(latents: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        given.append(len(latents))
        noise: torch.Tensor = predict_noise(latents, *others)
        return noise

    object.__setattr__(pipeline.networks, "predict_noise", count)


@pytest.mark.usefixtures("any_batch_pays")
@pytest.mark.parametrize("mode", ONE_MODE_OR_ALL)
def test_fast_is_within_one_level_of_what_is_made_alone(exact: LoadedPipelines, tiny_folder: Path, mode: Mode) -> None:
    fast = load(tiny_folder, batching="fast")
    chance = random.Random(3)
    differences = 0
    for _ in range(10):
        batch = random_batch(mode, chance)
        for params, picture in zip(batch, pixels(fast, batch), strict=True):
            difference = np.abs(picture.astype(int) - pixels(exact, [params])[0])
            assert difference.max() <= 1
            differences += int(difference.sum())
    assert differences, "there would be no need of exact"


@pytest.mark.usefixtures("any_batch_pays")
def test_fast_in_bf16_makes_a_batch_at_once_and_pictures_that_show_the_same(tiny_folder: Path) -> None:
    fast, chance = load(tiny_folder, batching="fast", dtype="bf16"), random.Random(8)
    for mode in Mode:
        batch = random_batch(mode, chance)
        assert _samples(fast, batch) == [len(batch)] * batch[0].effective_steps
        for params, picture in zip(batch, pixels(fast, batch), strict=True):
            assert np.abs(picture.astype(int) - pixels(fast, [params])[0]).mean() < 1


@pytest.mark.usefixtures("any_batch_pays")
def test_where_a_batch_changes_pictures_exact_makes_them_one_by_one(
    exact: LoadedPipelines, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a processor whose libraries round otherwise: the first batch of a shape finds it."""
    monkeypatch.setattr("app.pipelines.networks.exact.COMPARED", frozenset())
    monkeypatch.setattr("app.pipelines.networks.exact.BY_SAMPLE", {})
    other, batch = load(tiny_folder), [kind(64)] * 3
    for _ in range(2):
        assert np.array_equal(pixels(other, batch), pixels(exact, batch[:1]) * 3)
    assert caplog.text.count("3 pictures at once change each other") == 1


def kind(width: int, *, height: int = 64, steps: int = 1) -> Txt2ImgParams:
    return Txt2ImgParams(prompt="", seed=0, num_inference_steps=steps, width=width, height=height)


class Sizes(BatchSizes):
    """Learns from calls whose seconds are stated: two of each size, as the first is no measurement."""

    def __init__(self, sizes: Collection[int], *, must_be_exact: bool = False) -> None:
        super().__init__(sizes, must_be_exact=must_be_exact)
        self.warming = False

    def take(self, params: Txt2ImgParams, pictures: int, each_s: float) -> None:
        for _ in range(2):
            self.measure(params.batch_key, pictures, pictures * each_s)

    def worth(self, params: Txt2ImgParams) -> int:
        return self.limit(params.batch_key)


def test_a_batch_is_cut_into_the_largest_sizes_that_were_found_to_change_nothing() -> None:
    sizes = Sizes([1, 2, 4, 8], must_be_exact=True)
    for pictures in (2, 8):
        sizes.learn(kind(64).batch_key, pictures)
    sizes.take(kind(64, steps=3), 1, 0.2)
    sizes.take(kind(64, steps=3), 2, 0.1)
    assert [len(part) for part in sizes.split([kind(64, steps=3)] * 13)] == [8, 2, 2, 1]
    assert [len(part) for part in sizes.split([kind(72)] * 3)] == [1, 1, 1]
    assert (sizes.worth(kind(64, steps=3)), sizes.worth(kind(72))) == (8, 1)


def test_larger_batches_are_tried_one_after_another_as_long_as_they_pay() -> None:
    sizes = Sizes(range(1, 9))
    assert sizes.worth(kind(64)) == 2, "nothing is known: try the smallest"
    sizes.measure(kind(64).batch_key, 2, 9.0)
    assert sizes.worth(kind(64)) == 2, "the first call of a size may compile"
    sizes.take(kind(64), 1, 1.0)
    sizes.take(kind(64), 2, 0.8)
    assert sizes.worth(kind(64)) == 4
    sizes.take(kind(64), 4, 0.78)
    assert sizes.worth(kind(64)) == 2, "4 save less than a twentieth"
    assert [len(part) for part in sizes.split([kind(64)] * 5)] == [2, 2, 1]


def test_a_size_is_compared_with_the_smaller_one_before_it_stays() -> None:
    sizes = Sizes(range(1, 9))
    sizes.take(kind(64), 2, 1.0)
    assert sizes.worth(kind(64)) == 1, "two may take longer than one does twice"
    sizes.take(kind(64), 1, 0.9)
    assert sizes.worth(kind(64)) == 1


def test_only_the_newest_calls_count() -> None:
    sizes = Sizes(range(1, 9))
    sizes.take(kind(64), 1, 1.0)
    sizes.take(kind(64), 2, 0.8)
    for _ in range(4):
        sizes.take(kind(64), 2, 1.5)
    assert sizes.worth(kind(64)) == 1, "the machine has become another"


def test_of_many_kinds_the_one_that_was_not_made_for_longest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.pipelines.batch_sizes._MAX_KINDS", 2)
    sizes = Sizes(range(1, 9))
    for width in (64, 128, 64, 192):
        sizes.take(kind(width), 1, 1.0)
        sizes.take(kind(width), 2, 1.0)
    assert [sizes.worth(kind(width)) for width in (64, 128, 192)] == [1, 2, 1]


def test_while_a_size_is_measured_batches_of_it_are_not_split() -> None:
    sizes = Sizes(range(1, 9))
    sizes.take(kind(64), 1, 1.0)
    sizes.take(kind(64), 2, 1.0)
    with sizes.unsplit():
        assert [len(part) for part in sizes.split([kind(64)] * 8)] == [8]
    assert [len(part) for part in sizes.split([kind(64)] * 2)] == [1, 1]


def test_what_pays_is_learned_for_each_size_and_number_of_steps() -> None:
    sizes = Sizes(range(1, 9))
    sizes.take(kind(64), 1, 1.0)
    sizes.take(kind(64), 2, 1.0)
    assert [sizes.worth(other) for other in (kind(64), kind(128), kind(64, steps=4))] == [1, 2, 2]


def test_three_pictures_tell_what_two_take_and_one_busy_moment_decides_nothing() -> None:
    sizes = Sizes(range(1, 9))
    sizes.take(kind(64), 1, 1.0)
    sizes.take(kind(64), 3, 0.5)
    sizes.measure(kind(64).batch_key, 2, 100.0)
    assert sizes.worth(kind(64)) == 4


def test_the_first_batch_of_each_number_of_pictures_is_no_measurement() -> None:
    """On a CPU it computes each layer twice."""
    sizes = Sizes(range(1, 33))
    for pictures in (1, 2, 4, 8):
        sizes.take(kind(64), pictures, 1 / pictures)
    assert sizes.worth(kind(64)) == 16
    for pictures in range(9, 16):
        sizes.measure(kind(64).batch_key, pictures, 9.0 * pictures)
    assert sizes.worth(kind(64)) == 16


def test_a_batch_that_the_device_has_no_memory_for_is_not_tried_again_at_once(tiny_folder: Path) -> None:
    pipelines = load(tiny_folder)
    pipelines.on_warm()
    pipeline: Any = pipelines.by_mode[Mode.TXT2IMG]
    object.__setattr__(pipeline.networks, "predict_noise", _no_memory)
    assert pipeline.batch_limit(kind(64).batch_key) == 2
    for _ in range(2):
        with pytest.raises(DeviceOutOfMemoryError):
            pipeline([kind(64)] * 2)
        with pytest.raises(DeviceOutOfMemoryError):
            pipeline([kind(64)])
        assert pipeline.batch_limit(kind(64).batch_key) == 1


def _no_memory(*_: object) -> torch.Tensor:
    raise MemoryError


def test_a_size_that_did_not_pay_is_tried_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = Sizes(range(1, 9))
    sizes.take(kind(64), 1, 1.0)
    sizes.take(kind(64), 2, 1.0)
    sizes.take(kind(128), 1, 1.0)
    sizes.take(kind(128), 2, 0.5)
    sizes.take(kind(128), 4, 0.3)
    later = time.monotonic() + 601
    monkeypatch.setattr(time, "monotonic", lambda: later)
    for size in (1, 2):  # and each smaller one that paid before: it was compared with what is old now
        assert sizes.worth(kind(128)) == size
        sizes.take(kind(128), size, 1 / size)
    assert sizes.worth(kind(128)) == 8
    sizes.take(kind(64), 1, 1.0)
    assert sizes.worth(kind(64)) == 2


def test_a_real_pipeline_measures_its_calls(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[int, float]] = []
    monkeypatch.setattr(BatchSizes, "measure", lambda _self, _key, pictures, s: measured.append((pictures, s)))
    pipelines = load(tiny_folder)
    pipelines.on_warm()
    pixels(pipelines, [kind(64)] * 3)
    assert [pictures for pictures, _ in measured] == [2, 1], "two are tried at first"
    assert all(0 < seconds < 10 for _, seconds in measured)
