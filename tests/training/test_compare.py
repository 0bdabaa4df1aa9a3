"""The comparison of number formats: what it counts, and the demo model in bf16 beside fp32."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import app.weights
from training.compare import Differences, compare

DEMO = Path(app.weights.__file__).parent / "demo"
GREY = np.full((10, 10, 3), 100, np.uint8)


def picture(*, changes: dict[tuple[int, int], tuple[int, int, int]]) -> Image.Image:
    pixels = GREY.copy()
    for place, colour in changes.items():
        pixels[place] = colour
    return Image.fromarray(pixels)


def test_equal_pictures_differ_nowhere() -> None:
    differences = Differences()
    differences.add(picture(changes={}), picture(changes={}), right=True, other_right=True)
    assert differences.cells == ["0", "0.00", "0", "0", "0.00 %", "0.00 %", "inf dB", "inf dB", "0 / 0"]


def test_a_pixel_counts_by_its_largest_difference_and_a_value_by_its_own() -> None:
    differences = Differences()
    changed = {(0, 0): (102, 100, 100), (0, 1): (97, 103, 100), (0, 2): (109, 91, 100)}
    differences.add(picture(changes={}), picture(changes=changed), right=True, other_right=True)
    psnr_db = f"{10 * math.log10(255**2 / ((4 + 9 + 9 + 81 + 81) / 300)):.1f} dB"
    assert differences.cells == ["0", "0.09", "3", "9", "2.00 %", "1.00 %", psnr_db, psnr_db, "0 / 0"]


def test_all_pairs_count_and_the_worst_is_shown() -> None:
    differences = Differences()
    for shift in (0, 1, 1, 4):
        shifted = Image.fromarray(GREY + np.uint8(shift))
        differences.add(Image.fromarray(GREY), shifted, right=shift > 0, other_right=shift < 4)
    assert differences.cells == ["1", "1.50", "4", "4", "25.00 %", "0.00 %", "48.1 dB", "36.1 dB", "1 / 1"]


@pytest.mark.long
@pytest.mark.only_long
def test_bf16_changes_every_kind_of_picture_a_little_in_each_part_of_the_model(
    capsys: pytest.CaptureFixture[str],
) -> None:
    compare(DEMO, "bf16", captions={"shape": 1})
    _, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [row[1] for row in rows] == 3 * [
        "all in bf16",
        "VAE in fp32, the rest in bf16",
        "VAE in bf16, the rest in fp32",
    ]
    assert len({row[0] for row in rows}) == 3
    for row in rows:
        assert 0 < float(row[3]) < 3, row
    for whole, *parts in (rows[:3], rows[3:6], rows[6:]):
        assert all(part[2:] != whole[2:] for part in parts)
