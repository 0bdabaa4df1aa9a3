"""Picture files: where the pictures of one request go, each written as a whole or not at all."""

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
"""The output's name that is stdout."""


class OutputFiles:
    """The files of one request. What is there already is replaced if it was named, and left alone if it was not.

    A file is written beside its place and then moved there. Not for several threads, but a signal's handler may call
    `discard` at any time.
    """

    def __init__(self, output: str | None, *, count: int, stdout: TextIO) -> None:
        """Name the files of `count` pictures; `output` is the name that was asked for, if one was.

        Raises:
            InvalidRequestError: It is no name that they can be written to.
        """
        self._output = None if output is None else Path(output)
        self._count = count
        self._stdout = stdout if output == STDOUT else None
        self._unfinished: set[Path] = set()
        if self._stdout is not None:
            self.media_type = MediaType.PNG
            self._check_stdout(self._stdout)
        else:
            self.media_type = self._check_files()

    def write(self, number: int, file: bytes, *, name: str) -> str:
        """Write the picture of this number, from 0 on, and return its file's name; `name` if none was asked for.

        Raises:
            OSError: It cannot be written; nothing is left of it. `filename` is its name.
        """
        try:
            if self._stdout is not None:
                name = "stdout"
                _write_all(self._stdout.fileno(), file)
                return name
            path = self._reserve(name) if self._output is None else self._name(self._output, number)
            name = str(path)
            self._put(path.resolve(), file)  # what a link points to is written, not the link
        except OSError as error:
            self.discard()
            raise OSError(error.errno, error.strerror, name) from error
        self._unfinished.clear()
        return name

    def discard(self) -> None:
        """Remove what is not finished."""
        for path in self._unfinished:
            path.unlink(missing_ok=True)

    def _check_stdout(self, stdout: TextIO) -> None:
        if self._count > 1:
            raise InvalidRequestError("Only a single picture can go to stdout.", param="output")
        if stdout.isatty():
            raise InvalidRequestError("Stdout is a terminal; send it to a file or a program.", param="output")

    def _check_files(self) -> MediaType:
        if self._output is None:
            _check_folder(Path.cwd())
            return MediaType.PNG
        if self._output.name.lower() in _MEDIA_TYPES:
            raise InvalidRequestError(f"{self._output} is a suffix without a name.", param="output")
        suffix = self._output.suffix.lower()
        if suffix not in _MEDIA_TYPES:
            raise InvalidRequestError(f"{self._output} does not end in {', '.join(_MEDIA_TYPES)}.", param="output")
        for number in range(self._count):
            path = self._name(self._output, number)
            _check_place(path)
            _check_folder(path.resolve().parent)
        return _MEDIA_TYPES[suffix]

    def _name(self, output: Path, number: int) -> Path:
        return output if self._count == 1 else output.with_stem(f"{output.stem}-{number + 1}")

    def _reserve(self, name: str) -> Path:
        """Make an empty file under the first name of this kind that is free, so that nobody else takes it."""
        first, others = Path(name), itertools.count(2)
        path = first
        while True:
            try:
                path.touch(exist_ok=False)
            except FileExistsError:
                path = first.with_stem(f"{first.stem}-{next(others)}")
            else:
                self._unfinished.add(path)
                return path

    def _put(self, path: Path, file: bytes) -> None:
        scratch = path.with_name(f".{secrets.token_hex(8)}")  # short, as the name may be as long as names may be
        self._unfinished.add(scratch)
        with scratch.open("xb", buffering=0) as picture:
            with suppress(FileNotFoundError):  # what is replaced keeps its permissions, from the first byte on
                os.fchmod(picture.fileno(), stat.S_IMODE(path.stat().st_mode))
            _write_all(picture.fileno(), file)
        scratch.replace(path)


def _check_place(path: Path) -> None:
    """Check that a file can be put there, in the place of another if there is one.

    Raises:
        InvalidRequestError: It cannot.
    """
    try:
        there = path.stat()
    except FileNotFoundError:
        return
    except OSError as error:  # a name that is too long, links that lead round in a circle
        raise InvalidRequestError(f"{path} cannot be written: {error.strerror}.", param="output") from error
    if not stat.S_ISREG(there.st_mode):
        raise InvalidRequestError(f"{path} is there, and is no file.", param="output")
    if not os.access(path, os.W_OK):
        raise InvalidRequestError(f"{path} is there, and may not be written.", param="output")


def _check_folder(folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InvalidRequestError(f"{folder} is no folder that can be written to.", param="output")


def _write_all(descriptor: int, data: bytes) -> None:
    """Write past Python's buffers, which would try again when they are closed what has failed."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
