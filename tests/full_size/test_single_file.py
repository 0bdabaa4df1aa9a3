"""The full-size model as a single file, and its memory and time beside the folder's."""

import time
from pathlib import Path

import pytest

from tests.full_size.life import Life
from tests.support.single_file import write_single_file


@pytest.fixture(scope="module")
def single(model: Path, disk: Path) -> Path:
    return write_single_file(model, disk / "sdxl-turbo.safetensors")


def test_a_single_file_gives_the_folder_s_picture_and_takes_no_second_copy_of_the_unet(
    single: Path, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The configs and the vocabulary are those of the package."""
    made, peaks = [], []
    for name, place in (("folder", model), ("file", single)):
        began = time.monotonic()
        life = Life(tmp_path_factory.mktemp(name), model=place, deadline_s=1200)
        seconds = time.monotonic() - began
        made.append(life.make("256 px").pictures)
        peaks.append(life.start_peak_bytes)
        life.end()
        print(f"the {name}: started in {seconds:.0f} s with {peaks[-1] / 1e9:.2f} GB")  # noqa: T201
    assert made[0] == made[1]
    assert peaks[1] < peaks[0] + 0.5e9
