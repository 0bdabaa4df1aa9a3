"""Picture files: where the pictures of one request go, each written as a whole or not at all."""

import itertools
import os
from pathlib import Path
from typing import TextIO

from app.errors import InvalidRequestError
from app.inference.image_codec import MediaType
from app.pipelines.base import GenerationParams

_MEDIA_TYPES = {
    ".png": MediaType.PNG,
    ".webp": MediaType.WEBP,
    ".jpg": MediaType.JPEG,
    ".jpeg": MediaType.JPEG,
}


STDOUT = "-"
"""The output's name that is stdout."""


class PictureFiles:
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

    def write(self, number: int, params: GenerationParams, file: bytes) -> str:
        """Write the picture of this number, from 0 on, and return its file's name.

        Raises:
            OSError: It cannot be written; nothing is left of it. `filename` is its name.
        """
        name = "stdout" if self._stdout is not None else f"{params.mode}-{params.seed}.png"
        try:
            if self._stdout is not None:
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
            suffix, folder = ".png", Path.cwd()
        else:
            suffix, folder = self._output.suffix.lower(), self._output.resolve().parent
            for path in (self._name(self._output, number) for number in range(self._count)):
                if path.exists() and not path.is_file():
                    raise InvalidRequestError(f"{path} is there, and is no file.", param="output")
        if suffix not in _MEDIA_TYPES:
            raise InvalidRequestError(f"{self._output} does not end in {', '.join(_MEDIA_TYPES)}.", param="output")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InvalidRequestError(f"{folder} is no folder that can be written to.", param="output")
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
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        self._unfinished.add(scratch)
        scratch.write_bytes(file)
        scratch.replace(path)


def _write_all(descriptor: int, data: bytes) -> None:
    """Write past Python's buffers, which would try again when they are closed what has failed."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
