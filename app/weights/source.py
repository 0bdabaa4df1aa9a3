"""The values of `TURBO_MODEL` and `TURBO_VAE`: a folder, a file or a hub's repository; also `demo` and `fake`."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal, cast

from app.errors import WeightsError

HubName = Literal["openmind", "hf"]

SUFFIX = ".safetensors"
"""How the name of a file of weights ends. Pickles (.ckpt, .bin, .pt) can run code, so the service never reads them."""

_NAME = r"[A-Za-z0-9_][\w.-]*"
_PATH = rf"{_NAME}(?:/{_NAME})*"
REPOSITORY = re.compile(
    rf"(?P<hub>openmind|hf):(?P<repo_id>{_NAME}/{_NAME})(?::(?P<file>{_PATH}\{SUFFIX}))?(?:@(?P<revision>{_PATH}))?",
    re.ASCII,
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
class LocalSource:
    """The operator's own folder or file. It is checked before loading and never changed."""

    path: Path

    @property
    def name(self) -> str:
        """The name without its path, because clients see it."""
        path = self.path if self.path.name not in ("", "..") else self.path.resolve()
        return path.name.removesuffix(SUFFIX)


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository on openMind Hub (modelers.cn) or on the Hugging Face Hub, at a branch, tag or commit.

    `file` is the path of one file in it that has all weights. None means the repository's files in diffusers' format.
    """

    hub: HubName
    repo_id: str
    revision: str = "main"
    file: str | None = None

    def __str__(self) -> str:
        """Return the setting's value, with the revision."""
        file = f":{self.file}" if self.file else ""
        return f"{self.hub}:{self.repo_id}{file}@{self.revision}"

    @property
    def name(self) -> str:
        return PurePosixPath(self.file).name.removesuffix(SUFFIX) if self.file else self.repo_id


WeightsSource = DemoSource | LocalSource | HubSource


def parse_source(text: str) -> WeightsSource | FakeSource:
    """Read a weights source from the text of `TURBO_MODEL`.

    Raises:
        WeightsError: The text begins with the name of a hub, and the rest is not a repository.
    """
    if text == "demo":
        return DemoSource()
    if match := _FAKE.fullmatch(text):
        return FakeSource(float(match["seconds"] or 0))
    return parse_place(text, setting="TURBO_MODEL")


def parse_vae(text: str) -> LocalSource | HubSource | None:
    """Read a VAE's source from the text of `TURBO_VAE`; None, the model's own VAE, if the text is empty.

    Raises:
        WeightsError: The text begins with the name of a hub, and the rest is not a repository. Or it names one file.
    """
    if not text:
        return None
    source = parse_place(text, setting="TURBO_VAE")
    if text.endswith(SUFFIX) or (isinstance(source, HubSource) and source.file):
        raise WeightsError(f"TURBO_VAE={text} names a file. Name a folder or a repository in diffusers' format.")
    return source


def parse_place(text: str, *, setting: str) -> LocalSource | HubSource:
    """Read a folder, a file or a repository from a part of a setting's text.

    Raises:
        WeightsError: The text begins with the name of a hub, and the rest is not a repository.
    """
    if match := REPOSITORY.fullmatch(text):
        return HubSource(cast("HubName", match["hub"]), match["repo_id"], match["revision"] or "main", match["file"])
    if text.startswith(("openmind:", "hf:")):
        file = "" if setting == "TURBO_VAE" else f"[:FILE{SUFFIX}]"
        raise WeightsError(f"{setting}={text} is not HUB:OWNER/NAME{file}[@REVISION].")
    try:
        return LocalSource(Path(text).expanduser())
    except RuntimeError as error:
        raise WeightsError(f"{setting}={text}: {error}") from error
