import contextlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from app.errors import ImageTooLargeError, InvalidImageError, UnsupportedImageError
from app.inference.image_codec import MediaType, Size, decode_image, encode_image, preferred_size
from app.inference.provenance import Provenance
from tests.conftest import opened, png

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def decode(data: bytes, *, size: Size | None = None, max_upload_pixels: int = 1 << 24) -> Image.Image:
    return decode_image(data, size=size, max_upload_pixels=max_upload_pixels, max_pixels=1 << 20)


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
    turned_back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(turned_back[orientation]) if orientation in turned_back else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(saved(stored, "PNG", exif=exif), size=Size(64, 64))
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
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(image, "PNG", exif=exif, compress_level=0)
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
        ((1000, 1), (2048, 64)),
    ],
)
def test_without_a_size_the_aspect_is_kept_at_about_512x512_pixels(
    upload: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert preferred_size(Size(*upload), max_pixels=1 << 20) == Size(*expected)


@given(width=st.integers(1, 20_000), height=st.integers(1, 20_000), max_pixels=st.integers(64 * 64, 2048 * 2048))
def test_the_size_chosen_is_always_one_that_may_be_asked_for(width: int, height: int, max_pixels: int) -> None:
    size = preferred_size(Size(width, height), max_pixels=max_pixels)
    assert size.pixels <= max_pixels
    for side in (size.width, size.height):
        assert 64 <= side <= 2048
        assert side % 8 == 0


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


@pytest.mark.parametrize("exif", [b"II*\0", b"MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0junk"])
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_damaged_exif_is_refused_or_overlooked_and_never_crashes(file_format: str, exif: bytes) -> None:
    with contextlib.suppress(InvalidImageError):
        assert decode(saved(quarters(), file_format, exif=exif), size=Size(64, 64)).size == (64, 64)


def test_a_camera_s_jpeg_with_a_preview_behind_it_is_its_first_picture() -> None:
    red, blue = (Image.new("RGB", (64, 64), color) for color in (RED, BLUE))
    data = saved(red, "MPO", save_all=True, append_images=[blue])
    red_channel, *others = decode(data, size=Size(64, 64)).getpixel((9, 9))  # type: ignore[misc] # an RGB pixel
    assert red_channel > 240
    assert max(others) < 15


def png_header(width: int, height: int) -> bytes:
    """A PNG that names a size and has no pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(4097, 4096), (10_000, 10_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_a_picture_of_too_many_pixels_is_refused_by_its_header_alone(size: tuple[int, int]) -> None:
    with pytest.raises(ImageTooLargeError):
        decode(png_header(*size))


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
