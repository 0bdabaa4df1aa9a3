"""Downloads a repository with its hub's own client, and verifies every file by the hash that the hub gives."""

import contextlib
import errno
import hashlib
import logging
import math
import os
import platform
import re
import shutil
import socket
import ssl
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Lock
from typing import BinaryIO, ClassVar, NamedTuple, TypeVar, cast

from app.errors import WeightsError, first_line, program
from app.weights.digests import hex_digest
from app.weights.layout import Layout
from app.weights.parts import PART_BYTES, Part, PartError, RangeIgnoredError, finish, missing_parts, present_bytes
from app.weights.source import SUFFIX, HubSource

_T = TypeVar("_T")

_log = logging.getLogger(__name__)

_OPENMIND_REFUSES = ("/bin", "/boot", "/etc", "/lib", "/var")
"""Beginnings of paths that openmind_hub 1.3.0 rejects when it is imported (SENSITIVE_PATHS of its constants)."""

_SHA1_DIGITS, _SHA256_DIGITS = 40, 64

_CONNECTIONS = 8  # as many files as both clients' snapshot_download downloads at once
_PROGRESS_S = 5  # between two lines of the log
_FURTHER_ATTEMPTS = 5  # of openmind_hub, after a connection broke without a further byte
_PAUSE_S = 2  # pause before the second and last attempt, after a fault that can be temporary
_PATIENCE_S = 10  # a client that fails after a longer time has already retried, so there is no second attempt
_LIST_TIMEOUT_S = 30  # huggingface_hub 2.4 has no default time limit for listing a repository

_UNREACHABLE = (ConnectionRefusedError, TimeoutError, socket.gaierror, ssl.SSLCertVerificationError)
_UNREACHABLE_CODES = (errno.ENETUNREACH, errno.EHOSTUNREACH)


class Download(NamedTuple):
    """A finished download: the snapshot's folder, and the SHA-256 of each file by its path in the folder."""

    folder: Path
    sha256: dict[str, str]


def download(source: HubSource, weights_dir: Path, layout: Layout) -> Download:
    """Download the files of a repository that serving needs. Blocks; logs the progress.

    The main config comes first, because it tells whether the other files are of use; then small files, so that a fault
    shows early with the file's name. The clients' snapshot_download would hide the name. After an error, slow
    connections can still be open; they end when their next bytes arrive.

    Raises:
        WeightsError: The hub cannot be reached, refuses access, lacks the repository or sends wrong bytes twice, the
            repository has other weights, or the disk is full. The text says what failed and what to do.
    """
    for client in ("HF_HUB", "OM_HUB"):  # bars of several files at once would overwrite each other
        os.environ.setdefault(f"{client}_DISABLE_PROGRESS_BARS", "1")
    hub = (_OpenMindHub if source.hub == "openmind" else _HuggingFaceHub)(source, layout.setting, weights_dir.resolve())
    listed = _attempt(hub, hub.list_files)
    paths = {file.path for file in listed}
    chosen = paths & {source.file} if source.file else layout.choose(paths)
    main = None if source.file else layout.main_config
    if source.file and not chosen:
        others = ", ".join(sorted(path for path in paths if path.endswith(SUFFIX)))
        raise WeightsError(f"{source} is not there. The repository has {others or f'no {SUFFIX} files'}.")
    if not chosen or (main and main not in chosen):
        raise WeightsError(f"{source} does not have the files that {layout.setting} needs: {layout.files}.")
    files = [file for file in listed if file.path in chosen]
    _check_room(hub, files)
    files.sort(key=lambda file: (file.path != main, file.size_bytes))
    fetched = _fetch_all(hub, files[:1])
    if main:
        layout.check_main_config(fetched[main].path)
    fetched |= _fetch_all(hub, files[1:])
    folders = {one.path.parents[name.count("/")] for name, one in fetched.items()}
    if len(folders) > 1:
        raise WeightsError(f"{source} was changed while it was pulled. Pull again, or pin a commit with @.")
    return Download(folders.pop(), {name: one.sha256 for name, one in fetched.items()})


@dataclass(frozen=True, slots=True)
class _HubFile:
    """A file in a hub's list. Its hash is also the name of its blob in the client's cache."""

    path: str
    revision: str
    size_bytes: int
    hash: str


class _Hub(ABC):
    """A repository and its hub's client, whose errors pass through."""

    name: ClassVar[str]
    cache: ClassVar[str]  # the client's folder in the weights folder
    how_to_get_access: ClassVar[str]  # `{setting}` is the setting that names the repository

    def __init__(self, source: HubSource, setting: str, weights_dir: Path) -> None:
        self.source = source
        self.setting = setting
        self.weights_dir = weights_dir
        self.cache_dir = weights_dir / self.cache
        self.blobs = self.cache_dir / f"models--{source.repo_id.replace('/', '--')}" / "blobs"

    @abstractmethod
    def list_files(self) -> list[_HubFile]: ...

    def part(self, file: _HubFile) -> Path:
        """Return the place of a file's first bytes, which an interrupted pull leaves."""
        return self.blobs / f"{file.hash}.incomplete"

    def fetch(self, file: _HubFile) -> Path:
        """Download a file to the cache unless it is there; return its path in the snapshot."""
        # Of a complete part, the clients would request the rest, which does not exist, and always get 416.
        part = self.part(file)
        if part.exists() and part.stat().st_size >= file.size_bytes:
            part.unlink()
        return self._fetch(file)

    @abstractmethod
    def fetch_part(self, file: _HubFile, part: Part) -> None:
        """Download the missing bytes of a part, over one connection.

        Raises:
            PartError: See `Part`.
        """

    @abstractmethod
    def _fetch(self, file: _HubFile) -> Path: ...


class _HuggingFaceHub(_Hub):
    name = "The Hugging Face Hub"
    cache = "hf"
    how_to_get_access = (
        "If the name in {setting} is right, the repository is private or its licence is not accepted yet: accept the "
        "licence on the repository's page, and set a token that may read it with HF_TOKEN or `hf auth login`."
    )

    def list_files(self) -> list[_HubFile]:
        from huggingface_hub import HfApi  # noqa: PLC0415 - `serve` does not need it

        source = self.source
        model = HfApi().model_info(
            source.repo_id, revision=source.revision, files_metadata=True, timeout=_LIST_TIMEOUT_S
        )
        commit = model.sha or source.revision
        return [
            _HubFile(file.rfilename, commit, file.size or 0, file.lfs.sha256 if file.lfs else file.blob_id or "")
            for file in model.siblings or ()
        ]

    def _fetch(self, file: _HubFile) -> Path:
        from huggingface_hub import hf_hub_download  # noqa: PLC0415 - as above

        if len(file.hash) == _SHA256_DIGITS and file.size_bytes and not (self.blobs / file.hash).exists():
            self._fetch_blob(file)
        return Path(hf_hub_download(self.source.repo_id, file.path, revision=file.revision, cache_dir=self.cache_dir))

    def _fetch_blob(self, file: _HubFile) -> None:
        """Download a large file to its place in the cache, and go on where a killed download stopped.

        huggingface_hub 2 itself begins a killed file anew, because each download has a new temporary name. After this,
        hf_hub_download finds the file in the cache.
        """
        self.blobs.mkdir(parents=True, exist_ok=True)
        part = self.part(file)
        with part.open("ab") as stream:
            self._get(file, stream, resume_size=stream.tell(), expected_size=file.size_bytes)
        part.replace(self.blobs / file.hash)

    def fetch_part(self, file: _HubFile, part: Part) -> None:
        self._get(file, cast("BinaryIO", part), expected_size=part.missing_bytes, range_=part.missing_range)

    def _get(
        self, file: _HubFile, stream: BinaryIO, *, expected_size: int, resume_size: int = 0, range_: str | None = None
    ) -> None:
        from huggingface_hub import hf_hub_url  # noqa: PLC0415 - as above
        from huggingface_hub.file_download import http_get  # noqa: PLC0415
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # documented  # noqa: PLC0415

        http_get(
            hf_hub_url(self.source.repo_id, file.path, revision=file.revision),
            stream,
            resume_size=resume_size,
            headers=build_hf_headers() | ({"Range": range_} if range_ else {}),
            expected_size=expected_size,
            displayed_filename=file.path,
        )


class _OpenMindHub(_Hub):
    name = "openMind Hub"
    cache = "openmind/hub"
    how_to_get_access = (
        "`pull` has no token for openmind_hub: name a public repository, or download this repository with another tool "
        "and set {setting} to its folder."
    )

    def __init__(self, source: HubSource, setting: str, weights_dir: Path) -> None:
        super().__init__(source, setting, weights_dir)
        if find_spec("openmind_hub") is None:
            raise WeightsError(
                f"{source} needs the package openmind-hub, which supports Python 3.11, 3.12 and 3.13; this is Python "
                f"{platform.python_version()}. Run {program()} with one of these, or set {setting} to a folder or to a "
                "repository of the Hugging Face Hub (hf:OWNER/NAME)."
                if sys.version_info >= (3, 14)
                else f"{source} needs the package openmind-hub, which is not installed. Install the service again."
            )
        if str(weights_dir).startswith(_OPENMIND_REFUSES):
            raise WeightsError(
                f"openmind_hub does not write to paths that begin with {', '.join(_OPENMIND_REFUSES)}. Set "
                f"TURBO_WEIGHTS_DIR to a folder elsewhere, not {weights_dir}."
            )

    def list_files(self) -> list[_HubFile]:
        # The client reads its home from the environment when it is imported. It writes only to this home, to /tmp and
        # to visible folders of $HOME (SENSITIVE_PATHS and WHITE_LIST_PATHS in the constants of openmind_hub 1.3.0). The
        # other client finds the user's token by the same variable; a pull may use both hubs.
        from huggingface_hub import constants  # noqa: F401, PLC0415 - reads the variable before it changes

        os.environ["XDG_CACHE_HOME"] = str(self.weights_dir)  # the process ends with the pull
        from openmind_hub import RepoFile, list_repo_tree  # noqa: PLC0415 - as above

        revision = self.source.revision
        tree = list_repo_tree(self.source.repo_id, revision=revision, recursive=True)
        return [
            _HubFile(entry.path, revision, entry.size, entry.blob_id) for entry in tree if isinstance(entry, RepoFile)
        ]

    def _fetch(self, file: _HubFile) -> Path:
        from openmind_hub import om_hub_download  # noqa: PLC0415 - as above

        cache_dir = str(self.cache_dir)
        fetch = partial(om_hub_download, self.source.repo_id, file.path, revision=file.revision, cache_dir=cache_dir)
        # For wrong bytes the client raises ValueError but keeps the file; the second call returns it, to be verified.
        with contextlib.suppress(ValueError):
            return Path(fetch())
        return Path(fetch())

    def fetch_part(self, file: _HubFile, part: Part) -> None:
        import requests  # noqa: PLC0415 - as above
        from openmind_hub import build_om_headers, http_get, om_hub_url  # noqa: PLC0415

        proxy = os.environ.get("HUB_HTTPS_PROXY")  # as om_hub_download reads it
        failures = 0
        while part.missing_bytes:
            before = part.missing_bytes
            try:
                http_get(
                    om_hub_url(self.source.repo_id, file.path, revision=file.revision),
                    part,
                    headers=build_om_headers() | {"Range": part.missing_range},
                    proxies={"https": proxy} if proxy else None,
                    _nb_retries=0,  # its own further attempts would request the file's bytes, not the part's
                )
                if part.missing_bytes == before:
                    raise OSError("an empty answer")
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
                failures = 1 if part.missing_bytes < before else failures + 1
                if failures > _FURTHER_ATTEMPTS:
                    raise
                time.sleep(_PAUSE_S)


def _check_room(hub: _Hub, files: list[_HubFile]) -> None:
    lacking_bytes = -shutil.disk_usage(hub.weights_dir).free
    for file in files:
        lacking_bytes += max(0, file.size_bytes - _present_bytes(hub, file))
    if lacking_bytes > 0:
        raise WeightsError(_no_space(hub, str(hub.source), lacking_bytes))


def _present_bytes(hub: _Hub, file: _HubFile) -> int:
    """Return how many bytes of a file there are, from this pull and earlier ones."""
    return present_bytes(hub.blobs / file.hash, file.size_bytes) or present_bytes(hub.part(file), file.size_bytes)


class _Fetched(NamedTuple):
    path: Path  # in the snapshot
    sha256: str


def _fetch_all(hub: _Hub, files: list[_HubFile]) -> dict[str, _Fetched]:
    """Download files over several connections, the first files first; return each by its path in the repository."""
    total_gb = sum(file.size_bytes for file in files) / 1e9
    threads, connections, stop = ThreadPoolExecutor(_CONNECTIONS), ThreadPoolExecutor(_CONNECTIONS), Event()
    alone = {file.hash: Lock() for file in files}  # files of the same bytes have one place in the cache
    coming = {file.path: threads.submit(_fetch_whole, hub, file, alone[file.hash], connections, stop) for file in files}
    pending = set(coming.values())
    try:
        while pending:
            done, pending = wait(pending, _PROGRESS_S, FIRST_EXCEPTION)
            for one in done:
                one.result()
            if pending:
                present_gb = sum(_present_bytes(hub, file) for file in files) / 1e9
                _log.info("%.2f of %.2f GB of %s are here", present_gb, total_gb, hub.source)
    finally:
        stop.set()
        for pool in (threads, connections):
            pool.shutdown(wait=False, cancel_futures=True)
        wait([one for one in pending if not one.cancelled()], _PROGRESS_S)  # small files are soon here, and stay
    return {path: one.result() for path, one in coming.items()}


def _fetch_whole(hub: _Hub, file: _HubFile, alone: Lock, connections: ThreadPoolExecutor, stop: Event) -> _Fetched:
    """Download a file. If it does not have its hash, it is downloaded once more, over one connection."""
    for in_parts in (file.size_bytes > PART_BYTES and len(file.hash) == _SHA256_DIGITS, False):
        with alone:
            if in_parts and not (hub.blobs / file.hash).exists():
                _fetch_in_parts(hub, file, connections, stop)
            path = connections.submit(_attempt, hub, lambda: hub.fetch(file), file).result()
        blob = _blob_of(path)
        if sha256 := _sha256_if_whole(blob):
            return _Fetched(path, sha256)
        for damaged in (blob.resolve(), blob, path):
            damaged.unlink(missing_ok=True)
    raise WeightsError(
        f"{file.path} of {hub.source} was downloaded twice and damaged both times: its bytes do not have the hash that "
        "the hub gives. Check the network and any proxy in between, then pull again."
    )


def _fetch_in_parts(hub: _Hub, file: _HubFile, connections: ThreadPoolExecutor, stop: Event) -> None:
    """Download a large file to its place in the client's cache; leave it to the client if the server ignores ranges."""
    hub.blobs.mkdir(parents=True, exist_ok=True)
    path = hub.part(file)
    parts = [connections.submit(_fetch_part, hub, file, part) for part in missing_parts(path, file.size_bytes, stop)]
    try:
        for one in as_completed(parts):
            one.result()
    except RangeIgnoredError:
        wait([one for one in parts if not one.cancel()])
        path.unlink()
        return
    finish(path, file.size_bytes)
    path.replace(hub.blobs / file.hash)


def _fetch_part(hub: _Hub, file: _HubFile, part: Part) -> None:
    """Download a part. A fault after further bytes does not end the pull, because a long download can meet several.

    The patience has no end, because the clients do not retry a status of 500 or more, however late it comes.
    """
    with part:
        while True:
            before = part.missing_bytes
            try:
                return _attempt(hub, lambda: hub.fetch_part(file, part), file, patience_s=math.inf)
            except WeightsError:
                if part.missing_bytes == before:
                    raise


def _blob_of(path: Path) -> Path:
    """Return the file in `blobs`, named by the hub's hash, to which a file of a snapshot links.

    A blob of huggingface_hub 2.4 can be a link too, to a file named by another kind of hash.
    """
    if not path.is_symlink() or len(path.readlink().name) not in (_SHA1_DIGITS, _SHA256_DIGITS):
        raise WeightsError(
            f"{path} cannot be verified: it is not a link to a file that is named by its hash. Set TURBO_WEIGHTS_DIR "
            "to a folder on a file system with symbolic links."
        )
    return path.parent / path.readlink()


def _sha256_if_whole(blob: Path) -> str | None:
    """Return the blob's SHA-256 if its bytes have the hash in its name: a SHA-256, or a git blob's SHA-1.

    The clients do not check this: huggingface_hub compares only sizes, openmind_hub does not check a file again.
    """
    digest = sha256 = hex_digest(blob)
    if len(blob.name) == _SHA1_DIGITS:  # a small file: hubs keep large files by their SHA-256
        content = blob.read_bytes()
        digest = hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest()
    return sha256 if digest == blob.name else None


def _attempt(
    hub: _Hub,
    call: Callable[[], _T],
    file: _HubFile | None = None,
    *,
    last: bool = False,
    patience_s: float = _PATIENCE_S,
) -> _T:
    """Call the client, once more after a fault that can be temporary. Its exceptions become WeightsError."""
    started = time.monotonic()
    try:
        return call()
    except PartError:
        raise
    except Exception as error:
        reason, may_be_temporary = _explain(error, hub, file)
        if last or not may_be_temporary or time.monotonic() - started > patience_s:
            raise WeightsError(reason) from error
    time.sleep(_PAUSE_S)
    return _attempt(hub, call, file, last=True)


def _explain(error: Exception, hub: _Hub, file: _HubFile | None) -> tuple[str, bool]:
    """Return what failed and what to do, and whether the fault can be temporary.

    The clients chain several exceptions. Relevant are an HTTP status and the innermost error of the operating system.
    """
    chain: list[BaseException] = [error]
    while wrapped := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(wrapped)
    subject = f"{file.path} of {hub.source}" if file else str(hub.source)
    statuses = [getattr(getattr(link, "response", None), "status_code", 0) for link in chain]
    if status := next(filter(None, statuses), 0):
        may_be_temporary = status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS
        return _explain_status(status, hub, subject, chain), may_be_temporary
    if file and any(isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT) for link in chain):
        return _no_space(hub, subject, max(1, file.size_bytes - _present_bytes(hub, file))), False
    reason = first_line(next((link for link in reversed(chain) if isinstance(link, OSError)), error))
    reason = re.sub(r"\?\S+", "", reason)  # the query of a signed URL is a secret
    if any(isinstance(link, _UNREACHABLE) or getattr(link, "errno", 0) in _UNREACHABLE_CODES for link in chain):
        remedy = "Check the network and its proxy (HTTPS_PROXY), or copy the weights here and set"
        return f"{hub.name} cannot be reached for {subject}: {reason}. {remedy} {hub.setting} to their folder.", False
    if file is None and any(isinstance(link, ValueError | LookupError) for link in chain):
        remedy = "Check the network: a proxy or a login page may answer in the hub's place"
        return f"{hub.name} gives no valid answer for {subject}: {reason}. {remedy}.", True
    remedy = "Check the name, the network and the disk; `pull` continues where it stopped"
    return f"{subject} could not be downloaded to {hub.weights_dir}: {reason}. {remedy}.", True


def _explain_status(status: int, hub: _Hub, subject: str, chain: list[BaseException]) -> str:
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return f"{hub.name} refuses access to {subject} ({status}). {hub.how_to_get_access.format(setting=hub.setting)}"
    if any(type(link).__name__ == "RevisionNotFoundError" for link in chain):
        return f"{hub.name} has no revision {hub.source.revision} of {hub.source.repo_id}. Check {hub.setting}."
    if status == HTTPStatus.NOT_FOUND:
        return f"{hub.name} does not have {subject}, or shows it only to its members. Check {hub.setting}."
    return f"{hub.name} answers {status} for {subject}. Try again later; `pull` continues where it stopped."


def _no_space(hub: _Hub, subject: str, lacking_bytes: int) -> str:
    lacking_mb = -(-lacking_bytes // 10**6)
    return (
        f"There is no space left on {hub.weights_dir} for {subject}; free {lacking_mb:,} MB there, or set "
        "TURBO_WEIGHTS_DIR to a larger disk, then pull again."
    )
