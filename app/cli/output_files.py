"""The files that the pictures of one request are written to, each as a whole or not at all."""

import itertools
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from app.errors import InvalidRequestError
from app.images.encoding import MediaType

_MEDIA_TYPES = {
    ".png": MediaType.PNG,
    ".webp": MediaType.WEBP,
    ".jpg": MediaType.JPEG,
    ".jpeg": MediaType.JPEG,
}

STDOUT = "-"
"""The output name that means stdout."""


class OutputFiles:
    """The files of one request. A named file replaces an existing file; an unnamed file never does.

    Each file is written beside its place and then moved there. Not thread-safe, but a signal handler may call `discard`
    at any time.
    """

    def __init__(self, output: str | None, *, count: int, stdout: TextIO) -> None:
        """Name the files of `count` pictures; `output` is the name that the user gave, if any.

        Raises:
            InvalidRequestError: The pictures cannot be written to this output.
        """
        self.media_type = MediaType.PNG
        self._stdout = stdout if output == STDOUT else None
        self._named: list[Path] = []
        self._unfinished: set[Path] = set()
        if output == STDOUT:
            if count > 1:
                raise InvalidRequestError("Only a single picture can go to stdout.", param="output")
            if stdout.isatty():
                raise InvalidRequestError("Stdout is a terminal; send it to a file or a program.", param="output")
        elif output is None:
            _check_folder(Path.cwd())
        else:
            path = Path(output)
            self.media_type = _media_type(path)
            numbered = [path.with_stem(f"{path.stem}-{number}") for number in range(1, count + 1)]
            self._named = [path] if count == 1 else numbered
            for named in self._named:
                _check_file(named)

    def write(self, number: int, file: bytes, *, name: str) -> str:
        """Write the picture of this number (from 0), and return its file's name; `name` if the user gave none.

        Raises:
            OSError: The file cannot be written, and nothing is left of it. `filename` is its name.
        """
        try:
            if self._stdout is not None:
                name = "stdout"
                self._stdout.buffer.write(file)
                self._stdout.flush()
            else:
                path = self._named[number] if self._named else self._reserve(name)
                name = str(path)
                self._put(path.resolve(), file)  # write the target of a link, not the link
        except OSError as error:
            self.discard()
            raise OSError(error.errno, error.strerror, name) from error
        self._unfinished.clear()
        return name

    def discard(self) -> None:
        """Remove unfinished files."""
        for path in self._unfinished:
            path.unlink(missing_ok=True)

    def _reserve(self, name: str) -> Path:
        """Create an empty file under the first free name of this kind, so that no other process takes the name."""
        path = first = Path(name)
        for number in itertools.count(2):
            with suppress(FileExistsError):
                path.touch(exist_ok=False)
                break
            path = first.with_stem(f"{first.stem}-{number}")
        self._unfinished.add(path)
        return path

    def _put(self, path: Path, file: bytes) -> None:
        scratch = path.with_name(f".{secrets.token_hex(8)}")  # short, because `path` may have the longest legal name
        self._unfinished.add(scratch)
        with scratch.open("xb") as picture:
            with suppress(FileNotFoundError):  # a replaced file keeps its permissions, from the first byte on
                os.fchmod(picture.fileno(), stat.S_IMODE(path.stat().st_mode))
            picture.write(file)
        scratch.replace(path)


def _media_type(path: Path) -> MediaType:
    if path.name.lower() in _MEDIA_TYPES:
        raise InvalidRequestError(f"{path} is a suffix without a name.", param="output")
    if path.suffix.lower() not in _MEDIA_TYPES:
        raise InvalidRequestError(f"{path} does not end in {', '.join(_MEDIA_TYPES)}.", param="output")
    return _MEDIA_TYPES[path.suffix.lower()]


def _check_file(path: Path) -> None:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InvalidRequestError(f"{path} exists and is not a file.", param="output")
        if not os.access(path, os.W_OK):
            raise InvalidRequestError(f"{path} exists and is not writable.", param="output")
    except FileNotFoundError:
        pass
    except OSError as error:  # a name that is too long, or a loop of links
        raise InvalidRequestError(f"{path} cannot be written: {error.strerror}.", param="output") from error
    _check_folder(path.resolve().parent)


def _check_folder(folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InvalidRequestError(f"{folder} is not a writable folder.", param="output")
