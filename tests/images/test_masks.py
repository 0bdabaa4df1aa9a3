import io

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from app.errors import InvalidImageError, TurboError
from app.images.masks import MaskReading, Paste, choose_region, decode_mask, feathered, whole_blocks
from app.images.sizes import Size
from app.settings import Settings

SETTINGS = Settings()


def file_of(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def with_box(size: tuple[int, int], box: tuple[int, int, int, int], level: int = 255) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(level, box)
    return mask


def levels(image: Image.Image) -> npt.NDArray[np.int64]:
    return np.asarray(image).astype(np.int64)


BOX = (16, 8, 40, 32)


def white_on_transparent() -> Image.Image:
    image = Image.new("RGBA", (64, 48), (0, 0, 0, 0))
    image.paste((255, 255, 255, 255), BOX)
    return image


def hole() -> Image.Image:
    image = Image.new("RGBA", (64, 48), (90, 60, 30, 255))
    image.paste((0, 0, 0, 0), BOX)
    return image


def black_on_transparent() -> Image.Image:
    image = Image.new("RGBA", (64, 48), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), BOX)
    return image


@pytest.mark.parametrize(
    ("image", "reading"),
    [
        (with_box((64, 48), BOX), MaskReading.LUMINANCE),
        (with_box((64, 48), BOX).convert("1"), MaskReading.LUMINANCE),
        (with_box((64, 48), BOX).convert("RGB"), MaskReading.OPACITY),
        (with_box((64, 48), BOX).convert("RGBA"), MaskReading.TRANSPARENCY),
        (white_on_transparent(), MaskReading.LUMINANCE),
        (hole(), MaskReading.TRANSPARENCY),
        (black_on_transparent(), MaskReading.OPACITY),
    ],
    ids=["grey", "bits", "colour", "opaque", "strokes", "hole", "black strokes"],
)
def test_a_mask_is_read_as_its_sender_means_it(image: Image.Image, reading: MaskReading) -> None:
    mask = decode_mask(file_of(image), Size(64, 48), SETTINGS, reading=reading)
    assert (levels(mask) == levels(with_box((64, 48), BOX))).all()


def test_a_transparent_colour_of_a_png_without_alpha_is_transparent() -> None:
    image = Image.new("RGB", (64, 48), "red")
    image.paste("blue", BOX)
    mask = decode_mask(
        file_of(image, transparency=(0, 0, 255)), Size(64, 48), SETTINGS, reading=MaskReading.TRANSPARENCY
    )
    assert (levels(mask) == levels(with_box((64, 48), BOX))).all()


def test_a_mask_of_another_size_is_scaled_and_one_of_another_aspect_is_rejected() -> None:
    small = with_box((32, 24), (8, 4, 20, 16))
    assert decode_mask(file_of(small), Size(64, 48), SETTINGS).getbbox() == pytest.approx(BOX, abs=2)
    with pytest.raises(InvalidImageError, match="32x24 pixels, and the picture has 64x64") as error:
        decode_mask(file_of(small), Size(64, 64), SETTINGS)
    assert error.value.param == "mask"


def test_a_mask_that_is_no_picture_names_the_mask() -> None:
    with pytest.raises(TurboError) as error:
        decode_mask(b"GIF89a", Size(64, 64), SETTINGS)
    assert error.value.param == "mask"


def test_levels_near_black_and_white_are_black_and_white_and_grey_is_kept() -> None:
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    read = levels(decode_mask(file_of(grey), Size(16, 16), SETTINGS)).ravel()
    assert (read[:8] == 0).all()
    assert (read[248:] == 255).all()
    assert (read[8:248] == np.arange(8, 248)).all()


@given(
    left=st.integers(0, 90),
    top=st.integers(0, 60),
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    feather=st.integers(0, 40),
    grey=st.integers(8, 255),
)
def test_a_soft_edge_keeps_the_mask_and_ends_within_its_width(  # noqa: PLR0917 - Hypothesis gives them by name
    left: int, top: int, width: int, height: int, feather: int, grey: int
) -> None:
    size = (100, 70)
    mask = with_box(size, (left, top, min(100, left + width), min(70, top + height)), grey)
    soft = levels(feathered(mask, feather))
    assert (soft >= levels(mask)).all()
    assert soft.max() == grey
    beyond = np.ones(size[::-1], bool)
    beyond[max(0, top - feather) : top + height + feather, max(0, left - feather) : left + width + feather] = False
    assert not soft[beyond].any()


def test_a_soft_edge_falls_without_a_step() -> None:
    row = levels(feathered(with_box((200, 9), (0, 0, 100, 9)), 32))[4, 100:]
    assert (np.diff(row) <= 0).all()
    assert np.abs(np.diff(row)).max() <= 16
    assert 100 <= row[16] <= 155


@given(
    box=st.tuples(st.integers(0, 300), st.integers(0, 200), st.integers(1, 100), st.integers(1, 100)),
    margin=st.integers(0, 200),
    aspect=st.none() | st.floats(0.25, 4),
)
def test_a_region_has_the_masked_part_and_its_margin_and_lies_in_the_picture(
    box: tuple[int, int, int, int], margin: int, aspect: float | None
) -> None:
    left, top, width, height = box
    mask = with_box((400, 300), (left, top, min(400, left + width), min(300, top + height)))
    region = choose_region(mask, margin=margin, aspect=aspect)
    drawn = mask.getbbox()
    assert drawn is not None
    assert 0 <= region[0] <= max(0, drawn[0] - margin)
    assert 0 <= region[1] <= max(0, drawn[1] - margin)
    assert 400 >= region[2] >= min(400, drawn[2] + margin)
    assert 300 >= region[3] >= min(300, drawn[3] + margin)
    assert min(region[2] - region[0], region[3] - region[1]) >= 64


def test_a_region_has_the_aspect_that_is_drawn_where_the_picture_has_room() -> None:
    left, top, right, bottom = choose_region(with_box((900, 900), (400, 400, 500, 500)), margin=0, aspect=2)
    assert (right - left, bottom - top) == (200, 100)
    assert (left + right) / 2 == 450
    left, top, right, bottom = choose_region(with_box((900, 900), (0, 880, 400, 884)), margin=0, aspect=None)
    assert (right - left, bottom - top) == (400, 100)
    assert bottom == 900


def test_a_black_mask_is_rejected() -> None:
    with pytest.raises(InvalidImageError, match="nothing would be drawn"):
        choose_region(Image.new("L", (64, 64)), margin=0, aspect=None)


@pytest.mark.parametrize("scale", [1, 4])
def test_every_block_that_the_mask_touches_is_drawn_and_no_other(scale: int) -> None:
    mask = Image.new("L", (64 * scale, 64 * scale))
    mask.paste(9, (7 * scale, 16 * scale, 8 * scale, 17 * scale))
    drawn = levels(whole_blocks(mask, Size(64, 64)))
    expected = np.zeros((64, 64))
    expected[16:24, 0:8] = 255
    assert (drawn == expected).all()


def noise(size: tuple[int, int], seed: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


@pytest.mark.parametrize("feather", [0, 5, 16])
def test_pasting_keeps_every_pixel_beyond_the_soft_edge_and_replaces_what_is_white(feather: int) -> None:
    onto, mask = noise((300, 200), 1), with_box((300, 200), (80, 60, 180, 120))
    paste = Paste.of(onto, mask, (40, 30, 240, 170), feather=feather)
    drawn = noise((200, 140), 2)
    before = onto.copy()
    pasted = paste(drawn)
    assert (pasted[60:120, 80:180] == drawn[30:90, 40:140]).all()
    beyond = np.ones((200, 300), bool)
    beyond[60 - feather : 120 + feather, 80 - feather : 180 + feather] = False
    assert (pasted[beyond] == before[beyond]).all()
    assert (onto == before).all()


def test_grey_blends_the_drawn_part_with_the_picture() -> None:
    onto, mask = np.full((64, 64, 3), 100, np.uint8), with_box((64, 64), (16, 16, 48, 48), 128)
    pasted = Paste.of(onto, mask, (0, 0, 64, 64), feather=0)(np.full((64, 64, 3), 200, np.uint8))
    assert (pasted[16:48, 16:48] == 150).all()


def test_a_drawn_region_is_scaled_to_the_picture_s_own_resolution() -> None:
    onto, mask = noise((400, 400), 1), with_box((400, 400), (100, 100, 300, 300))
    pasted = Paste.of(onto, mask, (100, 100, 300, 300), feather=0)(np.full((64, 64, 3), 77, np.uint8))
    assert pasted.shape == (400, 400, 3)
    assert (pasted[100:300, 100:300] == 77).all()


@given(
    marks=st.lists(st.tuples(st.integers(0, 999), st.integers(0, 699)), min_size=1, max_size=4),
    size=st.sampled_from([Size(64, 64), Size(512, 360), Size(1504, 1000)]),
)
def test_no_pixel_of_a_mask_is_lost_whatever_the_size_to_draw_at(marks: list[tuple[int, int]], size: Size) -> None:
    mask = Image.new("L", (1000, 700))
    for mark in marks:
        mask.putpixel(mark, 9)
    drawn = levels(whole_blocks(mask, size))
    for x, y in marks:
        assert drawn[int((y + 0.5) * size.height / 700), int((x + 0.5) * size.width / 1000)] == 255
