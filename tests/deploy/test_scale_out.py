"""The capacity plan of docs/scale-out.md: its results follow from its numbers."""

import subprocess
import sys

from tests.documents.markdown import document


def test_the_results_of_the_plan_are_what_its_arithmetic_prints() -> None:
    (section,) = [one for one in document("docs/scale-out.md").sections if one.title.startswith("On paper: ")]
    blocks = section.blocks
    assert [block.language for block in blocks] == ["python", "text", "python", "text"]
    for arithmetic, result in zip(blocks[::2], blocks[1::2], strict=True):
        assert subprocess.check_output([sys.executable, "-c", arithmetic.text], text=True) == result.text
