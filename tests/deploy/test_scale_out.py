"""The capacity plan of docs/scale-out.md: its result follows from its numbers."""

import subprocess
import sys

from tests.documents.markdown import document


def test_the_result_of_the_worked_example_is_what_its_arithmetic_prints() -> None:
    (section,) = [one for one in document("docs/scale-out.md").sections if one.title.startswith("Example: ")]
    arithmetic, result = section.blocks
    assert (arithmetic.language, result.language) == ("python", "text")
    assert subprocess.check_output([sys.executable, "-c", arithmetic.text], text=True) == result.text
