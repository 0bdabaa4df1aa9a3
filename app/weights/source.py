"""The names that `TURBO_MODEL` knows: `demo`, `fake`, a folder, and a repository on one of two hubs."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from app.errors import WeightsError

_NAME = r"[A-Za-z0-9_][\w.-]*"
_REPOSITORY = re.compile(
    rf"(?P<hub>openmind|hf):(?P<repo_id>{_NAME}/{_NAME})(?:@(?P<revision>{_NAME}(?:/{_NAME})*))?", re.ASCII
)
_FAKE = re.compile(r"fake(?::(?P<seconds>\d{1,3}(?:\.\d{1,6})?))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class DemoSource:
    """The small model that comes with the package."""

    name: ClassVar[str] = "demo"


@dataclass(frozen=True, slots=True)
class FakeSource:
    """No weights: the seam's fake, of which each picture takes `inference_s` seconds."""

    inference_s: float = 0.0


@dataclass(frozen=True, slots=True)
class FolderSource:
    """A folder of the operator's. It is looked through before it is loaded, and never changed."""

    path: Path

    @property
    def name(self) -> str:
        """The folder's own name: paths are the operator's business, not the clients'."""
        return self.path.resolve().name


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository on openMind Hub (modelers.cn) or on the Hugging Face Hub, at a branch, tag or commit."""

    hub: Literal["openmind", "hf"]
    repo_id: str
    revision: str = "main"

    def __str__(self) -> str:
        """Spell the source as TURBO_MODEL does, with its revision."""
        return f"{self.hub}:{self.repo_id}@{self.revision}"

    @property
    def name(self) -> str:
        """The repository as OWNER/NAME."""
        return self.repo_id


WeightsSource = DemoSource | FolderSource | HubSource


def parse_source(text: str) -> WeightsSource | FakeSource:
    """Read a weights source from the text of `TURBO_MODEL`.

    Raises:
        WeightsError: The text looks like a hub's name and is not one.
    """
    if text == "demo":
        return DemoSource()
    if match := _FAKE.fullmatch(text):
        return FakeSource(float(match["seconds"] or 0))
    if match := _REPOSITORY.fullmatch(text):
        hub: Literal["openmind", "hf"] = "openmind" if match["hub"] == "openmind" else "hf"
        return HubSource(hub, match["repo_id"], match["revision"] or "main")
    if text.startswith(("openmind:", "hf:")):
        raise WeightsError(f"TURBO_MODEL={text} is not HUB:OWNER/NAME[@REVISION].")
    try:
        return FolderSource(Path(text).expanduser())
    except RuntimeError as error:
        raise WeightsError(f"TURBO_MODEL={text}: {error}") from error
