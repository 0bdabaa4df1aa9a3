"""Who may ask, and how often: API keys, other sites' pages, and the rate of one client."""

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path

import limits
from fastapi import Request
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

from app.errors import ForbiddenOriginError, KeysFileError, RateLimitedError, UnauthorizedError, first_line

_log = logging.getLogger(__name__)

_LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,64})[ \t]*:[ \t]*(?P<key>[\x21-\x7e]{16,256})", re.ASCII)
_RELOAD_S = 1

NOT_ALLOWED = "This origin's pages may not ask here; TURBO_CORS_ORIGINS names those that may."
_IPV6_NETWORK_BITS = 64
"""What one household or machine is given: its addresses are one client."""


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


class Access:
    """The doors of the service.

    `keys`, which are read when the service starts, let in those who bring one; None lets in everybody.

    Args:
        rate_limits: How often one client may ask, such as `10/second;2000/hour`; empty for no limit.
        origins: Origins whose pages may ask, of which `*` is any.
    """

    def __init__(self, *, rate_limits: str, origins: Sequence[str]) -> None:
        self.keys: ApiKeys | None = None
        self.origins = origins
        self._rates = limits.parse_many(rate_limits) if rate_limits else []
        self._counted = FixedWindowRateLimiter(MemoryStorage())

    def identify(self, request: Request) -> str:
        """Return who asks: the name of the key, or the address where none is needed.

        Raises:
            UnauthorizedError: The request has no key, or a wrong one.
        """
        if self.keys is None:
            return _client_of(request.client.host if request.client else "")
        sent = _sent_key(request)
        name = self.keys.name_of(sent) if sent else None
        if name is None:
            raise UnauthorizedError(
                "The API key is not known here."
                if sent
                else "Send an API key, as `Authorization: Bearer KEY` or as `X-API-Key: KEY`."
            )
        return name

    def check_origin(self, request: Request) -> None:
        """Refuse pages of other sites: a browser sends a form from anywhere to anywhere, to this machine too.

        Browsers say `Sec-Fetch-Site` over TLS and on loopback, else `Origin` alone; other clients say neither.

        Raises:
            ForbiddenOriginError: A browser says that the request is another site's, and that is not allowed.
        """
        origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
        if site is not None:
            foreign = site not in ("same-origin", "none")
        else:
            foreign = origin is not None and not _is_own(origin, request.headers.get("host", ""))
        if foreign and origin not in self.origins and "*" not in self.origins:
            raise ForbiddenOriginError(NOT_ALLOWED)

    def count(self, client: str) -> None:
        """Count a request of this client.

        Raises:
            RateLimitedError: It asks too often; `Retry-After` says when its next request is taken.
        """
        for rate in self._rates:
            if not self._counted.hit(rate, client):
                wait_s = self._counted.get_window_stats(rate, client).reset_time - time.time()
                raise RateLimitedError(
                    f"One client may send {rate.amount} requests per {rate.get_expiry()} s.",
                    retry_after_s=max(1, math.ceil(wait_s)),
                )


def _sent_key(request: Request) -> str:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")


def _is_own(origin: str, host: str) -> bool:
    """Tell whether an origin is the host that was asked. Its scheme says which port `host` may leave out."""
    scheme, _, authority = origin.partition("://")
    port = {"http": ":80", "https": ":443"}.get(scheme)
    return port is not None and authority != "" and authority == host.lower().removesuffix(port)


def _client_of(address: str) -> str:
    """Return what is one client's of an address."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if ip.version == 4:  # noqa: PLR2004 - IP's own
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((ip, _IPV6_NETWORK_BITS), strict=False))
