"""Where weights are on this disk: the demo model in the package, a folder of the operator's, or the weights folder.

In the weights folder, beside each set of weights, lies a record with every file's size and SHA-256. `pull` writes it
last, so that a record means a finished and verified download; `locate` compares the files with it before every load.
"""

import fcntl
import hashlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from app.errors import WeightsError
from app.weights.hub import Download, download
from app.weights.layout import check_layout
from app.weights.source import DemoSource, FolderSource, HubSource, WeightsSource

_log = logging.getLogger(__name__)

_DEMO_FOLDER = Path(__file__).parent / "demo"


class _FileRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    size_bytes: int
    sha256: str


class _Record(BaseModel):
    """What was pulled: the folder, relative to the weights folder, and its files."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    folder: str
    files: Annotated[dict[str, _FileRecord], Field(min_length=1)]


def locate(source: WeightsSource, weights_dir: Path) -> Path:
    """Return the folder of weights that are on this disk, checked. Touches no network.

    Raises:
        WeightsError: They are not here, or not what was pulled; the text names the file and what to do.
    """
    try:
        if isinstance(source, DemoSource):
            folder = _DEMO_FOLDER
        elif isinstance(source, FolderSource):
            folder = source.path
        else:
            folder = _verified(_record_path(source, weights_dir), weights_dir)
        check_layout(folder)
    except OSError as error:
        raise WeightsError(f"{error.filename} cannot be read: {error.strerror}.") from error
    return folder


def pull(source: WeightsSource, weights_dir: Path) -> Path:
    """Bring weights to this disk, verify them, and return their folder.

    Weights that are here and pass verification stay, and nothing is asked of the network: a restart must not change
    the model. To move on, pin another revision.

    Raises:
        WeightsError: They cannot be had.
    """
    try:
        return locate(source, weights_dir)
    except WeightsError:
        if not isinstance(source, HubSource):
            raise
    try:
        weights_dir.mkdir(parents=True, exist_ok=True)
        with _alone_in(weights_dir):
            return _pull_alone(source, weights_dir)
    except OSError as error:
        raise WeightsError(f"TURBO_WEIGHTS_DIR={weights_dir} cannot be written: {error.strerror or error}.") from error


@contextmanager
def _alone_in(weights_dir: Path) -> Iterator[None]:
    """Wait until no other process pulls into the folder, and keep others out."""
    with (weights_dir / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("waiting for another process that pulls into %s", weights_dir)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _pull_alone(source: HubSource, weights_dir: Path) -> Path:
    with suppress(WeightsError):
        return locate(source, weights_dir)  # another process has pulled meanwhile
    done = download(source, weights_dir)
    check_layout(done.folder)
    _write_record(_record_path(source, weights_dir), done, weights_dir)
    return done.folder


def _record_path(source: HubSource, weights_dir: Path) -> Path:
    name = f"{source.hub}--{source.repo_id}--{source.revision}".replace("/", "--")
    return weights_dir / f"{name}.json"


def _write_record(path: Path, done: Download, weights_dir: Path) -> None:
    record = _Record(
        folder=str(done.folder.resolve().relative_to(weights_dir.resolve())),
        files={
            name: _FileRecord(size_bytes=(done.folder / name).stat().st_size, sha256=sha256)
            for name, sha256 in sorted(done.sha256.items())
        },
    )
    scratch = path.with_suffix(".tmp")
    scratch.write_text(record.model_dump_json(indent=1), encoding="utf-8")
    scratch.replace(path)


def _read_record(path: Path) -> _Record:
    try:
        return _Record.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(
            f"The weights are not in {path.parent}. Run `python -m app pull` with the same TURBO_MODEL and "
            "TURBO_WEIGHTS_DIR first."
        ) from error
    except ValueError as error:
        raise WeightsError(f"{path} is damaged. Delete it and run `python -m app pull`.") from error


def _verified(record_path: Path, weights_dir: Path) -> Path:
    """Return the record's folder once every file in it has the size and hash that it was pulled with."""
    record = _read_record(record_path)
    folder = weights_dir / record.folder
    paths = [folder / name for name in record.files]
    for path, expected in zip(paths, record.files.values(), strict=True):
        if not path.is_file():
            raise WeightsError(f"{path} is missing. Run `python -m app pull`.")
        if (size_bytes := path.stat().st_size) != expected.size_bytes:
            raise WeightsError(
                f"{path} is damaged: it has {size_bytes} bytes where {expected.size_bytes} belong. "
                "Run `python -m app pull`."
            )
    for path, digest, expected in zip(paths, _sha256_of(paths), record.files.values(), strict=True):
        if digest != expected.sha256:
            raise WeightsError(
                f"{path} is damaged: its SHA-256 is not the one that it was pulled with. Run `python -m app pull`."
            )
    return folder


def _sha256_of(paths: list[Path]) -> list[str]:
    """Hash several files at once; hashlib releases the GIL."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        return list(pool.map(_sha256, paths))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
