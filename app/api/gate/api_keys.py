"""API keys: read from a file, kept as digests, reread when the file changes."""

import asyncio
import hashlib
import hmac
import logging
import re
from pathlib import Path

from app.errors import KeysFileError, first_line

_log = logging.getLogger(__name__)

_LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,64})[ \t]*:[ \t]*(?P<key>[\x21-\x7e]{16,256})", re.ASCII)

_RELOAD_S = 1


class ApiKeys:
    """The keys of a file, of which each has a line `NAME: KEY`; read again when the file changes.

    Kept as digests: all are of one length, so that comparing them takes the same time whatever was sent.
    """

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            KeysFileError: It cannot be read, has no key, or a line that is none.
        """
        self._path = path
        self._seen = b""
        self._names: dict[bytes, str] = {}
        self.reload()

    @property
    def names(self) -> list[str]:
        """The keys' names, each once, in the order of the file."""
        return list(dict.fromkeys(self._names.values()))

    def reload(self) -> bool:
        """Read the file again, and tell whether it has changed. What cannot be read leaves the keys as they were.

        Raises:
            KeysFileError: As the constructor.
        """
        try:
            text = self._path.read_text(encoding="utf-8-sig")  # some editors begin with a mark
        except (OSError, UnicodeError) as error:
            raise KeysFileError(f"The API keys cannot be read: {first_line(error)}.") from error
        if (seen := _digest(text)) == self._seen:
            return False
        self._seen = seen  # a file that is wrong is complained of once
        self._names = _parse_keys(text)
        return True

    def name_of(self, sent: str) -> str | None:
        """Return the name of a key, if it is one; in a time that does not depend on how near it is to one."""
        digest, found = _digest(sent), None
        for known, name in self._names.items():
            if hmac.compare_digest(known, digest):
                found = name
        return found

    async def keep_fresh(self) -> None:
        """Read the file every second, until cancelled: a Kubernetes secret changes by a link, so no date is trusted."""
        broken = False
        while True:
            await asyncio.sleep(_RELOAD_S)
            try:
                if await asyncio.to_thread(self.reload):
                    _log.info("API keys: %s", ", ".join(self.names))
                broken = False
            except KeysFileError as error:
                if not broken:
                    _log.error("%s The keys from before go on.", error)
                broken = True


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _parse_keys(text: str) -> dict[bytes, str]:
    """Return the names by the digests of their keys. A line that is wrong is named by its number: it holds a secret."""
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
        raise KeysFileError("The file of API keys has none.")
    return names
