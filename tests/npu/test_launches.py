"""The launch budget: what one picture of SDXL-Turbo's size costs the host, beside diffusers."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.npu.launches import CASES, Count, measure, rows
from tests.npu.simulator import install

GUIDE = Path(__file__).parents[2] / "docs" / "performance.md"


@pytest.fixture(scope="module")
def counts() -> Mapping[str, tuple[Count, Count]]:
    hardware = install()
    hardware.heal()
    return measure(hardware)


@pytest.mark.parametrize(
    ("case", "most"),
    [("text to image, 1 step, new prompt", 0.6), ("text to image, 1 step, cached prompt", 0.45)],
)
def test_a_picture_takes_far_fewer_launches_than_with_diffusers(
    counts: Mapping[str, tuple[Count, Count]], case: str, most: float
) -> None:
    stock, own = counts[case]
    assert own.launches <= most * stock.launches
    assert own.launches + own.hidden <= most * (stock.launches + stock.hidden)


@pytest.mark.parametrize("case", CASES)
def test_the_host_waits_once_for_a_call_s_pictures_and_the_device_s_check(
    counts: Mapping[str, tuple[Count, Count]], case: str
) -> None:
    _, own = counts[case]
    assert own.waits == 1


def test_the_guide_has_the_table(counts: Mapping[str, tuple[Count, Count]]) -> None:
    """`python -m tests.npu.launches` prints it."""
    assert "\n".join(rows(counts)) in GUIDE.read_text(encoding="utf-8")
