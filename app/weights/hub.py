"""Downloads a repository with its hub's own client, and trusts nothing that does not have the hash the hub gave."""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import socket
import ssl
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeVar

from app.errors import WeightsError, first_line
from app.weights.layout import FILE_PATTERNS, is_needed
from app.weights.source import HubSource

_T = TypeVar("_T")

_OPENMIND_REFUSES = ("/bin", "/boot", "/etc", "/lib", "/var")
"""Beginnings of paths that openmind_hub 1.3.0 fails on when it is imported (SENSITIVE_PATHS of its constants)."""

_SHA1_DIGITS, _SHA256_DIGITS = 40, 64

_PAUSE_S = 2
"""How long to wait before the second and last attempt after a fault that may pass."""

_PATIENCE_S = 10
"""A client that took longer than this to fail has tried several times itself; a second attempt would only double it."""

_LIST_TIMEOUT_S = 30
"""huggingface_hub 2.4 lists a repository without a time limit unless it is given one."""


class Download(NamedTuple):
    """A finished download: the snapshot's folder, and the SHA-256 of each file by its path in there."""

    folder: Path
    sha256: dict[str, str]


def download(source: HubSource, weights_dir: Path) -> Download:
    """Download what serving needs of a repository. Blocks; shows progress bars.

    The files come one by one, the small ones first: so a fault shows early, can be named, and ends the download. With
    snapshot_download it does not: openmind_hub's tries each file ten times in 75 s, whatever the fault.

    Raises:
        WeightsError: The hub cannot be reached, refuses, lacks the repository or sends wrong bytes twice, or the disk
            is full. The text names what failed and what to do.
    """
    hub = (_OpenMindHub if source.hub == "openmind" else _HuggingFaceHub)(source, weights_dir.resolve())
    files = [file for file in _attempt(hub, hub.list_files) if is_needed(file.path)]
    if not files:
        raise WeightsError(f"{source} has none of the files that serving needs: {', '.join(FILE_PATTERNS)}.")
    _check_room(hub, files)
    folders = set()
    sha256 = {}
    for file in sorted(files, key=lambda file: file.size_bytes):
        path, sha256[file.path] = _fetch_whole(hub, file)
        folders.add(path.parents[file.path.count("/")])
    if len(folders) > 1:
        raise WeightsError(f"{source} was changed while it was pulled. Pull again, or pin a commit with @.")
    return Download(folders.pop(), sha256)


@dataclass(frozen=True, slots=True)
class _HubFile:
    """A file as a hub lists it. Its hash is also the name of its blob in the client's cache."""

    path: str
    revision: str
    size_bytes: int
    hash: str


class _Hub(ABC):
    """A repository as its hub's client sees it. The client's errors pass through; `_attempt` turns them into ours."""

    name: ClassVar[str]
    cache: ClassVar[str]
    """The client's folder in the weights folder."""
    how_to_get_access: ClassVar[str]

    def __init__(self, source: HubSource, weights_dir: Path) -> None:
        self.source = source
        self.weights_dir = weights_dir
        self.blobs = weights_dir / self.cache / f"models--{source.repo_id.replace('/', '--')}" / "blobs"

    @abstractmethod
    def list_files(self) -> list[_HubFile]:
        """Ask the hub what the repository holds."""

    @abstractmethod
    def fetch(self, file: _HubFile) -> Path:
        """Bring a file to the cache unless it is there, and return its path in the snapshot."""


class _HuggingFaceHub(_Hub):
    name = "The Hugging Face Hub"
    cache = "hf"
    how_to_get_access = (
        "If the name in TURBO_MODEL is right, the repository is private or its licence is not accepted yet: accept it "
        "on the repository's page, and give a token that may read it with HF_TOKEN or `hf auth login`."
    )

    def list_files(self) -> list[_HubFile]:
        from huggingface_hub import HfApi  # noqa: PLC0415 - `serve` has no use for it

        source = self.source
        model = HfApi().model_info(
            source.repo_id, revision=source.revision, files_metadata=True, timeout=_LIST_TIMEOUT_S
        )
        commit = model.sha or source.revision
        return [
            _HubFile(file.rfilename, commit, file.size or 0, file.lfs.sha256 if file.lfs else file.blob_id or "")
            for file in model.siblings or ()
        ]

    def fetch(self, file: _HubFile) -> Path:
        from huggingface_hub import hf_hub_download  # noqa: PLC0415 - as above

        # The client gives each download a name of its own, so it never finds again what a killed one left.
        for left_over in self.blobs.glob(f"{file.hash}.*.incomplete"):
            left_over.unlink()
        cache_dir = self.weights_dir / self.cache
        return Path(hf_hub_download(self.source.repo_id, file.path, revision=file.revision, cache_dir=cache_dir))


class _OpenMindHub(_Hub):
    name = "openMind Hub"
    cache = "openmind/hub"
    how_to_get_access = (
        "openmind_hub takes a token from the code that calls it alone, and `pull` has none: name a public repository, "
        "or download this one by other means and set TURBO_MODEL to its folder."
    )

    def __init__(self, source: HubSource, weights_dir: Path) -> None:
        super().__init__(source, weights_dir)
        if str(weights_dir).startswith(_OPENMIND_REFUSES):
            raise WeightsError(
                f"openmind_hub does not write to paths that begin with {', '.join(_OPENMIND_REFUSES)}. Set "
                f"TURBO_WEIGHTS_DIR to a folder elsewhere, not {weights_dir}."
            )

    def list_files(self) -> list[_HubFile]:
        with self._home():
            from openmind_hub import RepoFile, list_repo_tree  # noqa: PLC0415 - reads the environment when imported

        revision = self.source.revision
        tree = list_repo_tree(self.source.repo_id, revision=revision, recursive=True)
        return [
            _HubFile(entry.path, revision, entry.size, entry.blob_id) for entry in tree if isinstance(entry, RepoFile)
        ]

    @contextlib.contextmanager
    def _home(self) -> Iterator[None]:
        """Make `weights_dir`/openmind the client's home while it is imported.

        It writes only there, to /tmp and to visible folders of $HOME (SENSITIVE_PATHS and WHITE_LIST_PATHS in the
        constants of openmind_hub 1.3.0).
        """
        before = os.environ.get("XDG_CACHE_HOME")
        os.environ["XDG_CACHE_HOME"] = str(self.weights_dir)
        try:
            yield
        finally:
            if before is None:
                del os.environ["XDG_CACHE_HOME"]
            else:
                os.environ["XDG_CACHE_HOME"] = before

    def fetch(self, file: _HubFile) -> Path:
        # The client would ask for the rest of a left-over that has no rest, and be answered 416 for ever.
        left_over = self.blobs / f"{file.hash}.incomplete"
        if left_over.exists() and left_over.stat().st_size >= file.size_bytes:
            left_over.unlink()
        # Wrong bytes are a ValueError, but stay in their place; asked again, the client returns them to be verified.
        with contextlib.suppress(ValueError):
            return self._fetch(file)
        return self._fetch(file)

    def _fetch(self, file: _HubFile) -> Path:
        from openmind_hub import om_hub_download  # noqa: PLC0415 - as above

        cache_dir = str(self.weights_dir / self.cache)
        return Path(om_hub_download(self.source.repo_id, file.path, revision=file.revision, cache_dir=cache_dir))


def _check_room(hub: _Hub, files: list[_HubFile]) -> None:
    missing_bytes = sum(file.size_bytes - _bytes_here(hub, file) for file in files)
    lacking_bytes = missing_bytes - shutil.disk_usage(hub.weights_dir).free
    if lacking_bytes > 0:
        raise WeightsError(_no_space(hub, str(hub.source), lacking_bytes))


def _bytes_here(hub: _Hub, file: _HubFile) -> int:
    for name in (file.hash, f"{file.hash}.incomplete"):
        with contextlib.suppress(FileNotFoundError):
            return min(file.size_bytes, (hub.blobs / name).stat().st_size)
    return 0


def _fetch_whole(hub: _Hub, file: _HubFile) -> tuple[Path, str]:
    """Return the path and the SHA-256 of a file, whole; one that has not its hash is deleted and fetched once more."""
    for _ in range(2):
        path = _attempt(hub, lambda: hub.fetch(file), file)
        blob = _blob_of(path)
        if sha256 := _sha256_if_whole(blob):
            return path, sha256
        for damaged in (blob.resolve(), blob, path):
            damaged.unlink(missing_ok=True)
    raise WeightsError(
        f"{file.path} of {hub.source} came down damaged twice: its bytes do not have the hash that the hub gives. "
        "Check the network and any proxy in between, then pull again."
    )


def _blob_of(path: Path) -> Path:
    """Return what a file of a snapshot links to: both clients keep the bytes in `blobs`, named by the hub's hash.

    A blob of huggingface_hub 2.4 may be a link itself, to a file that is named by a hash of another kind.
    """
    if not path.is_symlink() or len(path.readlink().name) not in (_SHA1_DIGITS, _SHA256_DIGITS):
        raise WeightsError(
            f"{path} cannot be verified: it is no link to a file that is named by its hash. Pull into a folder whose "
            "file system has symbolic links (TURBO_WEIGHTS_DIR)."
        )
    return path.parent / path.readlink()


def _sha256_if_whole(blob: Path) -> str | None:
    """Return the blob's SHA-256 if its bytes have the hash in its name, a SHA-256 or a git blob's SHA-1.

    The clients do not see to it: huggingface_hub compares sizes alone, openmind_hub looks at no file a second time.
    """
    sha256 = _hex_digest(blob, hashlib.sha256())
    if len(blob.name) == _SHA256_DIGITS:
        return sha256 if sha256 == blob.name else None
    git_blob = hashlib.sha1(f"blob {blob.stat().st_size}\0".encode(), usedforsecurity=False)
    return sha256 if _hex_digest(blob, git_blob) == blob.name else None


def _hex_digest(path: Path, begun: "hashlib._Hash") -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: begun).hexdigest()


def _attempt(hub: _Hub, call: Callable[[], _T], file: _HubFile | None = None, *, last: bool = False) -> _T:
    """Call the client, and once more after a fault that may pass. What it raises becomes a WeightsError."""
    started = time.monotonic()
    try:
        return call()
    except Exception as error:
        reason, may_pass = _explain(error, hub, file)
        if last or not may_pass or time.monotonic() - started > _PATIENCE_S:
            raise WeightsError(reason) from error
    time.sleep(_PAUSE_S)
    return _attempt(hub, call, file, last=True)


def _explain(error: Exception, hub: _Hub, file: _HubFile | None) -> tuple[str, bool]:
    """Say what went wrong and what to do, and tell whether the fault may pass by itself.

    The clients wrap an error in others, several deep. What counts is an HTTP status and, innermost, what the
    operating system said.
    """
    chain: list[BaseException] = [error]
    while wrapped := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(wrapped)
    subject = f"{file.path} of {hub.source}" if file else str(hub.source)
    statuses = [getattr(getattr(link, "response", None), "status_code", 0) for link in chain]
    if status := next(filter(None, statuses), 0):
        revision_known = all(type(link).__name__ != "RevisionNotFoundError" for link in chain)
        reason = _explain_status(status, hub, subject, revision_known=revision_known)
        return reason, status >= HTTPStatus.INTERNAL_SERVER_ERROR
    if file and any(isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT) for link in chain):
        return _no_space(hub, subject, file.size_bytes), False
    reason = first_line(next((link for link in reversed(chain) if isinstance(link, OSError)), error))
    reason = re.sub(r"\?\S+", "", reason)  # the query of a signed address is a secret
    if any(_says_unreachable(link) for link in chain):
        remedy = "Check the network and its proxy (HTTPS_PROXY), or bring the weights here and name their folder"
        return f"{hub.name} cannot be reached for {subject}: {reason}. {remedy} in TURBO_MODEL.", False
    if file is None and any(isinstance(link, ValueError | LookupError) for link in chain):
        remedy = "Check the network: a proxy or a login page may stand before it"
        return f"{hub.name} does not answer as a hub does for {subject}: {reason}. {remedy}.", True
    remedy = "Check the name, the network and the disk; `pull` goes on where it stopped"
    return f"{subject} could not be downloaded to {hub.weights_dir}: {reason}. {remedy}.", True


def _explain_status(status: int, hub: _Hub, subject: str, *, revision_known: bool) -> str:
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return f"{hub.name} refuses access to {subject} ({status}). {hub.how_to_get_access}"
    if status == HTTPStatus.NOT_FOUND and not revision_known:
        return f"{hub.name} has no revision {hub.source.revision} of {hub.source.repo_id}. Check TURBO_MODEL."
    if status == HTTPStatus.NOT_FOUND:
        return f"{hub.name} does not have {subject}, or shows it to its members alone. Check TURBO_MODEL."
    return f"{hub.name} answers {status} for {subject}. Try again later; `pull` goes on where it stopped."


def _says_unreachable(error: BaseException) -> bool:
    return isinstance(
        error, ConnectionRefusedError | TimeoutError | socket.gaierror | ssl.SSLCertVerificationError
    ) or (isinstance(error, OSError) and error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH))


def _no_space(hub: _Hub, subject: str, lacking_bytes: int) -> str:
    lacking_mb = -(-lacking_bytes // 10**6)
    return (
        f"There is no space left on {hub.weights_dir} for {subject}; free {lacking_mb:,} MB there, or set "
        "TURBO_WEIGHTS_DIR to a larger disk, then pull again."
    )
