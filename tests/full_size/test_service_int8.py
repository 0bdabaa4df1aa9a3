"""The service with TURBO_DTYPE=int8 on the full-size model."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from app.pipelines.checkpoint import count_parameters
from app.pipelines.sdxl_turbo import NOT_IN_INT8, SPARE_INT8
from tests.conftest import opened
from tests.full_size.life import Life, assert_real
from tests.support.processor import needs_int8

pytestmark = needs_int8


@pytest.fixture(scope="module")
def int8_life(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    life = Life(tmp_path_factory.mktemp("int8"), model=model, deadline_s=600, dtype="int8")
    yield life
    life.end()


@pytest.mark.parametrize("name", ["512 px", "image to image, 512 px"])
def test_in_int8_a_picture_shows_the_same_as_in_the_default_format(
    first_life: Life, int8_life: Life, name: str
) -> None:
    (expected,), (data,) = first_life.make(name).pictures, int8_life.make(name).pictures
    assert_real(data, size=(512, 512))
    levels, other = (np.asarray(opened(file).convert("RGB"), dtype=float) for file in (expected, data))
    difference = np.abs(levels - other).mean()
    print(f"{name} in int8: {difference:.1f} levels from the default format")  # noqa: T201
    assert 0 < difference < levels.std() / 2


def test_a_start_in_int8_takes_no_more_memory_than_it_wants_to_be_free(model: Path, int8_life: Life) -> None:
    parameters = sum(count_parameters(path.parent) for path in model.glob("*/config.json"))
    peak = int8_life.start_peak_bytes
    print(f"the start in int8 took {peak / 1e9:.2f} GB for {parameters / 1e9:.2f} thousand million parameters")  # noqa: T201
    assert parameters < peak < (1 + NOT_IN_INT8) * (1 + SPARE_INT8) * parameters
