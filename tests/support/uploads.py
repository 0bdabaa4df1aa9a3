"""Generated uploads, ordinary and hostile, each with the result that the service must give."""

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

WIDTH, HEIGHT = 96, 64

FORMATS = ("PNG", "JPEG", "WEBP")

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
"""PNG's colour types."""


@dataclass(frozen=True)
class Upload:
    """A file, and its required result: these pixels, or one of these codes; `picture` allows any pixels."""

    name: str
    data: bytes
    pixels: Pixels | None = None
    """The pixels of the upright picture at its own size, or at 64x64 if it has one colour."""
    tolerance: int = 1
    codes: frozenset[str] = frozenset()
    file_name: str = "picture"
    content_type: str = "application/octet-stream"


UNSUPPORTED = frozenset({"unsupported_image"})
INVALID = frozenset({"invalid_image"})
TOO_LARGE = frozenset({"image_too_large"})
REFUSED = UNSUPPORTED | INVALID | TOO_LARGE
ANYTHING = REFUSED | {"picture"}
"""The service may accept or reject the upload, but must stay unharmed. The pixels of the picture are not known."""


def corpus() -> Iterator[Upload]:
    """Every upload, with the same bytes each time."""
    yield from plain()
    yield from turned()
    yield from kinds_of_png()
    yield from clear_colors()
    yield from kinds_of_jpeg()
    yield from colour_profiles()
    yield from small()
    yield from talkative()
    yield from polyglots()
    yield from animated()
    yield from foreign()
    yield from truncated()
    yield from impossible()
    yield from bombs()


def seeds() -> list[bytes]:
    """Small files as input for `mutate`."""
    makers = (plain, turned, kinds_of_png, clear_colors, kinds_of_jpeg, colour_profiles, small, animated)
    return [upload.data for maker in makers for upload in maker() if len(upload.data) < 40_000]


# Parts of pictures and files.


def gradient(width: int = WIDTH, height: int = HEIGHT) -> Pixels:
    """A smooth picture that differs in each orientation, and that lossy formats hardly change."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // (width - 1), y * 255 // (height - 1), 255 - x * 128 // (width - 1)], -1).astype(
        np.uint8
    )


def flat(color: Sequence[int], *, width: int = 64, height: int = 64) -> Pixels:
    return np.full((height, width, 3), color, np.uint8)


def noise(*shape: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def saved(pixels: Pixels, file_format: str, *, mode: str = "RGB", **options: Any) -> bytes:
    """A file that Pillow writes, lossless if the format allows it."""
    file = io.BytesIO()
    defaults: dict[str, Any] = {
        "PNG": {},
        "JPEG": {"quality": 95, "subsampling": 0},
        "WEBP": {"lossless": True, "method": 0},
    }[file_format]
    height, width = pixels.shape[:2]
    Image.frombytes(mode, (width, height), pixels.tobytes()).save(file, file_format, **{**defaults, **options})
    return file.getvalue()


def tolerance_of(file_format: str) -> int:
    return 8 if file_format == "JPEG" else 1


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(
    width: int,
    height: int,
    rows: bytes,
    *,
    depth: int = 8,
    color: int = RGB,
    interlaced: bool = False,
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """A PNG of filtered rows, with other chunks before and after the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
    pixels = chunk(b"IDAT", zlib.compress(rows, 1))
    return PNG_MAGIC + chunk(b"IHDR", header) + before + pixels + after + chunk(b"IEND", b"")


def trns(*levels: int) -> bytes:
    """The chunk with a PNG's transparent grey level or colour."""
    return chunk(b"tRNS", struct.pack(f">{len(levels)}H", *levels))


def png_rows(samples: npt.NDArray[Any]) -> bytes:
    """Unfiltered rows of samples of whole bytes (big-endian)."""
    rows = np.ascontiguousarray(samples).reshape(samples.shape[0], -1)
    raw = rows.astype(rows.dtype.newbyteorder(">")).view(np.uint8)
    return np.insert(raw, 0, 0, axis=1).tobytes()


def png_bits(samples: npt.NDArray[Any], depth: int) -> bytes:
    """Unfiltered rows of samples of less than a byte."""
    bits = (samples[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    return np.insert(np.packbits(bits.reshape(samples.shape[0], -1), axis=1), 0, 0, axis=1).tobytes()


def png_of(pixels: npt.NDArray[Any], **options: Any) -> bytes:
    height, width = pixels.shape[:2]
    return png(width, height, png_rows(pixels), **options)


def segment(marker: int, content: bytes) -> bytes:
    """A segment of a JPEG."""
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content


def jpeg_with(segments: bytes, pixels: Pixels | None = None, **options: Any) -> bytes:
    """A JPEG with these segments directly after its start marker."""
    data = saved(gradient() if pixels is None else pixels, "JPEG", **options)
    return data[:2] + segments + data[2:]


def riff_chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def webp(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def exif(orientation: int, order: str = "<") -> bytes:
    """EXIF data with the orientation as its only entry."""
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def stored(upright: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """The picture as a camera in this orientation stores it, by EXIF's table of row 0 and column 0."""
    columns_as_rows = upright.transpose(1, 0, 2)
    return {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: columns_as_rows,
        6: columns_as_rows[::-1],
        7: columns_as_rows[::-1, ::-1],
        8: columns_as_rows[:, ::-1],
    }[orientation]


def on_white(pixels: Pixels, alpha: Pixels) -> Pixels:
    share = alpha[..., None] / 255
    return np.rint(pixels * share + 255 * (1 - share)).astype(np.uint8)


# Valid pictures.


def plain() -> Iterator[Upload]:
    for file_format in FORMATS:
        yield Upload(
            f"{file_format} under a wrong name and type",
            saved(gradient(), file_format),
            gradient(),
            tolerance_of(file_format),
            file_name="../../page.html",
            content_type="text/html",
        )
    yield Upload("noise as PNG", png_of(noise(64, 96, 3)), noise(64, 96, 3))
    yield Upload("noise as WEBP", saved(noise(64, 96, 3), "WEBP"), noise(64, 96, 3))
    yield Upload("noise as WEBP, the hardest", saved(noise(64, 96, 3), "WEBP", method=6, quality=100), noise(64, 96, 3))
    yield Upload("lossy WEBP", saved(gradient(), "WEBP", lossless=False, quality=95), gradient(), 8)


def turned() -> Iterator[Upload]:
    for orientation in range(1, 9):
        for file_format in FORMATS:
            order = "<>"[orientation % 2]
            data = saved(stored(gradient(), orientation), file_format, exif=b"Exif\0\0" + exif(orientation, order))
            yield Upload(f"{file_format} of orientation {orientation}", data, gradient(), tolerance_of(file_format))
    late = chunk(b"eXIf", exif(6))
    yield Upload("PNG with its EXIF behind the pixels", png_of(stored(gradient(), 6), after=late), gradient())
    for orientation in (0, 9, 65535):
        data = png_of(gradient(), before=chunk(b"eXIf", exif(orientation)))
        yield Upload(f"orientation {orientation}", data, gradient())
    for name, damaged in {
        "cut short": exif(6)[:15],
        "of no order": b"XX" + exif(6)[2:],
        "that points behind its end": b"II*\0" + struct.pack("<I", 0xFFFFFFFF),
        "that points at itself": b"II*\0\x04\0\0\0\xff\xff",
        "that is empty": b"",
    }.items():
        yield Upload(f"EXIF {name}", png_of(gradient(), before=chunk(b"eXIf", damaged)), gradient())


def kinds_of_png() -> Iterator[Upload]:
    grey = gradient()[..., 0]
    as_rgb = np.repeat(grey[..., None], 3, -1)
    alpha = gradient()[..., 1]
    for depth in (1, 2, 4):
        few = grey >> (8 - depth)
        levels = np.repeat((few * (255 // ((1 << depth) - 1)))[..., None], 3, -1).astype(np.uint8)
        yield Upload(f"grey of {depth} bits", png(WIDTH, HEIGHT, png_bits(few, depth), depth=depth, color=GREY), levels)
        colors = noise(1 << depth, 3)
        data = png(
            WIDTH, HEIGHT, png_bits(few, depth), depth=depth, color=PALETTE, before=chunk(b"PLTE", colors.tobytes())
        )
        yield Upload(f"palette of {depth} bits", data, colors[few])
    yield Upload("grey", png_of(grey, color=GREY), as_rgb)
    deep_grey = grey.astype(np.uint16) << 8 | noise(HEIGHT, WIDTH)
    yield Upload("grey of 16 bits", png_of(deep_grey, depth=16, color=GREY), as_rgb)
    deep = gradient().astype(np.uint16) << 8 | noise(HEIGHT, WIDTH, 3)
    yield Upload("RGB of 16 bits", png_of(deep, depth=16), gradient())
    yield Upload("grey and alpha", png_of(np.dstack([grey, alpha]), color=GREY_ALPHA), on_white(as_rgb, alpha))
    yield Upload(
        "grey and alpha of 16 bits",
        png_of(np.dstack([grey, alpha]).astype(np.uint16) * 257, depth=16, color=GREY_ALPHA),
        on_white(as_rgb, alpha),
    )
    rgba = np.dstack([gradient(), alpha])
    yield Upload("RGBA", png_of(rgba, color=RGBA), on_white(gradient(), alpha))
    deep_rgba = rgba.astype(np.uint16) * 257
    yield Upload("RGBA of 16 bits", png_of(deep_rgba, depth=16, color=RGBA), on_white(gradient(), alpha))
    yield Upload("RGBA as WEBP", saved(rgba, "WEBP", mode="RGBA", exact=True), on_white(gradient(), alpha))
    yield Upload(
        "RGBA as lossy WEBP",
        saved(rgba, "WEBP", mode="RGBA", lossless=False, quality=95, exact=True),
        on_white(gradient(), alpha),
        8,
    )
    palette, opacity = noise(256, 3), noise(256)
    before = chunk(b"PLTE", palette.tobytes()) + chunk(b"tRNS", opacity.tobytes())
    yield Upload(
        "palette with alpha", png_of(grey, color=PALETTE, before=before), on_white(palette[grey], opacity[grey])
    )
    yield Upload("interlaced", png(WIDTH, HEIGHT, adam7(gradient()), interlaced=True), gradient())
    deep_interlaced = png(WIDTH, HEIGHT, adam7(deep_rgba), depth=16, color=RGBA, interlaced=True)
    yield Upload("interlaced RGBA of 16 bits", deep_interlaced, on_white(gradient(), alpha))
    pixels = zlib.compress(png_rows(gradient()))
    pieces = b"".join(chunk(b"IDAT", pixels[i : i + 1]) for i in range(len(pixels)))
    whole = png_of(gradient())
    yield Upload(
        "a chunk for each byte",
        whole.replace(chunk(b"IDAT", zlib.compress(png_rows(gradient()), 1)), pieces),
        gradient(),
    )


def clear_colors() -> Iterator[Upload]:
    grey = gradient()[..., :1]
    for depth in (1, 2, 4, 8):
        few, level = grey >> (8 - depth), depth // 2
        shown = np.where(few == level, 255, few * (255 // ((1 << depth) - 1))).astype(np.uint8).repeat(3, -1)
        data = png(WIDTH, HEIGHT, png_bits(few, depth), depth=depth, color=GREY, before=trns(level))
        yield Upload(f"grey of {depth} bits with a clear level", data, shown)
    clear = (gradient() == gradient()[0, 0]).all(-1, keepdims=True)
    data = png_of(gradient(), before=trns(*gradient()[0, 0]))
    yield Upload("RGB with a clear colour", data, np.where(clear, 255, gradient()).astype(np.uint8))
    deep_grey = grey.astype(np.uint16) << 8 | np.arange(HEIGHT, dtype=np.uint16)[:, None, None] % 4
    shown = np.where(deep_grey == deep_grey[1, 9], 255, grey).astype(np.uint8).repeat(3, -1)
    data = png_of(deep_grey, depth=16, color=GREY, before=trns(*deep_grey[1, 9]))
    yield Upload("grey of 16 bits with a clear level", data, shown)
    deep = deep_grey.repeat(3, -1)
    before = trns(*deep[1, 9])
    yield Upload("RGB of 16 bits with a clear colour", png_of(deep, depth=16, before=before), shown)
    data = png(WIDTH, HEIGHT, adam7(deep), depth=16, interlaced=True, before=before)
    yield Upload("interlaced RGB of 16 bits with a clear colour", data, shown)


def adam7(samples: npt.NDArray[Any]) -> bytes:
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    return b"".join(png_rows(samples[y::down, x::across]) for y, x, down, across in passes)


def kinds_of_jpeg() -> Iterator[Upload]:
    yield Upload("progressive", saved(gradient(), "JPEG", progressive=True), gradient(), 8)
    yield Upload("subsampled", saved(gradient(), "JPEG", subsampling=2), gradient(), 16)
    yield Upload("restart markers", saved(gradient(), "JPEG", restart_marker_blocks=1), gradient(), 8)
    grey = gradient()[..., 0]
    yield Upload("grey JPEG", saved(grey, "JPEG", mode="L", subsampling=-1), np.repeat(grey[..., None], 3, -1), 8)
    inks = np.dstack([gradient(), gradient()[..., 0] // 2])
    light = (255 - inks[..., :3].astype(int)) * (255 - inks[..., 3:].astype(int)) // 255
    yield Upload("CMYK", saved(inks, "JPEG", mode="CMYK"), light.astype(np.uint8), 12)
    yield Upload("fill bytes", saved(gradient(), "JPEG").replace(b"\xff\xc0", b"\xff" * 9 + b"\xc0", 1), gradient(), 8)


# Colours.

SRGB = np.array(
    [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]]
)
ADOBE_RGB = np.array(
    [[0.6097559, 0.2052401, 0.1492240], [0.3111242, 0.6256560, 0.0632197], [0.0194811, 0.0608902, 0.7448387]]
)
"""X, Y and Z of full red, green and blue under D50, in columns (Bruce Lindbloom's tables)."""
ADOBE_GAMMA = 563 / 256


def icc_profile(
    matrix: npt.NDArray[np.float64], gamma: float, *, space: bytes = b"RGB ", more: dict[bytes, bytes] | None = None
) -> bytes:
    """A display's ICC profile with three colours, one curve, and the tags in `more`."""
    xyz = [b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in column)) for column in matrix.T]
    curve = b"curv\0\0\0\0" + struct.pack(">IH2x", 1, round(gamma * 256))
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    if space == b"GRAY":
        tags = {b"wtpt": white, b"kTRC": curve}
    else:
        tags = dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), xyz, strict=True))
        tags |= {b"wtpt": white, b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    tags |= more or {}
    at, table, body = 132 + 12 * len(tags), b"", b""
    for name, tag in tags.items():
        table += name + struct.pack(">II", at + len(body), len(tag))
        body += tag
    head = struct.pack(
        ">I4sI4s4s4s12s4s28x3i48x",
        at + len(body),
        b"",
        0x02400000,
        b"mntr",
        space,
        b"XYZ ",
        b"",
        b"acsp",
        63190,
        65536,
        54061,
    )
    return head + struct.pack(">I", len(tags)) + table + body


def steps(number: int) -> bytes:
    """An ICC tag with many processing steps, each with the same three curves."""
    curve = b"curf\0\0\0\0\0\1\0\0parf\0\0\0\0\0\0\0\0" + struct.pack(">4f", 1, 1, 0, 0)
    curves = b"cvst\0\0\0\0\0\3\0\3" + struct.pack(">2I", 36, len(curve)) * 3 + curve
    head = b"mpet\0\0\0\0\0\3\0\3" + struct.pack(">I", number)
    return head + struct.pack(">2I", 16 + 8 * number, len(curves)) * number + curves


def as_srgb(pixels: Pixels, matrix: npt.NDArray[np.float64], gamma: float) -> Pixels:
    """The profile's colours converted to sRGB with the standard's formula."""
    linear = (pixels / 255) ** gamma @ matrix.T @ np.linalg.inv(SRGB).T
    linear = linear.clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    rounded: Pixels = np.rint(encoded * 255).astype(np.uint8)
    return rounded


def colour_profiles() -> Iterator[Upload]:
    adobe = icc_profile(ADOBE_RGB, ADOBE_GAMMA)
    # Only colours that both spaces have: outside sRGB there is no single correct result.
    pixels = gradient() // 4 + 96
    expected = as_srgb(pixels, ADOBE_RGB, ADOBE_GAMMA)
    for file_format in FORMATS:
        data = saved(pixels, file_format, icc_profile=adobe)
        yield Upload(f"{file_format} in Adobe RGB", data, expected, 3 + tolerance_of(file_format))
    swapped = icc_profile(ADOBE_RGB[:, ::-1], ADOBE_GAMMA)
    data = saved(pixels, "PNG", icc_profile=swapped)
    yield Upload("red and blue exchanged", data, as_srgb(pixels, ADOBE_RGB[:, ::-1], ADOBE_GAMMA), 4)
    padded = adobe + bytes(200_000)
    yield Upload("JPEG with a profile in pieces", saved(pixels, "JPEG", icc_profile=padded), expected, 11)
    overlooked = {
        "of noise": noise(3000).tobytes(),
        "cut short": adobe[:200],
        "that is empty": b"\0",
        "of 2 MiB": adobe + bytes(1 << 21),
        "of 16 MiB, packed": adobe + bytes(1 << 24),
        "of greys": icc_profile(ADOBE_RGB, 1.0, space=b"GRAY"),
        "of 3,000 steps": icc_profile(ADOBE_RGB, ADOBE_GAMMA, more={b"D2B0": steps(3000)}),
        "of inks": adobe[:16] + b"CMYK" + adobe[20:],
        "with tags behind its end": adobe[:136] + b"\xff\xff\xff\x00" + adobe[140:],
        "with a count of tags that is too high": adobe[:128] + b"\xff\xff\xff\xff" + adobe[132:],
    }
    for name, profile in overlooked.items():
        for file_format in FORMATS:
            if file_format == "JPEG" and len(profile) > 1 << 22:  # a JPEG stores a profile in at most 255 pieces
                continue
            data = saved(gradient(), file_format, icc_profile=profile)
            yield Upload(f"{file_format} with a profile {name}", data, gradient(), tolerance_of(file_format))
    for name, content in {
        "not packed": b"x\0\0" + adobe,
        "of no method": b"x\0\x09",
        "of no name": b"",
        "cut": b"x",
    }.items():
        yield Upload(f"iCCP {name}", png_of(gradient(), before=chunk(b"iCCP", content)), gradient())


# Small pictures, and pictures with much other data.


def small() -> Iterator[Upload]:
    for width, height in ((1, 1), (1, 2), (3, 1), (2, 2)):
        for file_format in FORMATS:
            pixels = flat((10, 200, 90), width=width, height=height)
            data = saved(pixels, file_format)
            yield Upload(f"{file_format} of {width}x{height}", data, flat((10, 200, 90)), tolerance_of(file_format))


def talkative() -> Iterator[Upload]:
    text = "\N{CAT FACE}" + "a" * (1 << 20)
    packed = [
        chunk(b"iTXt", f"k{i}".encode() + b"\0\1\0\0\0" + zlib.compress(text.encode()[: 1 << 20])) for i in range(100)
    ]
    texts = {
        "8 MiB of tEXt": chunk(b"tEXt", b"k\0" + b"a" * (8 << 20)),
        "8 MiB of iTXt": chunk(b"iTXt", b"k\0\0\0\0\0" + text.encode() * 8),
        "100 iTXt that unpack to 1 MiB each": b"".join(packed),
        "a zTXt that unpacks to 64 MiB": chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 26), 1)),
        "a zTXt of no method": chunk(b"zTXt", b"k\0\x07junk"),
        "a tEXt without a keyword": chunk(b"tEXt", b""),
        "1 MiB of XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"<x>" * (1 << 18)),
        "a wrong gAMA, cHRM, pHYs and sRGB": b"".join(
            chunk(name, b"") for name in (b"gAMA", b"cHRM", b"pHYs", b"sRGB")
        ),
    }
    for name, chunks in texts.items():
        yield Upload(f"PNG with {name}", png_of(gradient(), before=chunks), gradient())
        yield Upload(f"PNG with {name} behind the pixels", png_of(gradient(), after=chunks), gradient())
    entries = b"".join(struct.pack("<HHII", tag, 7, 65000, 8) for tag in range(1, 5400))
    bomb = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 5399) + entries
    yield Upload("EXIF whose entries all point at the same bytes", jpeg_with(segment(0xE1, bomb)), gradient(), 8)
    yield Upload("EXIF in 400 segments", jpeg_with(segment(0xE1, b"Exif\0\0" + bytes(65000)) * 400), gradient(), 8)
    yield Upload("400 comments of 64 KiB", jpeg_with(segment(0xFE, b"a" * 65533) * 400), gradient(), 8)
    yield Upload("a thousand Adobe segments", jpeg_with(segment(0xEE, b"Adobe\0d\0\0\0\0\1") * 1000), gradient(), 8)
    yield Upload("a broken index of pictures", jpeg_with(segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff")), gradient(), 8)
    previews = [Image.fromarray(noise(64, 64, 3)) for _ in range(50)]
    cameras = saved(gradient(), "JPEG")
    file = io.BytesIO()
    Image.fromarray(gradient()).save(file, "MPO", save_all=True, append_images=previews, quality=95, subsampling=0)
    yield Upload("JPEG with 50 previews", file.getvalue(), gradient(), 8)
    yield Upload("JPEG with another behind it", cameras + saved(noise(64, 64, 3), "JPEG"), gradient(), 8)
    inner = saved(gradient(), "WEBP")[12:]
    size = struct.pack("<I", WIDTH - 1)[:3] + struct.pack("<I", HEIGHT - 1)[:3]
    extended = riff_chunk(b"VP8X", b"\x2c\0\0\0" + size)
    for name, chunks in {
        "8 MiB of XMP": riff_chunk(b"XMP ", bytes(8 << 20)),
        "8 MiB of EXIF": riff_chunk(b"EXIF", exif(1) + bytes(8 << 20)),
        "nothing that its flags name": b"",
        "an unknown chunk": riff_chunk(b"abcd", b"x"),
    }.items():
        yield Upload(f"WEBP with {name}", webp(extended, inner, chunks), gradient())


def polyglots() -> Iterator[Upload]:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", "text")
    tails = {"HTML": b"<html><script>alert(1)</script></html>", "ZIP": archive.getvalue(), "zeros": bytes(1 << 20)}
    for file_format in FORMATS:
        for name, tail in tails.items():
            data = saved(gradient(), file_format) + tail
            yield Upload(f"{file_format} with {name} behind it", data, gradient(), tolerance_of(file_format))
    yield Upload("PNG behind HTML", b"<html>" + saved(gradient(), "PNG"), codes=UNSUPPORTED)
    yield Upload("PNG's first bytes before a JPEG", PNG_MAGIC + saved(gradient(), "JPEG"), codes=REFUSED)


# Files that are no pictures, and formats that are not supported.


def animated() -> Iterator[Upload]:
    frames = [Image.fromarray(flat(color)) for color in ((255, 0, 0), (0, 0, 255), (0, 255, 0))]
    for file_format in ("PNG", "WEBP"):
        file = io.BytesIO()
        frames[0].save(file, file_format, save_all=True, append_images=frames[1:])
        yield Upload(f"animated {file_format}", file.getvalue(), codes=INVALID)
    plays = chunk(b"acTL", struct.pack(">II", 2, 0))
    control = struct.pack(">IIIIHHBB", WIDTH, HEIGHT, 0, 0, 1, 10, 0, 0)
    still = chunk(b"fcTL", struct.pack(">I", 0) + control)
    frame = chunk(b"fcTL", struct.pack(">I", 1) + control)
    frame += chunk(b"fdAT", struct.pack(">I", 2) + zlib.compress(png_rows(gradient())))
    yield Upload("APNG", png_of(gradient(), before=plays + still, after=frame), codes=INVALID)
    yield Upload("APNG that says so behind its first picture", png_of(gradient(), after=plays + frame), codes=INVALID)
    yield Upload("PNG that says it is animated and is not", png_of(gradient(), before=plays + still), gradient())
    yield Upload("PNG that says so behind its picture", png_of(gradient(), after=plays), gradient())
    billions = chunk(b"acTL", struct.pack(">II", 0xFFFFFFFF, 0))
    yield Upload("PNG of four billion frames that has one", png_of(gradient(), before=billions), gradient())


def foreign() -> Iterator[Upload]:
    for file_format in ("GIF", "TIFF", "BMP", "ICO", "PPM", "EPS", "PDF", "TGA", "JPEG2000", "AVIF"):
        file = io.BytesIO()
        Image.fromarray(gradient()).save(file, file_format)
        yield Upload(file_format, file.getvalue(), codes=UNSUPPORTED, file_name="a.png", content_type="image/png")
    page = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    others = {
        "SVG": page,
        "SVG with a declaration": b'<?xml version="1.0"?>' + page,
        "EPS that reads files": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
        "ImageMagick's script": b"push graphic-context\nfill 'url(https://example.com/)'\n",
        "RIFF of another kind": b"RIFF\x24\0\0\0WAVEfmt ",
        "nothing": b"",
        "one byte": b"\x89",
        "random bytes": noise(4096).tobytes(),
        "zeros": bytes(4096),
        "text": "не картинка".encode(),
    }
    for name, data in others.items():
        yield Upload(name, data, codes=UNSUPPORTED, file_name="a.png", content_type="image/png")
    for magic in (PNG_MAGIC, b"\xff\xd8\xff", b"RIFF\xff\xff\xff\xffWEBPVP8X", b"RIFF\xff\xff\xff\xffWEBPVP8 "):
        yield Upload(f"{magic!r} and nothing", magic, codes=REFUSED)
        yield Upload(f"{magic!r} and noise", magic + noise(9999).tobytes(), codes=REFUSED)
        yield Upload(f"{magic!r} and zeros", magic + bytes(9999), codes=REFUSED)
        yield Upload(f"{magic!r} and ones", magic + b"\xff" * 99999, codes=REFUSED)


def truncated() -> Iterator[Upload]:
    for file_format in FORMATS:
        whole = saved(noise(96, 64, 3), file_format)
        for end in sorted({*range(1, 60, 7), *range(60, len(whole) - 40, len(whole) // 12)}):
            yield Upload(f"{file_format} cut after {end} bytes", whole[:end], codes=REFUSED)
    progressive = saved(noise(96, 64, 3), "JPEG", progressive=True)
    for tenth in range(1, 10):
        yield Upload(
            f"progressive cut after {tenth} tenths", progressive[: len(progressive) * tenth // 10], codes=REFUSED
        )


def impossible() -> Iterator[Upload]:
    for width, height in ((0, 0), (0, 64), (64, 0)):
        yield Upload(f"PNG of {width}x{height}", png(width, height, b""), codes=REFUSED)
        data = saved(gradient(), "JPEG").replace(
            struct.pack(">HH", HEIGHT, WIDTH), struct.pack(">HH", height, width), 1
        )
        yield Upload(f"JPEG of {width}x{height}", data, codes=REFUSED)
    for size in ((-1, -1), (-1, 1), (1, -2147483648)):
        header = chunk(b"IHDR", struct.pack(">iiBBBBB", *size, 8, RGB, 0, 0, 0))
        yield Upload(f"PNG of {size}", PNG_MAGIC + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""), codes=REFUSED)
    for depth, color in ((3, RGB), (16, PALETTE), (8, 7), (1, RGBA)):
        data = png_of(gradient(), depth=depth, color=color)
        yield Upload(f"PNG of depth {depth} and colour type {color}", data, codes=REFUSED)
    yield Upload("palette that is missing", png_of(gradient()[..., 0], color=PALETTE), codes=ANYTHING)
    long = chunk(b"PLTE", bytes(3 * 5000))
    yield Upload("palette of 5000", png_of(gradient()[..., 0], color=PALETTE, before=long), codes=REFUSED)
    yield Upload("a wrong checksum", png_of(gradient()).replace(b"IHDR", b"IHDR"[::-1]), codes=REFUSED)
    bad = bytearray(png_of(gradient()))
    bad[29] ^= 1
    yield Upload("IHDR with a wrong checksum", bytes(bad), codes=REFUSED)
    for marker in (0xC3, 0xC5, 0xC7, 0xC9, 0xCA, 0xCB, 0xC8):
        data = saved(gradient(), "JPEG").replace(b"\xff\xc0", b"\xff" + bytes([marker]), 1)
        yield Upload(f"Huffman codes called SOF{marker - 0xC0}", data, codes=REFUSED if marker == 0xC8 else ANYTHING)


# Pictures that are too expensive to decode.


def bombs() -> Iterator[Upload]:
    for width, height in ((4097, 4096), (65535, 65535), (2**31 - 1, 2**31 - 1), (178956970, 2)):
        empty = png(width, height, b"")
        yield Upload(f"PNG header of {width}x{height}", empty, codes=TOO_LARGE)
    for width, height in ((16_000_000, 1), (1, 16_000_000), (65_536, 100)):
        yield Upload(f"PNG of {width}x{height}", png(width, height, bytes(16_000_000 + 1)), codes=TOO_LARGE)
    large = saved(flat((1, 2, 3)), "JPEG").replace(struct.pack(">HH", 64, 64), b"\xff\xff\xff\xff", 1)
    yield Upload("JPEG header of 65535x65535", large, codes=TOO_LARGE)
    extended = riff_chunk(b"VP8X", b"\x10\0\0\0" + b"\xff\x3f\0\xff\x3f\0")
    yield Upload(
        "WEBP header of 16384x16384", webp(extended, saved(gradient(), "WEBP")[12:]), codes=TOO_LARGE | INVALID
    )
    side = 4096
    clear = png(side, side, bytes(side * (4 * side + 1)), color=RGBA)
    yield Upload("16 megapixels of nothing as RGBA", clear, flat((255, 255, 255)))
    deep = png(side, side, (b"\4" + bytes(8 * side)) * side, depth=16, color=RGBA)
    yield Upload("16 megapixels of nothing as RGBA of 16 bits", deep, flat((255, 255, 255)))
    deep = png(side, side, (b"\4" + bytes(6 * side)) * side, depth=16, before=trns(0, 0, 0))
    yield Upload("16 megapixels of nothing as RGB of 16 bits", deep, flat((255, 255, 255)))
    for width, height in ((65_535, 256), (256, 65_535)):
        data = png(width, height, bytes(height * (width + 1)), color=GREY, before=chunk(b"eXIf", exif(6)))
        yield Upload(f"PNG of {width}x{height}, turned", data, flat((0, 0, 0)))
    red = flat((200, 30, 30), width=side, height=side)
    yield Upload("JPEG of 16 megapixels", saved(red, "JPEG", exif=b"Exif\0\0" + exif(8)), flat((200, 30, 30)), 8)
    progressive = saved(red, "JPEG", progressive=True, subsampling=2)
    yield Upload("progressive of 16 megapixels", progressive, flat((200, 30, 30)), 8)
    yield Upload("400 scans", with_scans(progressive, 400), codes=INVALID)
    yield Upload("13 scans of 16 megapixels", with_scans(progressive, 13), codes=INVALID)
    small_scans = with_scans(saved(gradient(), "JPEG", progressive=True), 60)
    yield Upload("60 scans of a small picture", small_scans, codes=frozenset({"picture"}))
    inks = saved(noise(1, 1, 4).repeat(side, 0).repeat(side, 1), "JPEG", mode="CMYK", progressive=True)
    yield Upload("progressive of 16 megapixels in four inks", inks, codes=TOO_LARGE)
    yield Upload("WEBP of 16 megapixels", saved(red, "WEBP"), codes=TOO_LARGE)
    yield Upload("WEBP of 8 megapixels", saved(red[:2896, :2896], "WEBP"), flat((200, 30, 30)))
    sides = struct.pack("<I", 1023 << 14 | 1023)
    yield Upload("65,536 codes in a WEBP", webp(riff_chunk(b"VP8L", b"\x2f" + sides + many_codes())), codes=INVALID)
    frame = saved(flat((0, 0, 0), width=1024, height=1024), "WEBP", lossless=False)[12:]
    canvas = riff_chunk(b"VP8X", b"\x10\0\0\0" + b"\xff\x03\0" * 2)
    alpha = riff_chunk(b"ALPH", b"\1" + many_codes())
    yield Upload("65,536 codes in a WEBP's alpha", webp(canvas, alpha, frame), codes=INVALID)
    repeated = b"\x6d\xdb\xb6" * 1_000_000  # the bits 1 and 10 repeated: another transform, subtract green
    yield Upload("8 million transforms in a WEBP", webp(riff_chunk(b"VP8L", b"\x2f" + sides + repeated)), codes=INVALID)
    empty_chunks = chunk(b"IDAT", b"") * 100_000
    yield Upload("100,000 empty chunks of pixels", png_of(gradient(), before=empty_chunks), codes=INVALID)
    yield Upload("100,000 empty chunks of text", png_of(gradient(), after=chunk(b"tEXt", b"") * 100_000), codes=INVALID)
    yield Upload("100,000 comments", jpeg_with(segment(0xFE, b"") * 100_000), codes=INVALID)
    tables = segment(0xDB, (b"\0" + b"\1" * 64) * 1000) * 100
    yield Upload("100,000 tables", jpeg_with(tables), codes=INVALID)
    yield Upload("100,000 chunks of WEBP", webp(riff_chunk(b"abcd", b"") * 100_000), codes=INVALID)
    # A fast zlib reads it within the limit.
    yield Upload("nearly three million empty blocks in a PNG", deflate_blocks(2_800_000), codes=INVALID | {"picture"})


def many_codes(side: int = 1024) -> bytes:
    """A lossless stream with prefix codes for each block of 4x4 pixels; libwebp builds tables for each."""
    one_symbol = "1000"
    every_byte = "0" + f"{12 - 4:04b}"[::-1]  # codes of 8 bits, from two code lengths: 8 and a run of zeros
    every_byte += "".join("100" if symbol in {8, 18} else "000" for symbol in (17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8))
    every_byte += "0" + "0" * 256
    no_lengths = "1" + f"{24 - 11:07b}"[::-1]
    bits = "0" + "0" + "1" + "000" + "0"  # no transforms or cache; code groups of 4x4 blocks, stored without a cache
    bits += every_byte + no_lengths + every_byte + one_symbol * 3
    blocks = (side // 4) ** 2
    bits += "".join(f"{block & 255:08b}{block >> 8:08b}" for block in range(blocks))
    bits += one_symbol * 5 * blocks
    return np.packbits(np.frombuffer(bits.encode(), np.uint8) - ord("0"), bitorder="little").tobytes() + bytes(8)


def with_scans(progressive: bytes, scans: int) -> bytes:
    """The JPEG with its last scan repeated until it has this many scans."""
    last = progressive.rindex(b"\xff\xc4")
    repeats = scans - progressive.count(b"\xff\xda")
    return progressive[:-2] + progressive[last:-2] * repeats + progressive[-2:]


def deflate_blocks(number: int) -> bytes:
    """A PNG whose pixel data begins with blocks that contain only their code tables."""
    bits = (
        "001" + "00000" + "00000" + "0111"
    )  # not the last block; dynamic codes, 257 + 1 of them; 18 lengths of code lengths
    order = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1]
    bits += "".join("100" if symbol in {1, 18} else "000" for symbol in order)
    bits += "1" + "1111111" + "1" + f"{256 - 138 - 11:07b}"[::-1] + "0" + "0"  # 138 + 118 zeros; two codes of length 1
    bits += "0"  # end of block
    eight = np.packbits(np.array([int(bit) for bit in bits * 8], np.uint8), bitorder="little").tobytes()
    rows = bytes(HEIGHT * (1 + 3 * WIDTH))
    packer = zlib.compressobj(wbits=-15)
    packed = b"\x78\x01" + eight * (number // 8) + packer.compress(rows) + packer.flush()
    packed += struct.pack(">I", zlib.adler32(rows))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, RGB, 0, 0, 0))
    return PNG_MAGIC + header + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


# Random changes.


def mutate(seeds: Sequence[bytes], chance: random.Random) -> bytes:
    """One of the seeds, damaged one to four times."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(1, 4)):
        _harm(data, seeds, chance)
    return bytes(data[: 1 << 20])


def _harm(data: bytearray, seeds: Sequence[bytes], chance: random.Random) -> None:
    if not data:
        data.extend(chance.choice(seeds))
    at = chance.randrange(len(data))
    match chance.randrange(8):
        case 0:
            for _ in range(chance.randint(1, 8)):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        case 1:  # the place of lengths, sizes and tables
            data[at % 200] = chance.choice([0, 1, 127, 128, 255, chance.randrange(256)])
        case 2:
            numbers = (0, 1, 1 << 24, (1 << 31) - 1, (1 << 32) - 1)
            data[at : at + 4] = struct.pack(">I", chance.choice(numbers))
        case 3:
            del data[at:]
        case 4:
            del data[at : at + chance.randint(1, 64)]
        case 5:
            piece = data[at : at + chance.randint(1, 512)]
            data[at:at] = piece * chance.randint(1, 50)
        case 6:
            other = chance.choice(seeds)
            data[at:] = other[chance.randrange(len(other)) :]
        case _:
            _resize(data, chance)


def _resize(data: bytearray, chance: random.Random) -> None:
    """Give the picture another size. A PNG also gets another pixel format and a correct checksum."""
    if data.startswith(PNG_MAGIC):
        depth, color = chance.choice([1, 2, 4, 8, 16]), chance.choice([GREY, RGB, PALETTE, GREY_ALPHA, RGBA])
        sides = (chance.choice([0, 1, 63, 64, 4096, 65535, 1 << 31, chance.randrange(1 << 32)]) for _ in range(2))
        data[8:33] = chunk(b"IHDR", struct.pack(">IIBBBBB", *sides, depth, color, 0, 0, chance.randrange(2)))
        return
    for marker in (b"\xff\xc0", b"\xff\xc2", b"VP8X", b"VP8L", b"VP8 "):
        if (found := data.find(marker)) >= 0:
            at = found + chance.randint(2, 16)
            data[at : at + 2] = chance.randbytes(2)
