import io
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from app.images.png import encode_png
from tests.conftest import PNG_MAGIC, opened

Pixels = npt.NDArray[np.uint8]
Kind = Callable[[int, int], Pixels]

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))
DEMO = Path(__file__).parents[2] / "docs" / "demo.png"


def decoded(data: bytes) -> Pixels:
    """The pixels as Pillow reads them."""
    image = opened(data)
    assert image.format == "PNG"
    assert image.mode == "RGB"
    return np.asarray(image)


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and contents, read by the letter of the specification."""
    file = io.BytesIO(data)
    assert file.read(8) == PNG_MAGIC
    while header := file.read(8):
        length, name = struct.unpack(">I4s", header)
        content = file.read(length)
        assert len(content) == length
        assert struct.unpack(">I", file.read(4)) == (zlib.crc32(name + content),)
        yield name, content


def stream(data: bytes) -> bytes:
    return b"".join(content for name, content in chunks(data) if name == b"IDAT")


def filter_types(data: bytes, pixels: Pixels) -> set[int]:
    rows = np.frombuffer(zlib.decompress(stream(data)), np.uint8).reshape(len(pixels), -1)
    return set(rows[:, 0].tolist())


def noise(height: int, width: int, *, deviation: float = 80) -> Pixels:
    values = np.random.default_rng(0).normal(128, deviation, (height, width, 3))
    return values.clip(0, 255).astype(np.uint8)


def constant(height: int, width: int) -> Pixels:
    return np.full((height, width, 3), (30, 200, 7), np.uint8)


def gradient(height: int, width: int) -> Pixels:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x, y, x + y], axis=-1).astype(np.uint8)


def drawing(height: int, width: int) -> Pixels:
    """Shapes with smooth edges."""
    image = Image.new("RGB", (4 * width, 4 * height), "steelblue")
    draw = ImageDraw.Draw(image)
    draw.ellipse((width, height, 3 * width, 2 * height), fill="gold")
    draw.polygon([(0, 4 * height), (4 * width, 3 * height), (2 * width, 2 * height)], fill="darkgreen")
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))


def grain(height: int, width: int) -> Pixels:
    """Soft areas under film grain, as photographs have."""
    y, x = np.mgrid[0:height, 0:width]
    areas = np.stack([np.sin(x / 50 + phase) + np.cos(y / 70) for phase in range(3)], axis=-1)
    values = 128 + 50 * areas + np.random.default_rng(1).normal(0, 2, areas.shape)
    return values.clip(0, 255).astype(np.uint8)


def demo_pictures() -> list[Pixels]:
    """The twelve pictures of the demo model on its sheet: flat shapes with soft edges."""
    sheet = np.asarray(Image.open(DEMO).convert("RGB"))
    return [sheet[y : y + 256, x : x + 256] for y in (0, 318, 636) for x in (0, 256, 512, 768)]


KINDS: list[Kind] = [noise, constant, gradient, drawing, grain]


@given(pixels=arrays.arrays(np.uint8, SHAPES))
def test_the_pixels_come_back(pixels: Pixels) -> None:
    assert np.array_equal(decoded(encode_png(pixels)), pixels)


@given(
    values=st.lists(st.sampled_from([0, 1, 2, 127, 128, 254, 255]), min_size=1, max_size=3),
    shape=SHAPES,
    data=st.data(),
)
def test_the_pixels_come_back_where_neighbours_are_equal_or_extreme(
    values: list[int], shape: tuple[int, int, int], data: st.DataObject
) -> None:
    pixels = data.draw(arrays.arrays(np.uint8, shape, elements=st.sampled_from(values)))
    assert np.array_equal(decoded(encode_png(pixels)), pixels)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 2), (63, 65), (512, 512), (513, 511), (64, 2048)])
def test_every_kind_of_picture_comes_back_at_every_size(kind: Kind, size: tuple[int, int]) -> None:
    pixels = kind(*size)
    assert np.array_equal(decoded(encode_png(pixels)), pixels)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10)
@given(height=st.integers(64, 600), width=st.integers(64, 600))
def test_every_kind_of_picture_comes_back_at_any_size(kind: Kind, height: int, width: int) -> None:
    pixels = kind(height, width)
    assert np.array_equal(decoded(encode_png(pixels)), pixels)


@pytest.mark.parametrize("kind", [grain, drawing])
@pytest.mark.parametrize("size", [(2048, 2048), (1, 100_000), (5, 60_000)])
def test_large_and_very_wide_pictures_come_back(kind: Kind, size: tuple[int, int]) -> None:
    pixels = kind(*size)
    assert np.array_equal(decoded(encode_png(pixels)), pixels)


def test_pixels_need_not_be_contiguous() -> None:
    pixels = grain(128, 96)
    for view in (pixels[::-1], pixels[:, ::2], pixels[5:90, 7:50], pixels.transpose(1, 0, 2), pixels[:, :, ::-1]):
        assert encode_png(view) == encode_png(np.ascontiguousarray(view))
        assert np.array_equal(decoded(encode_png(view)), view)


def test_pixels_are_left_as_they_were_and_may_be_read_only() -> None:
    pixels = grain(64, 64)
    before = pixels.copy()
    pixels.flags.writeable = False
    encode_png(pixels)
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (8, 8, 4), (3, 8, 8), (1, 8, 8, 3), (8,), ()])
def test_pixels_of_another_shape_are_refused_with_that_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape") as refused:
        encode_png(np.zeros(shape, np.uint8))
    assert str(shape) in str(refused.value)


@pytest.mark.parametrize("dtype", ["int8", "uint16", "float32", "bool"])
def test_pixels_of_another_type_are_refused_with_that_type(dtype: str) -> None:
    with pytest.raises(ValueError, match=f"uint8, not {dtype}"):
        encode_png(np.zeros((8, 8, 3), dtype))


@pytest.mark.parametrize(("shape", "size"), [((0, 8, 3), "8x0"), ((8, 0, 3), "0x8"), ((0, 0, 3), "0x0")])
def test_an_empty_picture_is_refused_with_its_size(shape: tuple[int, ...], size: str) -> None:
    with pytest.raises(ValueError, match=size):
        encode_png(np.zeros(shape, np.uint8))


def test_a_side_that_the_format_has_no_room_for_is_refused() -> None:
    pixels = np.broadcast_to(np.zeros(3, np.uint8), (1, 2**31, 3))
    with pytest.raises(ValueError, match="1 to 2147483647 pixels"):
        encode_png(pixels)


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_stand_in_order_with_right_checksums_and_none_is_empty(kind: Kind) -> None:
    names, contents = zip(*chunks(encode_png(kind(300, 500), text="a cat")), strict=True)
    assert names[:2] == (b"IHDR", b"tEXt")
    assert set(names[2:-1]) == {b"IDAT"}
    assert names[-1] == b"IEND"
    assert all(contents[:-1])
    assert contents[0] == struct.pack(">IIBBBBB", 500, 300, 8, 2, 0, 0, 0)
    assert contents[-1] == b""


@pytest.mark.parametrize("kind", KINDS)
def test_pillow_s_own_check_of_the_file_passes(kind: Kind) -> None:
    with Image.open(io.BytesIO(encode_png(kind(300, 500)))) as image:
        image.verify()


@pytest.mark.parametrize("kind", KINDS)
def test_the_stream_reaches_back_no_further_than_its_header_says(kind: Kind) -> None:
    data = stream(encode_png(kind(512, 512)))
    decoder = zlib.decompressobj(wbits=0)  # a window as large as the stream's header says, and no larger
    length = 0
    while piece := decoder.decompress(data, max_length=1000):  # less than any window, so that none is looked past
        length += len(piece)
        data = decoder.unconsumed_tail
    assert decoder.eof
    assert length == 512 * (1 + 3 * 512)
    assert not decoder.unused_data


@pytest.mark.parametrize(("kind", "window_bytes"), [(noise, 1 << 12), (grain, 1 << 12), (drawing, 1 << 15)])
def test_matches_in_grain_are_near_and_those_in_flat_art_as_far_as_the_format_allows(
    kind: Kind, window_bytes: int
) -> None:
    log_window_less_8 = stream(encode_png(kind(512, 512)))[0] >> 4  # RFC 1950, section 2.2: CINFO
    assert 1 << (log_window_less_8 + 8) == window_bytes


def test_grain_is_filtered_by_average_and_areas_by_paeth() -> None:
    for kind, filter_type in ((noise, 3), (grain, 3), (drawing, 4), (gradient, 4)):
        pixels = kind(512, 512)
        assert filter_types(encode_png(pixels), pixels) == {filter_type}


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("", b"tEXtparameters\0"),
        ("a cat\nSteps: 1", b"tEXtparameters\0a cat\nSteps: 1"),
        ("café", b"tEXtparameters\0caf\xe9"),
        ("一只猫", b"iTXtparameters\0\0\0\0\0" + "一只猫".encode()),
        ("a\x80b", b"iTXtparameters\0\0\0\0\0a\xc2\x80b"),
    ],
)
def test_text_is_latin_1_where_it_fits_and_else_utf_8(text: str, content: bytes) -> None:
    data = encode_png(constant(8, 8), text=text)
    assert [name + content for name, content in chunks(data) if name.endswith(b"Xt")] == [content]
    assert opened(data).info == {"parameters": text}


@pytest.mark.parametrize("text", ["", "a cat", "café", "一只猫", "x" * 100_000])
def test_text_is_written_as_pillow_writes_it(text: str) -> None:
    pixels, info, file = constant(8, 8), PngInfo(), io.BytesIO()
    info.add_text("parameters", text)
    Image.fromarray(pixels).save(file, "PNG", pnginfo=info)
    ours, pillows = (list(chunks(data)) for data in (encode_png(pixels, text=text), file.getvalue()))
    assert ours[:2] == pillows[:2]


def test_without_text_there_are_pixels_alone() -> None:
    assert {name for name, _ in chunks(encode_png(constant(8, 8)))} == {b"IHDR", b"IDAT", b"IEND"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_picture_gives_the_same_bytes(kind: Kind) -> None:
    first, other, second = (encode_png(pixels) for pixels in (kind(256, 256), noise(300, 300), kind(256, 256)))
    assert first == second
    assert first != other


def pillow_bytes(pixels: Pixels) -> int:
    """How large Pillow's file at its default level is."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return len(file.getvalue())


@pytest.mark.parametrize("pixels", [grain(512, 512), noise(512, 512), noise(512, 512, deviation=10)])
def test_a_detailed_picture_takes_at_most_15_percent_more_than_zlib_s_default_level(pixels: Pixels) -> None:
    assert len(encode_png(pixels)) <= 1.15 * pillow_bytes(pixels)


@pytest.mark.parametrize("pixels", [drawing(512, 512), drawing(1024, 1024)])
def test_flat_art_takes_at_most_25_percent_more_than_zlib_s_default_level(pixels: Pixels) -> None:
    assert len(encode_png(pixels)) <= 1.25 * pillow_bytes(pixels)


def test_the_demo_model_s_pictures_take_at_most_25_percent_more_than_at_zlib_s_default_level() -> None:
    pictures = demo_pictures()
    assert sum(len(encode_png(pixels)) for pixels in pictures) <= 1.25 * sum(map(pillow_bytes, pictures))


def test_other_threads_run_while_a_picture_is_encoded() -> None:
    runs = 0
    done = threading.Event()

    def run() -> None:
        nonlocal runs
        while not done.is_set():
            runs += 1
            time.sleep(0)

    pixels = noise(1024, 1024)
    thread = threading.Thread(target=run)
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(100)  # the interpreter takes the GIL from nobody: it has to be given away
    try:
        thread.start()
        before = runs
        for _ in range(20):
            encode_png(pixels)
        assert runs > before
    finally:
        sys.setswitchinterval(interval_s)
        done.set()
        thread.join()
