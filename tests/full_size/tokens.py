# ruff: noqa: RUF001 - these prompts are about such characters

"""CLIP's original tokenizer, from open_clip_torch, and prompts to compare the service's tokenizers by."""

import functools
import importlib.metadata
import importlib.util
from typing import Any

PROMPTS = (
    "",
    "a photo of a cat",
    "UPPER Case, it's the ARTIST'S, we'll",
    "2 cats, 10 dogs & 3.5 birds; 1234567890",
    "  spaces   and\ttabs\nlines  a\u00a0b",
    "naïve café ¿qué? ẞtraße İstanbul",
    "e\u0301 with a combining accent, ſ, ①②½",
    "猫と犬 한국어",
    "кошка Ω Ω",
    "قطة हिन्दी",
    "🐱👩\u200d👩\u200d👧 zero\u200bwidth",
    "#hash @at $100 50% a_b-c/d\\e ... a…b",
    "(masterpiece:1.2), [x] C++ / C# e.g. 3/4",
    "x" * 300,
    "word " * 75,
    "word " * 76,
    "лошадь 🐴 " * 60,
)

CLEANED = (
    "don’t “quote”",
    "a &amp; b &lt;tag&gt;",
    "ﬁne ligature, ＦＵＬＬ width",
    "schÃ¶n",
    "\ufeffa byte order mark",
    "a\x1b[0m terminal",
    "<|startoftext|> a <|endoftext|> b",
)
"""Prompts whose tokens differ. open_clip repairs the text by ftfy and `html.unescape` first, and takes the marks for
text; diffusers, and so the service, does neither."""

MARKED = ("!", "a cat!", "wow!!! a cat!")
"""Prompts that only `tokenizer_2` takes differently: there SDXL's repository makes `!` the padding token, so that each
is the token 0, also inside a prompt."""


@functools.cache
def _open_clip() -> Any:
    """open_clip's module of tokenizers. The package is not imported, because it needs torchvision."""
    package = importlib.metadata.distribution("open_clip_torch")
    spec = importlib.util.spec_from_file_location(
        "open_clip_tokenizer", str(package.locate_file("open_clip/tokenizer.py"))
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()


def original_tokens(prompt: str) -> list[int]:
    """The prompt's ids with their marks, before a cut."""
    tokenizer = _open_clip()
    return [tokenizer.sot_token_id, *tokenizer.encode(prompt), tokenizer.eot_token_id]


def original_input(prompt: str) -> list[int]:
    """The 77 ids that the text encoder gets: cut, or padded with 0."""
    ids: list[int] = _open_clip()([prompt])[0].tolist()
    return ids
