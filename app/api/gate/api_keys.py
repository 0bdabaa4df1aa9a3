"""API keys: read from a file, kept as digests, reread when the file changes."""

import asyncio
import hashlib
import logging
import re
from pathlib import Path

from app.errors import KeysFileError, first_line

_log = logging.getLogger(__name__)

_LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,64})[ \t]*:[ \t]*(?P<key>[\x21-\x7e]{16,256})", re.ASCII)

_RELOAD_S = 1


class ApiKeys:
    """The keys of a file with one `NAME: KEY` in each line; reread when the file changes."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            KeysFileError: The file cannot be read, has no key, or has a line that is not `NAME: KEY`.
        """
        self._path = path
        self._names = self._read()

    @property
    def names(self) -> list[str]:
        """The keys' names, each once, in the order of the file."""
        return list(dict.fromkeys(self._names.values()))

    def name_of(self, sent: str) -> str | None:
        """Return the name of a key; None if it is unknown.

        Keys are compared as digests, so the time says nothing about how similar a wrong key is to a real one.
        """
        return self._names.get(_digest(sent))

    async def keep_fresh(self) -> None:
        """Read the file every second, until cancelled. If it cannot be used, keep the previous keys.

        A Kubernetes secret changes by a symbolic link, so the file's modification time is no sign of a change.
        """
        logged = ""  # the current error, which is logged once
        while True:
            await asyncio.sleep(_RELOAD_S)
            try:
                names = await asyncio.to_thread(self._read)
            except KeysFileError as error:
                if str(error) != logged:
                    _log.error("%s The previous keys stay valid.", error)
                logged = str(error)
                continue
            if logged or names != self._names:
                self._names = names
                _log.info("API keys: %s", ", ".join(self.names))
            logged = ""

    def _read(self) -> dict[bytes, str]:
        """Return the names by the digests of their keys. Errors give a line's number only: a line holds a secret."""
        try:
            text = self._path.read_text(encoding="utf-8-sig")  # some editors write a byte order mark
        except (OSError, UnicodeError) as error:
            raise KeysFileError(f"The API keys cannot be read: {first_line(error)}.") from error
        names: dict[bytes, str] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            match = _LINE.fullmatch(line.strip())
            if match is None:
                raise KeysFileError(
                    f"Line {number} of the API keys is not NAME: KEY, with a key of 16 to 256 printable characters."
                )
            names[_digest(match["key"])] = match["name"]
        if not names:
            raise KeysFileError("The file of API keys contains no key.")
        return names


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
