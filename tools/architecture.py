"""Draws docs/architecture.svg: the rooms of app/, from their docstrings, and the path of one request through them."""

import ast
import html
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "docs" / "architecture.svg"

ROOMS: Sequence[Sequence[str]] = (
    ("cli",),
    ("server",),
    ("api/gate",),
    ("api/native", "api/openai", "api/hugging_face"),
    ("api/sdapi", "api/mcp"),
    ("mcp", "observability"),
    ("inference",),
    ("modes",),
    ("images",),
    ("pipelines",),
    ("pipelines/networks", "pipelines/npu"),
    ("weights",),
)
"""Rows of the picture. Imports point down."""

STEPS = (
    (1, "limit the connection and its header"),
    (2, "request id, origin, key, type, capacity, rate; then read the body"),
    (3, "check the fields: wire model to params"),
    (6, "generation takes a place and has the upload decoded; engine and batching_lock wait for the turn"),
    (8, "decode the upload in a codec thread"),
    (9, "ONE call on the device thread makes the pictures of the whole batch"),
    (8, "encode the files in codec threads; the device is free"),
    (3, "headers; a bare picture, or JSON"),
)
"""The path of a request: a row of `ROOMS`, and the work in it."""

_WIDTH, _ROW, _GAP, _TOP = 1180, 66, 10, 70
_ROOMS_WIDTH, _STEPS_LEFT = 560, 640
_SVG = "http://www.w3.org/2000/svg"
_TITLE = "The packages of app/, and the way of one request through them"

_STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328; }
  .name { font-weight: 600; font-size: 15px; }
  .head { font-weight: 600; font-size: 16px; }
  .page { fill: #ffffff; }
  .room { fill: #eef4fb; stroke: #7a97b8; }
  .step { fill: #fdf6e7; stroke: #c19a3d; }
  .way { fill: none; stroke: #c19a3d; stroke-width: 2; }
  .arrow { fill: #c19a3d; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .page { fill: #0d1117; }
    .room { fill: #17222f; stroke: #4d6a8c; }
    .step { fill: #2b2410; stroke: #a8842f; }
  }
"""


def purpose(room: str) -> str:
    """Return the first sentence of a room's docstring."""
    text = ast.get_docstring(ast.parse((ROOT / "app" / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    return text.splitlines()[0].replace("`", "")


def draw() -> str:
    """Return the picture as SVG."""
    height = _TOP + len(ROOMS) * (_ROW + _GAP) + 20
    return "\n".join(
        [
            f'<svg xmlns="{_SVG}" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{_TITLE}">',
            f"<style>{_STYLE}</style>",
            f'<rect class="page" width="{_WIDTH}" height="{height}" rx="8"/>',
            _text(20, 30, "The packages of app/: imports point down", "head"),
            _text(_STEPS_LEFT, 30, "POST /txt2img, /img2img or /inpaint, there and back", "head"),
            _text(20, 52, "main puts the parts together; settings and errors are read by all"),
            *_rooms(),
            *_steps(),
            "</svg>\n",
        ]
    )


def _rooms() -> Iterator[str]:
    for row, rooms in enumerate(ROOMS):
        width = (_ROOMS_WIDTH - _GAP * (len(rooms) - 1)) / len(rooms)
        for column, room in enumerate(rooms):
            x, y = 20 + column * (width + _GAP), _TOP + row * (_ROW + _GAP)
            yield f'<rect class="room" x="{x:g}" y="{y}" width="{width:g}" height="{_ROW}" rx="6"/>'
            yield _text(x + 10, y + 22, room, "name")
            for line, words in enumerate(_wrapped(purpose(room), int(width / 7.2))):
                yield _text(x + 10, y + 39 + 15 * line, words)


def _steps() -> Iterator[str]:
    """Draw the steps beside their rooms. In each row, the way down is on the left and the way back on the right."""
    seen: dict[int, int] = {}
    lowest = max(row for row, _ in STEPS)
    centres = []
    for number, (row, words) in enumerate(STEPS, start=1):
        side = seen.get(row, 0)
        seen[row] = side + 1
        twice = sum(other == row for other, _ in STEPS) > 1
        width = 245 if twice else 500 if row == lowest else 400  # leave room for the way back
        x, y = _STEPS_LEFT + side * 255, _TOP + row * (_ROW + _GAP) + 8
        centres.append((x + (60 if not twice or side == 0 else width - 60), y))
        yield f'<rect class="step" x="{x}" y="{y}" width="{width}" height="{_ROW - 16}" rx="6"/>'
        for line, part in enumerate(_wrapped(f"{number}. {words}", int(width / 7.2))):
            yield _text(x + 10, y + 19 + 15 * line, part)
    for (x, y), (next_x, next_y) in itertools.pairwise(centres):
        down = next_y > y
        start, end = (y + _ROW - 16, next_y - 8) if down else (y, next_y + _ROW - 16 + 8)
        column = max(x, next_x)
        yield f'<path class="way" d="M{column} {start}V{end}"/>'
        yield f'<path class="arrow" d="M{column - 5} {end}h10l-5 {8 if down else -8}z"/>'


def _wrapped(text: str, characters: int) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and len(f"{lines[-1]} {word}") > characters:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return lines


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    styled = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}"{styled}>{html.escape(words)}</text>'


if __name__ == "__main__":
    OUTPUT.write_text(draw(), encoding="utf-8")
