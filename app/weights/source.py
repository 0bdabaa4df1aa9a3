"""The values of `TURBO_MODEL` and `TURBO_VAE`: a folder or a hub's repository; for the model also `demo` and `fake`."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, cast

from app.errors import WeightsError

HubName = Literal["openmind", "hf"]

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
    """No weights: the fake pipeline, which takes `inference_s` seconds for each picture."""

    inference_s: float = 0.0


@dataclass(frozen=True, slots=True)
class FolderSource:
    """The operator's own folder. It is checked before loading and never changed."""

    path: Path

    @property
    def name(self) -> str:
        """The folder's name without its path, because clients see it."""
        return self.path.resolve().name


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository on openMind Hub (modelers.cn) or on the Hugging Face Hub, at a branch, tag or commit."""

    hub: HubName
    repo_id: str
    revision: str = "main"

    def __str__(self) -> str:
        """Return the setting's value, with the revision."""
        return f"{self.hub}:{self.repo_id}@{self.revision}"

    @property
    def name(self) -> str:
        return self.repo_id


WeightsSource = DemoSource | FolderSource | HubSource


def parse_source(text: str) -> WeightsSource | FakeSource:
    """Read a weights source from the text of `TURBO_MODEL`.

    Raises:
        WeightsError: The text begins with the name of a hub, and the rest is not a repository.
    """
    if text == "demo":
        return DemoSource()
    if match := _FAKE.fullmatch(text):
        return FakeSource(float(match["seconds"] or 0))
    return _parse_place(text, setting="TURBO_MODEL")


def parse_vae(text: str) -> FolderSource | HubSource | None:
    """Read a VAE's source from the text of `TURBO_VAE`; None, the model's own VAE, if the text is empty.

    Raises:
        WeightsError: The text begins with the name of a hub, and the rest is not a repository.
    """
    return _parse_place(text, setting="TURBO_VAE") if text else None


def _parse_place(text: str, *, setting: str) -> FolderSource | HubSource:
    if match := _REPOSITORY.fullmatch(text):
        return HubSource(cast("HubName", match["hub"]), match["repo_id"], match["revision"] or "main")
    if text.startswith(("openmind:", "hf:")):
        raise WeightsError(f"{setting}={text} is not HUB:OWNER/NAME[@REVISION].")
    try:
        return FolderSource(Path(text).expanduser())
    except RuntimeError as error:
        raise WeightsError(f"{setting}={text}: {error}") from error
