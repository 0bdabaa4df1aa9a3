"""The picture of the rooms matches the code."""

import ast
import re
from pathlib import Path

from tools import architecture


def test_the_picture_in_the_documents_is_the_one_that_the_rooms_give() -> None:
    assert architecture.OUTPUT.read_text(encoding="utf-8") == architecture.draw(), "run `make docs`"


def test_every_room_with_a_purpose_of_its_own_is_in_the_picture() -> None:
    drawn = {room for row in architecture.ROOMS for room in row}
    app = architecture.ROOT / "app"
    packages = {file.parent.relative_to(app).as_posix() for file in app.rglob("__init__.py")} - {"."}
    # Requests for pictures do not use these.
    assert packages - drawn == {"api", "api/operations", "api/playground", "cli/tuning"}
    assert drawn <= packages


def test_every_package_says_in_a_few_sentences_what_belongs_in_it() -> None:
    for file in Path(architecture.ROOT, "app").rglob("__init__.py"):
        purpose = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        sentences = len(re.findall(r"\.(?=\s|$)", purpose))
        assert file.parent.name == "app" or 2 <= sentences <= 5, file
