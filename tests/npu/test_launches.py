"""The launch budget: what one picture of SDXL-Turbo's size costs the host, beside diffusers."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.npu.launches import CASES, HEAD, Count, measure, rows
from tests.npu.simulator import install

GUIDE = Path(__file__).parents[2] / "docs" / "performance.md"


NEW, CACHED = "text to image, 1 step, new prompt", "text to image, 1 step, cached prompt"


@pytest.fixture(scope="module")
def counts(request: pytest.FixtureRequest) -> Mapping[str, tuple[Count, Count]]:
    """The counts of text to image; with --long, of all cases."""
    hardware = install()
    hardware.heal()
    return measure(hardware, CASES if request.config.getoption("--long") else (NEW, CACHED))


# make test-long runs these again, with all cases.
pytestmark = pytest.mark.long


@pytest.mark.parametrize(
    ("case", "most"),
    [(NEW, 0.6), (CACHED, 0.45)],
)
def test_a_picture_takes_far_fewer_launches_than_with_diffusers(
    counts: Mapping[str, tuple[Count, Count]], case: str, most: float
) -> None:
    stock, own = counts[case]
    assert own.launches <= most * stock.launches
    assert own.launches + own.hidden <= most * (stock.launches + stock.hidden)


def test_the_host_waits_once_for_a_call_s_pictures_and_the_device_s_check(
    counts: Mapping[str, tuple[Count, Count]],
) -> None:
    assert {own.waits for _, own in counts.values()} == {1}


def test_the_guide_has_the_counts(counts: Mapping[str, tuple[Count, Count]]) -> None:
    """`python -m tests.npu.launches` prints its table."""
    guide = GUIDE.read_text(encoding="utf-8").splitlines()
    table = guide[guide.index(HEAD[0]) : guide.index(HEAD[0]) + len(HEAD) + len(CASES)]
    counted = [*HEAD, *rows(counts)]
    assert [line for line in table if line in counted] == counted
