"""SHA-256 of files of weights: each is computed once, by whoever reads the file, and compared with the expected one."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from app.errors import WeightsError, program

_FILES_AT_ONCE = 4


class Digests:
    """The SHA-256 of files as far as they are known. For any thread."""

    def __init__(self) -> None:
        self._expected: dict[Path, str] = {}
        self._found: dict[Path, str] = {}

    def __contains__(self, path: Path) -> bool:
        return path in self._found

    def expect(self, path: Path, sha256: str) -> None:
        """Note what a file's digest must be."""
        self._expected[path] = sha256

    def add(self, path: Path, sha256: str) -> None:
        """Note the digest of the bytes that were read from a file.

        Raises:
            WeightsError: Another one is expected. The text names the file and says what to do.
        """
        self._found[path] = sha256
        if self._expected.get(path, sha256) != sha256:
            fault = "its SHA-256 is not that of the pulled file"
            raise WeightsError(f"{path} is damaged: {fault}. Run `{program()} pull`.")

    def check(self, some: Iterable[Path] | None = None) -> None:
        """Check some files, or all with an expected digest. Blocks while it reads those that nobody has read.

        Raises:
            WeightsError: A file does not have the expected digest, or cannot be read.
        """
        paths = list(self._expected if some is None else some)
        known = {path: self._found[path] for path in paths if path in self._found}
        for path, sha256 in known.items():  # first, because the others may have gigabytes
            self.add(path, sha256)
        unread = [path for path in paths if path not in known]
        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:  # hashlib releases the GIL
            for path, sha256 in zip(unread, pool.map(_readable_digest, unread), strict=True):
                self.add(path, sha256)

    @contextmanager
    def explaining_errors(self) -> Iterator[None]:
        """If something is wrong with weights, say that a file is damaged if one is, and only otherwise what it is."""
        try:
            yield
        except WeightsError:
            self.check()
            raise

    def total(self, files: Mapping[str, Path]) -> str:
        """Return one SHA-256 for several files by name: of a line for each, sorted, with its name and its own.

        Reads those that nobody has read.
        """
        self.check(files.values())
        lines = sorted(f"{name} {self._found[path]}\n" for name, path in files.items())
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def hex_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _readable_digest(path: Path) -> str:
    try:
        return hex_digest(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}.") from error
