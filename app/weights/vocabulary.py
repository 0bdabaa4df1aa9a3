"""CLIP's vocabulary, for models in a single file: the tokens and the merges of its byte-pair encoding."""

import gzip
import hashlib
import zlib
from collections.abc import Iterable
from pathlib import Path

from app.errors import WeightsError

START, END = "<|startoftext|>", "<|endoftext|>"

_MERGES = Path(__file__).parent / "sdxl_turbo" / "merges.txt.gz"
_SHA256 = "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a"
"""Of the unpacked file, whose merges are those of the vocabulary in open_clip_torch 3.3."""


def read_merges(path: Path = _MERGES) -> list[tuple[str, str]]:
    """Return the pairs of tokens that are merged, most frequent first.

    Raises:
        WeightsError: The file of the package is damaged.
    """
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error):
        data = b""
    if hashlib.sha256(data).hexdigest() != _SHA256:
        raise WeightsError(f"{path} is damaged. Install the service again.")
    pairs = (line.split() for line in data.decode().splitlines()[1:])  # the first line is the format's version
    return [(first, second) for first, second in pairs]


def words(merges: Iterable[tuple[str, str]] = ()) -> list[str]:
    """Return CLIP's tokens: every byte, within a word and at its end; the merged tokens; the start and end tokens."""
    alphabet = _byte_alphabet()
    return [*alphabet, *(f"{letter}</w>" for letter in alphabet), *map("".join, merges), START, END]


def _byte_alphabet() -> list[str]:
    """Return the 256 letters that stand for bytes in byte-level BPE (GPT-2): U+0100 and up for unprintable bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unprintable = 256 - len(printable)
    return [*map(chr, printable), *(chr(0x100 + i) for i in range(unprintable))]
