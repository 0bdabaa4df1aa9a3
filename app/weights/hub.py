"""Downloads a repository with its hub's own client, and trusts nothing that does not have the hash the hub gave.

Both clients keep one cache layout: `blobs/<hash>` holds the bytes and `snapshots/<commit>/<path>` links to them. The
hash in a blob's name is the hub's word: 64 hex digits are a SHA-256, 40 are a git blob's SHA-1. openmind_hub 1.3.0
returns success on a file of other bytes, and huggingface_hub compares sizes alone; so the hashes are checked here.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from app.errors import WeightsError
from app.weights.layout import FILE_PATTERNS
from app.weights.source import HubSource

_OPENMIND_REFUSES = ("/bin", "/boot", "/etc", "/lib", "/var")
"""Beginnings of paths that openmind_hub 1.3.0 fails on when it is imported (SENSITIVE_PATHS of its constants)."""

_SHA1_DIGITS, _SHA256_DIGITS = 40, 64


def download(source: HubSource, weights_dir: Path) -> Path:
    """Download what serving needs of a repository, and return the snapshot's folder. Blocks; shows progress bars.

    Damaged files are deleted and fetched once more.

    Raises:
        WeightsError: The hub cannot be reached, lacks the repository, or sends wrong bytes twice.
    """
    snapshot = _snapshot(source, weights_dir)
    damaged = [path for path in _files(snapshot) if not _has_its_hash(path)]
    if damaged:
        for path in damaged:
            path.resolve().unlink(missing_ok=True)
            path.unlink()
        snapshot = _snapshot(source, weights_dir)
        for path in _files(snapshot):
            if not _has_its_hash(path):
                raise WeightsError(
                    f"{path.relative_to(snapshot)} of {source.repo_id} came down damaged twice: its bytes do not have "
                    "the hash that the hub gives. Check the network and any proxy in between, then pull again."
                )
    return snapshot


def _files(snapshot: Path) -> list[Path]:
    return sorted(path for path in snapshot.rglob("*") if not path.is_dir())


def _snapshot(source: HubSource, weights_dir: Path) -> Path:
    fetch = _from_openmind if source.hub == "openmind" else _from_hugging_face
    try:
        return fetch(source, weights_dir)
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(
            f"{source.hub}:{source.repo_id}@{source.revision} could not be downloaded to {weights_dir}: "
            f"{_reason(error)}. Check the name, the network and the disk; `pull` goes on where it stopped."
        ) from error


def _reason(error: BaseException) -> str:
    """Return the first line of the error at the root: clients wrap it in "failed after 10 attempts"."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _from_hugging_face(source: HubSource, weights_dir: Path) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - `serve` has no use for it

    folder = snapshot_download(
        source.repo_id,
        revision=source.revision,
        cache_dir=weights_dir / "hf",
        allow_patterns=list(FILE_PATTERNS),
    )
    return Path(folder)


def _from_openmind(source: HubSource, weights_dir: Path) -> Path:
    if str(weights_dir.resolve()).startswith(_OPENMIND_REFUSES):
        raise WeightsError(
            f"openmind_hub does not write to {', '.join(_OPENMIND_REFUSES)}. Set TURBO_WEIGHTS_DIR to a folder "
            f"elsewhere, not {weights_dir}."
        )
    with _openmind_home(weights_dir):
        from openmind_hub import snapshot_download  # noqa: PLC0415 - it reads the environment when it is imported

    folder = snapshot_download(
        source.repo_id,
        revision=source.revision,
        cache_dir=str(weights_dir / "openmind" / "hub"),
        allow_patterns=list(FILE_PATTERNS),
    )
    return Path(folder)


@contextlib.contextmanager
def _openmind_home(weights_dir: Path) -> Iterator[None]:
    """Make `weights_dir`/openmind openmind_hub's own home while it is imported.

    The client writes only to its home, /tmp and visible folders of $HOME (constants.SENSITIVE_PATHS and
    WHITE_LIST_PATHS of openmind_hub 1.3.0); elsewhere it retries for 75 s and gives up.
    """
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(weights_dir.resolve())
    try:
        yield
    finally:
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before


def _has_its_hash(path: Path) -> bool:
    """Tell whether the bytes behind a snapshot's link have the hash in their blob's name."""
    blob = path.resolve()
    if not path.is_symlink() or len(blob.name) not in (_SHA1_DIGITS, _SHA256_DIGITS):
        raise WeightsError(
            f"{path} cannot be verified: it is no link to a file that is named by its hash. Pull into a folder whose "
            "file system has symbolic links (TURBO_WEIGHTS_DIR)."
        )
    if not blob.is_file():
        return False
    if len(blob.name) == _SHA256_DIGITS:
        empty = hashlib.sha256()
    else:
        empty = hashlib.sha1(f"blob {blob.stat().st_size}\0".encode(), usedforsecurity=False)
    with blob.open("rb") as file:
        return hashlib.file_digest(file, lambda: empty).hexdigest() == blob.name
