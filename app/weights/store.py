"""Weights on the disk: the demo model in the package, the operator's own folder or file, or the weights folder.

In the weights folder, each set of weights has a record with the size and SHA-256 of every file. `pull` writes it last,
so a record means a complete and verified download. Every start compares the files with the record: `locate` all sizes
and the hashes of small files, the loader the hashes of the others while it reads them.
"""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from app.errors import WeightsError, program
from app.weights.digests import Digests
from app.weights.download import Download, download
from app.weights.layout import MODEL, Layout
from app.weights.source import SUFFIX, DemoSource, HubSource, LocalSource, WeightsSource

_log = logging.getLogger(__name__)

_DEMO_FOLDER = Path(__file__).parent / "demo"


class _FileRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    size_bytes: int
    sha256: str


class _Record(BaseModel):
    """A download: its folder, relative to the weights folder, and its files."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    folder: str
    files: Annotated[dict[str, _FileRecord], Field(min_length=1)]


def locate(source: WeightsSource, weights_dir: Path, layout: Layout = MODEL, *, digests: Digests | None = None) -> Path:
    """Check weights on this disk and return their folder or file. Does not use the network.

    By default all files are hashed here. With `digests`, the safetensors files are not: their expected hashes are noted
    in `digests`, and the reader that loads them adds the hashes that it finds.

    Raises:
        WeightsError: A file is missing or has changed. The text names the file and says what to do.
    """
    expected = digests or Digests()
    try:
        if isinstance(source, DemoSource):
            place = _DEMO_FOLDER
        elif isinstance(source, LocalSource):
            place = source.path
        else:
            place = _place_in(_recorded(source, weights_dir, layout, expected), source)
        if digests is None:
            expected.check()
        with expected.explaining_errors():
            layout.check(place)
    except OSError as error:
        raise WeightsError(f"{error.filename} cannot be read: {error.strerror}.") from error
    return place


def _place_in(folder: Path, source: HubSource) -> Path:
    return folder / source.file if source.file else folder


def pull(source: WeightsSource, weights_dir: Path, layout: Layout = MODEL) -> Path:
    """Download weights if they are not on this disk, verify them, and return their folder or file.

    Because a restart must not change the model, verified weights stay, and the network is not used. For newer weights,
    pin another revision.

    Raises:
        WeightsError: The weights cannot be downloaded or verified.
    """
    try:
        return locate(source, weights_dir, layout)
    except WeightsError:
        if not isinstance(source, HubSource):
            raise
    try:
        weights_dir.mkdir(parents=True, exist_ok=True)
        with _alone_in(weights_dir):
            with suppress(WeightsError):
                return locate(source, weights_dir, layout)  # another process has pulled while this one waited
            done = download(source, weights_dir, layout)
            place = _place_in(done.folder, source)
            layout.check(place)
            _write_record(_record_path(source, weights_dir, layout), done, weights_dir)
            return place
    except OSError as error:
        raise WeightsError(f"TURBO_WEIGHTS_DIR={weights_dir} cannot be written: {error.strerror or error}.") from error


@contextmanager
def _alone_in(weights_dir: Path) -> Iterator[None]:
    """Wait until no other process pulls into the folder, and lock the folder against others."""
    with (weights_dir / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("waiting for another process that pulls into %s", weights_dir)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _record_path(source: HubSource, weights_dir: Path, layout: Layout) -> Path:
    file = f"--{source.file}" if source.file else ""
    name = f"{layout.record}{source.hub}--{source.repo_id}{file}--{source.revision}".replace("/", "--")
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


def _recorded(source: HubSource, weights_dir: Path, layout: Layout, digests: Digests) -> Path:
    """Return the record's folder after checking that every file has the recorded size, and small ones the hash."""
    record_path = _record_path(source, weights_dir, layout)
    try:
        record = _Record.model_validate_json(record_path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(
            f"{source} is not in {weights_dir}. Run `{program()} pull` with the same {layout.setting} and "
            "TURBO_WEIGHTS_DIR first."
        ) from error
    except ValueError as error:
        raise WeightsError(f"{record_path} is damaged. Delete it and run `{program()} pull`.") from error
    folder = weights_dir / record.folder
    files = {folder / name: expected for name, expected in record.files.items()}
    for path, expected in files.items():  # all sizes first: a damaged file may be large
        if not path.is_file():
            raise WeightsError(f"{path} is missing. Run `{program()} pull`.")
        if (size_bytes := path.stat().st_size) != expected.size_bytes:
            fault = f"it has {size_bytes} bytes instead of {expected.size_bytes}"
            raise WeightsError(f"{path} is damaged: {fault}. Run `{program()} pull`.")
    for path, expected in files.items():
        digests.expect(path, expected.sha256)
    digests.check(path for path in files if path.suffix != SUFFIX)
    return folder
