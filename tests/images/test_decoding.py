import contextlib
import io
import math
import tracemalloc
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image, ImageOps, _imaging

from app.errors import ImageTooLargeError, InvalidImageError, UnsupportedImageError
from app.images.containers import unpack
from app.images.decoding import _load, decode_image
from app.images.encoding import MediaType, encode_image
from app.images.provenance import Provenance
from app.images.sizes import Size, preferred_size
from app.settings import Settings
from tests.conftest import opened, png
from tests.support.uploads import (
    GREY,
    GREY_ALPHA,
    PALETTE,
    RGB,
    RGBA,
    adam7,
    chunk,
    exif,
    noise,
    on_white,
    png_bits,
    png_rows,
    trns,
)
from tests.support.uploads import png as png_file
from tests.support.uploads import stored as turned_back

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def decode(data: bytes, *, size: Size | None = None, max_upload_pixels: int = 1 << 24) -> Image.Image:
    return decode_image(data, size, Settings(max_upload_pixels=max_upload_pixels, max_pixels=1 << 20))


def saved(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def quarters(size: tuple[int, int] = (64, 64)) -> Image.Image:
    """Red top left, green top right, blue bottom left, white bottom right."""
    image = Image.new("RGB", (2, 2))
    for at, color in {(0, 0): RED, (1, 0): GREEN, (0, 1): BLUE, (1, 1): WHITE}.items():
        image.putpixel(at, color)
    return image.resize(size, Image.Resampling.NEAREST)


def corners(image: Image.Image) -> list[Any]:
    right, bottom = image.width - 4, image.height - 4
    return [image.getpixel(at) for at in ((4, 4), (right, 4), (4, bottom), (right, bottom))]


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_pixels_of_an_upload_of_the_right_size_are_kept(file_format: str) -> None:
    image = quarters()
    assert decode(saved(image, file_format, lossless=True), size=Size(64, 64)).tobytes() == image.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation: int) -> None:
    upright = quarters()
    transpositions = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(transpositions[orientation]) if orientation in transpositions else upright
    decoded = decode(saved(stored, "PNG", exif=exif(orientation)), size=Size(64, 64))
    assert corners(decoded) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("upload", "target", "levels"),
    [((1700, 1300), (364, 184), 0), ((2100, 2000), (256, 256), 2), ((65_000, 70), (64, 256), 2)],
)
def test_a_large_picture_is_scaled_in_bands_as_pillow_scales_the_whole(
    upload: tuple[int, int], target: tuple[int, int], levels: int, orientation: int
) -> None:
    """What is no larger than 4 megapixels is scaled by Pillow itself."""
    width, height = upload
    noise = np.random.default_rng(0).integers(100, 140, (height, width, 3), np.uint8)
    image = Image.fromarray(noise)  # of little contrast: Pillow cuts off what is out of range after each pass
    image.paste((90, 110, 150), (0, 0, width // 3, height // 2))
    data = saved(image, "PNG", exif=exif(orientation), compress_level=0)
    whole = ImageOps.fit(ImageOps.exif_transpose(opened(data)), target, Image.Resampling.LANCZOS)
    difference = np.asarray(decode(data, size=Size(*target)), np.int16) - np.asarray(whole)
    assert np.abs(difference).max() <= levels


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (64, 64), (255, 0, 0, 0)), WHITE),
        (Image.new("RGBA", (64, 64), (255, 0, 0, 255)), RED),
        (Image.new("RGBA", (64, 64), (0, 0, 0, 127)), (128, 128, 128)),
        (Image.new("LA", (64, 64), (0, 0)), WHITE),
        (Image.new("L", (64, 64), 40), (40, 40, 40)),
        (Image.new("1", (64, 64), 1), WHITE),
        (Image.new("RGB", (64, 64), RED).convert("P"), RED),
        (Image.new("I;16", (64, 64), 32768), (128, 128, 128)),
        (Image.new("I;16", (64, 64), 65535), WHITE),
    ],
    ids=["clear", "opaque", "half", "LA", "grey", "1-bit", "palette", "16-bit middle", "16-bit white"],
)
def test_every_kind_of_pixel_becomes_rgb_on_white(image: Image.Image, expected: tuple[int, int, int]) -> None:
    decoded = decode(saved(image, "PNG"), size=Size(64, 64))
    assert decoded.mode == "RGB"
    assert decoded.getpixel((32, 32)) == expected


def test_a_palette_s_transparent_colour_becomes_white() -> None:
    image = Image.new("P", (64, 64), 0)
    image.putpalette([255, 0, 0])
    assert decode(saved(image, "PNG", transparency=0), size=Size(64, 64)).getpixel((9, 9)) == WHITE


# A PNG's transparent colour. What is expected is computed from the samples, by the specification's section 11.3.2.1.

KINDS = [(1, GREY), (2, GREY), (4, GREY), (8, GREY), (16, GREY), (8, RGB), (16, RGB)]


def samples_around(key: int, depth: int, color: int, *, width: int, height: int) -> npt.NDArray[np.uint16]:
    """Pixels of the level `key` in all channels, and such as differ from it in the high or the low bits of some."""
    half = depth // 2
    near = np.array([key, key, key, key ^ 1, key ^ 1 << half, key ^ 1 << depth - 1], np.uint16)
    chosen = np.random.default_rng(0).integers(0, len(near), (height, width, 3 if color == RGB else 1))
    return near[chosen]


def png_with_clear(samples: npt.NDArray[Any], depth: int, color: int, before: bytes) -> bytes:
    height, width = samples.shape[:2]
    if depth == 16:
        rows = png_rows(samples)
    elif depth == 8:
        rows = png_rows(samples.astype(np.uint8))
    else:
        rows = png_bits(samples, depth)
    return png_file(width, height, rows, depth=depth, color=color, before=before)


def in_8_bits(samples: npt.NDArray[np.uint16], depth: int) -> npt.NDArray[np.uint8]:
    """The samples as RGB."""
    levels = samples >> 8 if depth == 16 else samples * (255 // ((1 << depth) - 1))
    return np.broadcast_to(levels.astype(np.uint8), (*samples.shape[:2], 3))


def laid_on_white(samples: npt.NDArray[np.uint16], key: int, depth: int) -> npt.NDArray[np.uint8]:
    return np.where((samples == key).all(-1, keepdims=True), 255, in_8_bits(samples, depth)).astype(np.uint8)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("width", "height"), [(93, 67), (2101, 2000)], ids=["small", "in bands"])
@pytest.mark.parametrize(("depth", "color"), KINDS)
def test_the_pixels_of_exactly_the_transparent_colour_become_white(
    depth: int, color: int, width: int, height: int, orientation: int
) -> None:
    key = 0x4B5A >> 16 - depth
    samples = samples_around(key, depth, color, width=width, height=height)
    expected = laid_on_white(samples, key, depth)
    clear = trns(*[key] * samples.shape[2])
    data = png_with_clear(turned_back(samples, orientation), depth, color, chunk(b"eXIf", exif(orientation)) + clear)
    decoded = np.asarray(decode(data, size=Size(width, height)))
    assert np.array_equal(decoded, expected)
    assert (decoded == 255).all(-1).any()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_transparent_colour_of_16_bits_is_found_however_the_picture_is_turned(orientation: int) -> None:
    samples = samples_around(0x4B5A, 16, RGB, width=93, height=67)
    before = chunk(b"eXIf", exif(orientation)) + trns(*[0x4B5A] * 3)
    data = png_with_clear(turned_back(samples, orientation), 16, RGB, before)
    assert np.array_equal(np.asarray(decode(data, size=Size(93, 67))), laid_on_white(samples, 0x4B5A, 16))


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white_in_bands_as_pillow_lays_the_whole(mode: str, orientation: int) -> None:
    """The picture is of several bands, and is scaled as a whole."""
    upright = noise(1501, 1700, 4)
    image = Image.fromarray(turned_back(upright, orientation))
    palette = {"transparency": bytes(noise(256))} if mode == "P" else {}
    image = image.convert("L").convert("P") if mode == "P" else image.convert(mode)
    data = saved(image, "PNG", exif=exif(orientation), compress_level=1, **palette)
    rgba = ImageOps.exif_transpose(opened(data)).convert("RGBA")
    expected = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    assert decode(data, size=Size(1700, 1501)).tobytes() == expected.tobytes()


@pytest.mark.parametrize("channel", range(3))
@pytest.mark.parametrize("bit", [0, 7, 8, 15])
def test_a_colour_of_16_bits_that_differs_from_the_transparent_one_in_a_bit_is_opaque(channel: int, bit: int) -> None:
    key = [0x1234, 0x5678, 0x9ABC]
    samples = np.full((64, 64, 3), key, np.uint16)
    samples[:, 32:, channel] ^= 1 << bit
    decoded = np.asarray(decode(png_with_clear(samples, 16, RGB, trns(*key)), size=Size(64, 64)))
    assert (decoded[:, :32] == 255).all()
    assert np.array_equal(decoded[:, 32:], in_8_bits(samples, 16)[:, 32:])


@pytest.mark.parametrize(("depth", "color"), [kind for kind in KINDS if kind[0] < 16])
def test_of_the_transparent_colour_only_the_bits_that_a_sample_has_count(depth: int, color: int) -> None:
    key = (1 << depth) - 2
    samples = samples_around(key, depth, color, width=96, height=64)
    data = png_with_clear(samples, depth, color, trns(*[key | 0xFF00 | 1 << depth] * samples.shape[2]))
    assert np.array_equal(np.asarray(decode(data, size=Size(96, 64))), laid_on_white(samples, key, depth))


def test_an_interlaced_picture_of_16_bits_has_its_transparent_colour() -> None:
    samples = samples_around(0x1234, 16, RGB, width=96, height=64)
    data = png_file(96, 64, adam7(samples), depth=16, interlaced=True, before=trns(*[0x1234] * 3))
    assert np.array_equal(np.asarray(decode(data, size=Size(96, 64))), laid_on_white(samples, 0x1234, 16))


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("one_is_clear", [True, False])
def test_every_palette_has_its_transparency(depth: int, *, one_is_clear: bool) -> None:
    colors, indices = noise(1 << depth, 3), noise(64, 96) >> 8 - depth
    alpha = np.full(1 << depth, 255, np.uint8) if one_is_clear else noise(1 << depth)
    alpha[1] = 0
    before = chunk(b"PLTE", colors.tobytes()) + chunk(b"tRNS", alpha.tobytes())
    data = png_with_clear(indices, depth, PALETTE, before)
    difference = np.asarray(decode(data, size=Size(96, 64)), np.int16) - on_white(colors[indices], alpha[indices])
    assert np.abs(difference).max() <= 1


PLTE = chunk(b"PLTE", noise(256, 3).tobytes())


@pytest.mark.parametrize(
    ("color", "before", "after"),
    [
        (GREY, chunk(b"tRNS", b""), b""),
        (GREY, chunk(b"tRNS", b"\5"), b""),
        (GREY, trns(5, 5, 5), b""),
        (GREY, b"", trns(5)),
        (RGB, chunk(b"tRNS", b""), b""),
        (RGB, trns(5), b""),
        (RGB, trns(5, 5, 5, 5), b""),
        (RGB, b"", trns(5, 5, 5)),
        (PALETTE, PLTE + chunk(b"tRNS", b""), b""),
        (PALETTE, PLTE + chunk(b"tRNS", bytes(257)), b""),
        (PALETTE, chunk(b"tRNS", bytes(9)) + PLTE, b""),
        (PALETTE, PLTE, chunk(b"tRNS", bytes(9))),
        (GREY_ALPHA, trns(5), b""),
        (RGBA, trns(5, 5, 5), b""),
    ],
)
def test_a_trns_chunk_that_does_not_suit_its_picture_is_overlooked_as_libpng_does(
    color: int, before: bytes, after: bytes
) -> None:
    channels = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}[color]
    pixels = np.full((64, 64, channels), 5, np.uint8)
    if color in {GREY_ALPHA, RGBA}:
        pixels[..., -1] = 255
    with_it, without = (
        decode(png_file(64, 64, png_rows(pixels), color=color, before=head, after=tail), size=Size(64, 64))
        for head, tail in ((before, after), (PLTE if color == PALETTE else b"", b""))
    )
    assert with_it.tobytes() == without.tobytes()


@pytest.mark.parametrize("color", [RGB, PALETTE])
def test_a_palette_of_more_than_256_colours_is_damage(color: int) -> None:
    rows = png_rows(np.zeros((64, 64, 3 if color == RGB else 1), np.uint8))
    assert decode(png_file(64, 64, rows, color=color, before=chunk(b"PLTE", bytes(768)))).size == (512, 512)
    with pytest.raises(InvalidImageError, match="damaged"):
        decode(png_file(64, 64, rows, color=color, before=chunk(b"PLTE", bytes(771))))


@pytest.mark.parametrize("between", [b"", chunk(b"tEXt", b"a\0b")], ids=["neighbours", "text between"])
def test_a_picture_in_many_small_chunks_is_the_same_picture_and_takes_few_objects(between: bytes) -> None:
    pixels = noise(64, 64, 3)
    whole = png_file(64, 64, png_rows(pixels))
    header, stream = whole[:33], zlib.compress(png_rows(pixels))
    chunks = between.join(chunk(b"IDAT", stream[at : at + 1]) for at in range(len(stream)))
    data = header + chunks + chunk(b"IEND", b"")
    assert len(unpack(data).picture) <= (2 if not between else len(stream) + 1)
    assert decode(data, size=Size(64, 64)).tobytes() == pixels.tobytes()


@pytest.mark.parametrize("first", [trns(5), trns(5) * 2, trns(5) + trns(6), chunk(b"tRNS", b"\6") + trns(5)])
def test_of_several_trns_chunks_the_first_that_suits_counts(first: bytes) -> None:
    pixels = np.repeat(np.array([[5, 6]], np.uint8), 32, 1).repeat(64, 0)
    decoded = decode(png_file(64, 64, png_rows(pixels), color=GREY, before=first), size=Size(64, 64))
    assert [decoded.getpixel(at) for at in ((9, 9), (60, 9))] == [WHITE, (6, 6, 6)]


def test_a_trns_chunk_with_a_wrong_checksum_is_damage() -> None:
    damaged = trns(5)[:-1] + bytes([trns(5)[-1] ^ 1])
    with pytest.raises(InvalidImageError, match="damaged"):
        decode(png_file(64, 64, bytes(64 * 65), color=GREY, before=damaged))


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_truncated_picture_of_16_bits_with_a_transparent_colour_is_refused(share: float) -> None:
    data = png_with_clear(noise(64, 64, 3).astype(np.uint16), 16, RGB, trns(5, 5, 5))
    with pytest.raises(InvalidImageError, match="damaged"):
        decode(data[: int(len(data) * share)])


def test_cmyk_jpegs_become_rgb() -> None:
    decoded = decode(saved(Image.new("CMYK", (64, 64), (0, 255, 255, 0)), "JPEG"), size=Size(64, 64))
    red, green, blue = decoded.getpixel((9, 9))  # type: ignore[misc] # Pillow types a pixel as any of its modes'
    assert red > 240
    assert max(green, blue) < 15


def test_an_upload_of_another_aspect_covers_the_size_and_is_cropped_about_its_centre() -> None:
    wide = Image.new("RGB", (192, 64), RED)
    wide.paste(Image.new("RGB", (64, 64), BLUE), (64, 0))
    decoded = decode(saved(wide, "PNG"), size=Size(64, 64))
    assert decoded.size == (64, 64)
    assert corners(decoded) == [BLUE] * 4


@pytest.mark.parametrize(
    ("upload", "expected"),
    [
        ((512, 512), (512, 512)),
        ((64, 64), (512, 512)),
        ((1, 1), (512, 512)),
        ((4000, 3000), (592, 440)),
        ((1000, 2000), (360, 728)),
        ((16000, 1000), (2048, 128)),
        ((32, 1), (2048, 64)),
        ((100, 3200), (64, 2048)),
        ((65_535, 2048), (2048, 64)),
    ],
)
def test_without_a_size_the_aspect_is_kept_at_about_512x512_pixels(
    upload: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert preferred_size(Size(*upload), max_pixels=1 << 20) == Size(*expected)


@given(width=st.integers(1, 20_000), height=st.integers(1, 20_000), max_pixels=st.integers(64 * 64, 2048 * 2048))
def test_the_size_chosen_is_always_one_that_may_be_asked_for(width: int, height: int, max_pixels: int) -> None:
    assume(max(width, height) <= 32 * min(width, height))
    size = preferred_size(Size(width, height), max_pixels=max_pixels)
    assert size.pixels <= max_pixels
    for side in (size.width, size.height):
        assert 64 <= side <= 2048
        assert side % 8 == 0


@given(
    long=st.integers(1, 65_535),
    aspect=st.floats(1, 32),
    upright=st.booleans(),
    max_pixels=st.one_of(st.just(512 * 512), st.integers(512 * 512, 2048 * 2048)),
)
@example(long=1500, aspect=15, upright=False, max_pixels=512 * 512)
def test_the_size_chosen_is_the_picture_s_own_scaled_and_rounded(
    long: int, aspect: float, *, upright: bool, max_pixels: int
) -> None:
    """By one scale, both sides are within half of 8 pixels of what is chosen."""
    short = math.ceil(long / aspect)
    width, height = (short, long) if upright else (long, short)
    size = preferred_size(Size(width, height), max_pixels=max_pixels)
    assert (size.width - 4) * height <= (size.height + 4) * width
    assert (size.height - 4) * width <= (size.width + 4) * height


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("upload", [(65, 2), (2, 65), (3201, 100), (1, 1000)])
def test_an_aspect_that_no_size_has_is_refused_unless_a_size_is_given(
    upload: tuple[int, int], orientation: int
) -> None:
    data = saved(Image.new("RGB", upload, RED), "PNG", exif=exif(orientation))
    shown = Size(*upload) if orientation == 1 else Size(upload[1], upload[0])
    with pytest.raises(InvalidImageError) as refusal:
        decode(data)
    assert str(refusal.value) == (
        f"The picture has {shown} pixels, and an aspect beyond 32:1 cannot be kept. "
        "Send the output's width and height to have the picture cropped about its centre, or crop it first."
    )
    assert decode(data, size=Size(64, 64)).size == (64, 64)


@pytest.mark.parametrize("file_format", ["GIF", "TIFF", "BMP", "PPM", "ICO"])
def test_other_formats_are_refused(file_format: str) -> None:
    with pytest.raises(UnsupportedImageError):
        decode(saved(quarters(), file_format))


@pytest.mark.parametrize("data", [b"", b"x", b"<svg/>", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises((UnsupportedImageError, InvalidImageError)):
        decode(data)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_animations_are_refused(file_format: str) -> None:
    frames = [Image.new("RGB", (64, 64), color) for color in (RED, BLUE)]
    with pytest.raises(InvalidImageError, match="animated"):
        decode(saved(frames[0], file_format, save_all=True, append_images=frames[1:]))


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_files_are_refused(file_format: str, share: float) -> None:
    noise = Image.effect_noise((128, 128), 100).convert("RGB")
    data = saved(noise, file_format)
    with pytest.raises((InvalidImageError, UnsupportedImageError)):
        decode(data[: int(len(data) * share)])


@pytest.mark.parametrize("damaged", [b"II*\0", b"MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0junk"])
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_damaged_exif_is_refused_or_overlooked_and_never_crashes(file_format: str, damaged: bytes) -> None:
    with contextlib.suppress(InvalidImageError):
        assert decode(saved(quarters(), file_format, exif=damaged), size=Size(64, 64)).size == (64, 64)


def test_a_camera_s_jpeg_with_a_preview_behind_it_is_its_first_picture() -> None:
    red, blue = (Image.new("RGB", (64, 64), color) for color in (RED, BLUE))
    data = saved(red, "MPO", save_all=True, append_images=[blue])
    red_channel, *others = decode(data, size=Size(64, 64)).getpixel((9, 9))  # type: ignore[misc] # an RGB pixel
    assert red_channel > 240
    assert max(others) < 15


@pytest.mark.parametrize("size", [(4097, 4096), (10_000, 10_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_a_picture_of_too_many_pixels_is_refused_by_its_header_alone(size: tuple[int, int]) -> None:
    with pytest.raises(ImageTooLargeError):
        decode(png_file(*size, b""))


def test_as_many_pixels_as_allowed_are_taken() -> None:
    decode(png((64, 64)), max_upload_pixels=64 * 64)
    with pytest.raises(ImageTooLargeError):
        decode(png((64, 65)), max_upload_pixels=64 * 64)


@pytest.mark.parametrize("media_type", MediaType)
def test_a_picture_comes_back_from_its_file(media_type: MediaType) -> None:
    image = quarters((64, 64))
    decoded = opened(encode_image(np.asarray(image), media_type))
    assert decoded.format == media_type.removeprefix("image/").upper()
    assert decoded.size == image.size
    if media_type is MediaType.PNG:
        assert decoded.tobytes() == image.tobytes()


@pytest.mark.parametrize(("text", "chunk"), [("a cat", b"tEXt"), ("café", b"tEXt"), ("一只猫", b"iTXt")])
def test_a_png_carries_its_text(text: str, chunk: bytes) -> None:
    data = encode_image(np.asarray(quarters()), MediaType.PNG, provenance=Provenance(parameters=text))
    assert chunk in data
    assert opened(data).info["parameters"] == text


def test_a_png_without_text_has_no_text_chunk() -> None:
    data = encode_image(np.asarray(quarters()), MediaType.PNG)
    assert not opened(data).info


@pytest.mark.parametrize("zeros", range((1 << 16) - 6, (1 << 16) + 2))
def test_a_jpeg_s_end_is_found_wherever_the_pieces_end_in_which_it_is_looked_for(zeros: int) -> None:
    scan = b"\xff\xda\x00\x02" + bytes(zeros)
    picture = b"\xff\xd8" + scan + b"\xff\xd9"
    assert b"".join(unpack(picture + b"\xff\xe1\x00\x02" + scan).picture) == picture


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16", "RGB", "RGBA"])
def test_pixels_are_decoded_into_memory_that_pillow_has_not_cleared(mode: str) -> None:
    """It would clear all of its own at once and hold the GIL meanwhile."""
    with Image.open(io.BytesIO(saved(Image.new(mode, (700, 500), 1), "PNG"))) as image:
        before = _imaging.get_stats()["allocated_blocks"]
        _load(image)
        assert _imaging.get_stats()["allocated_blocks"] == before


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_a_file_is_taken_apart_without_a_copy(file_format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
    data = saved(
        Image.fromarray(noise), file_format, quality=100 if file_format == "JPEG" else 0, lossless=True, method=0
    )
    tracemalloc.start()
    try:
        contents = unpack(memoryview(data))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(map(len, contents.picture)) > 600_000
    assert peak < 300_000
