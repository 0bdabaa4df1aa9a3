"""Requests pictures from a running service, and puts them on one sheet with the prompt under each."""

import io
import json
import textwrap
import urllib.request
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

PROMPTS = (
    "A cinematic shot of a baby racoon wearing an intricate italian priest robe.",
    "a fox with a blue hat on a green background",
    "a panda wearing a red scarf",
    "a cat with a crown on a purple background",
    "mountains and sea at sunset",
    "a house and trees in the snow at night",
    "mountains, trees, sunny day, pastel colours",
    "",
    "a large red heart on a pink background",
    "a small yellow star on blue, top right",
    "a red square left of a green hexagon",
    "a white ring above an orange triangle on a black background",
)
_SIDE, _TEXT, _COLUMNS = 256, 62, 4


def draw_contact_sheet(url: str, path: Path) -> None:
    """Make each prompt's picture in one step with seed 1, and write the sheet as PNG."""
    rows = -(-len(PROMPTS) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * _SIDE, rows * (_SIDE + _TEXT)), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    for i, prompt in enumerate(PROMPTS):
        x, y = i % _COLUMNS * _SIDE, i // _COLUMNS * (_SIDE + _TEXT)
        sheet.paste(_ask(url, prompt).resize((_SIDE, _SIDE), Image.Resampling.BOX), (x, y))
        text = textwrap.fill(prompt or "(the empty prompt)", 38)
        pen.multiline_text((x + 6, y + _SIDE + 4), text, fill="black", font=font)
    sheet.save(path, optimize=True)


def _ask(url: str, prompt: str) -> Image.Image:
    body = json.dumps({"prompt": prompt, "seed": 1}).encode()
    request = urllib.request.Request(f"{url}/txt2img", body, {"content-type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request) as response:  # noqa: S310 - the operator's own service, both times
        return Image.open(io.BytesIO(response.read()))
