"""Which clients may send requests, and how many: API keys, pages of other sites, rate limits."""

import base64
import ipaddress
import math
import re
import time
from collections.abc import Mapping

import limits
from fastapi import Request
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

from app import errors
from app.api.gate.api_keys import ApiKeys
from app.settings import Settings, split_list

ORIGIN_NOT_ALLOWED = "Pages of this origin may not use the service; TURBO_CORS_ORIGINS lists the origins that may."

_IPV6_CLIENT_BITS = 64
"""A household or machine has a /64 network, so its addresses count as one client."""


class Access:
    """Checks each request's key, origin and rate.

    `keys` are read when the service starts; None means that no key is needed.
    """

    def __init__(self, settings: Settings) -> None:
        self.keys: ApiKeys | None = None
        self.origins = split_list(settings.cors_origins)
        self._rates = _rates_of(settings.rate_limit)
        self._url_rates = _rates_of(settings.url_rate_limit)
        self._url_embedding = settings.url_embedding
        self._counted = FixedWindowRateLimiter(MemoryStorage())

    def identify(self, request: Request) -> str:
        """Return the client: the name of its key, or its address if no key is needed.

        Raises:
            UnauthorizedError: A key is needed, and the request has none or an unknown one.
        """
        if self.keys is None:
            return _client_of(request.client.host if request.client else "")
        sent = _key_of(request.headers)
        if not sent:
            raise errors.UnauthorizedError(
                "Send an API key, as `Authorization: Bearer KEY`, as `X-API-Key: KEY` or as the password of Basic."
            )
        name = self.keys.name_of(sent)
        if name is None:
            raise errors.UnauthorizedError("The service does not know this API key.")
        return name

    def check_origin(self, request: Request) -> None:
        """Reject requests from pages of other sites, as any page can send a form to any address, localhost included.

        Browsers send `Sec-Fetch-Site` over TLS and on loopback, else `Origin` alone. Other clients send neither.

        Raises:
            ForbiddenOriginError: The request is from a page of another site, which `origins` does not allow.
        """
        origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
        if site is not None:
            foreign = site not in ("same-origin", "none")
        else:
            foreign = origin is not None and not _is_own(origin, request.headers.get("host", ""))
        if foreign and not self._is_allowed(origin):
            raise errors.ForbiddenOriginError(ORIGIN_NOT_ALLOWED)

    def _is_allowed(self, origin: str | None) -> bool:
        return origin in self.origins or "*" in self.origins

    def check_page(self, request: Request) -> None:
        """Reject pictures by URL for pages of other sites, unless the settings let them show such pictures.

        A page's `<img>` sends no `Origin`, and over plain HTTP no `Sec-Fetch-Site`; then `Referer` names the page,
        unless the page withholds it. People may follow links from other sites.

        Raises:
            ForbiddenOriginError: A page of another site wants to show the picture.
        """
        sent = request.headers
        followed = sent.get("sec-fetch-dest") == "document" and sent.get("sec-fetch-user") == "?1"
        if self._url_embedding or followed:
            return
        if "sec-fetch-site" in sent or "origin" in sent:
            self.check_origin(request)
            return
        page = _origin_of(sent.get("referer", ""))
        if page and not _is_own(page, sent.get("host", "")) and not self._is_allowed(page):
            raise errors.ForbiddenOriginError(ORIGIN_NOT_ALLOWED)

    def count(self, client: str, *, by_url: bool = False) -> None:
        """Count a request of this client. `by_url`: for a picture by its URL, which may have rates of its own.

        Raises:
            RateLimitedError: The client exceeds a rate limit; `Retry-After` tells when the limit resets.
        """
        rates, counter = (self._url_rates, "by URL") if by_url and self._url_rates else (self._rates, "")
        for rate in rates:
            if not self._counted.hit(rate, counter, client):
                wait_s = self._counted.get_window_stats(rate, counter, client).reset_time - time.time()
                raise errors.RateLimitedError(
                    f"One client may send {rate.amount} requests per {rate.get_expiry()} s.",
                    retry_after_s=max(1, math.ceil(wait_s)),
                )


def _rates_of(text: str) -> list[limits.RateLimitItem]:
    return limits.parse_many(text) if text else []


def _key_of(headers: Mapping[str, str]) -> str:
    """Return the key that a request has: a Bearer token, `X-API-Key`, or the password of Basic with any user name."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    if scheme.lower() == "basic" and token.strip():
        try:
            return base64.b64decode(token.strip(), validate=True).decode("utf-8").partition(":")[2]
        except ValueError:
            return ""
    return headers.get("x-api-key", "")


def _origin_of(url: str) -> str:
    """Return the origin of an http or https URL; otherwise an empty text."""
    match = re.match(r"https?://[^/?#]+", url, re.IGNORECASE)
    return match[0].lower() if match else ""


def _is_own(origin: str, host: str) -> bool:
    """Tell whether an origin is the requested host. `host` may omit the default port of the origin's scheme."""
    scheme, _, authority = origin.partition("://")
    port = {"http": ":80", "https": ":443"}.get(scheme)
    return port is not None and authority != "" and authority == host.lower().removesuffix(port)


def _client_of(address: str) -> str:
    """Return the part of an address that identifies a client."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((ip, _IPV6_CLIENT_BITS), strict=False))
