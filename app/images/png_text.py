"""Reads the parameters that a PNG's text has: nothing else of the file, and no more than 64 KiB."""

from app.images.containers import text_parts

_KEYWORD = b"parameters"
_MAX_BYTES = 1 << 16


def read_parameters(data: bytes | memoryview) -> str | None:
    """Return the text `parameters` of a PNG, as Stable Diffusion WebUI and this service write it; None if it has none.

    Blocks; call it in a thread. A compressed text is not read.

    Raises:
        UnsupportedImageError: The bytes are not a PNG.
        InvalidImageError: The file has too many parts.
    """
    for name, content in text_parts(data):
        keyword, _, text = bytes(content[:_MAX_BYTES]).partition(b"\0")
        if keyword != _KEYWORD:
            continue
        if name == b"tEXt":
            return text.decode("latin-1")
        if text[:1] == b"\0":  # iTXt, not compressed: flag, method, language, translated keyword, text
            return text[2:].split(b"\0", 2)[-1].decode("utf-8", "replace")
    return None
