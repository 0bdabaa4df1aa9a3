"""RESULTS.md: one section for each scope, and the parts that sections are made of."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.compare.results import Results

NONE = "–"  # noqa: RUF001 - an empty cell

_TITLES = {"nano": "Nano SDXL", "full": "SDXL-Turbo's size"}
_HEAD = """# Results

Written by `python -m benchmarks.compare`; [README.md](README.md) explains the measurements. Each scope has its own run.
"""


@dataclass(frozen=True, slots=True)
class Target:
    """One target and its measured value; None if it was not measured."""

    text: str
    value: float | None
    bound: float
    at_most: bool
    shown: str = ""

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        return "met" if (self.value <= self.bound if self.at_most else self.value >= self.bound) else "**missed**"


def with_section(document: str, scope: str, body: str) -> str:
    """Return RESULTS.md with this scope's section replaced. The other scope's section stays as it is."""
    _, *parts = re.split(r"^## (.*)\n", document, flags=re.MULTILINE)
    sections = dict(zip(parts[::2], parts[1::2], strict=True)) | {_TITLES[scope]: body}
    texts = [f"## {title}\n\n{sections[title].strip()}\n" for title in _TITLES.values() if title in sections]
    return "\n".join([_HEAD, *texts])


def opening(results: Results) -> Iterator[str]:
    """Yield the first lines of a section: when, where and how it was measured."""
    yield f"{results.date}; {', '.join(f'{name} {value}' for name, value in results.machine.items())}."
    yield f"{', '.join(f'{name} {value}' for name, value in results.options.items())}."
    if (others := results.others_share()) is not None:
        yield f"During the measurements all other processes on the machine used {100 * others:.0f} % of its cores."


def head(title: str, *lines: str) -> Iterator[str]:
    """Yield the title of a part of a section, and its first paragraph."""
    yield from (f"### {title}", "", *lines, "")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a table."""
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', ' ') for cell in row)} |"
    yield ""


def target_table(targets: Sequence[Target]) -> Iterator[str]:
    """Yield a table of targets with their verdicts."""
    yield from table(
        ["target", "bound", "measured", ""],
        [
            [
                target.text,
                f"{'≤' if target.at_most else '≥'} {target.bound:g}",
                NONE if target.value is None else f"{target.value:.2f}",
                target.verdict,
            ]
            for target in targets
        ],
    )


def over(one: float | None, other: float | None) -> float | None:
    """Return the ratio of two figures; None if one of them is missing."""
    return one / other if one is not None and other else None
