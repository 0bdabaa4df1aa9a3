"""Who may ask, and how often: API keys, other sites' pages, and the rate of one client."""

import ipaddress
import logging
import math
import time
from collections.abc import Sequence

import limits
from fastapi import Request
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

from app.api.gate.api_keys import ApiKeys
from app.errors import ForbiddenOriginError, RateLimitedError, UnauthorizedError

_log = logging.getLogger(__name__)


NOT_ALLOWED = "This origin's pages may not ask here; TURBO_CORS_ORIGINS names those that may."
_IPV6_NETWORK_BITS = 64
"""What one household or machine is given: its addresses are one client."""


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
