"""How many connections may be open, and which one is closed for a new one."""

import asyncio
import logging
import resource
from collections.abc import Callable
from typing import Protocol

_log = logging.getLogger(__name__)

BACKLOG = 512
"""Connections that the system queues until they are accepted. As many may be accepted at once."""

_OTHER_DESCRIPTORS = 256
"""Open files besides connections: libraries, logs, and large bodies, which are spooled to disk."""

_DESCRIPTORS_OF_A_FLOOD = 4 * BACKLOG
"""Connections that may be accepted before the connections that must make room for them are closed."""

_FEWEST_CONNECTIONS = 16

_DESCRIPTORS_PER_CONNECTION = 2
"""One for the connection, one for the file that it uploads."""


class Connection(Protocol):
    """A connection, as far as its limits are concerned."""

    transport: asyncio.Transport


class ConnectionLimits:
    """What one server allows its connections, and which of them it could do without.

    Args:
        header_timeout_s: Seconds that a request's header may take to arrive.
        max_connections: Connections that are open at once. For one more, that is closed whose client has kept the
            service waiting longest; requests that have arrived whole are never given up for new ones.
        count_error: Counts an answer that is given here, below the app; it gets the error's code.
    """

    def __init__(self, *, header_timeout_s: float, max_connections: int, count_error: Callable[[str], None]) -> None:
        self.header_timeout_s = header_timeout_s
        self.count_error = count_error
        self.max_connections = max_connections
        self._open = 0
        self._awaited: dict[Connection, None] = {}  # in the order in which the waiting began
        self._given_up: set[Connection] = set()

    def opened(self) -> None:
        """Count a connection, and make room for it."""
        self._open += 1
        self._make_room()

    def closed(self, connection: "Connection") -> None:
        """Count it no more."""
        self._awaited.pop(connection, None)
        if connection in self._given_up:
            self._given_up.remove(connection)
        else:
            self._open -= 1

    def review(self, connection: "Connection", *, awaited: bool) -> None:
        """Note whether the service waits for this connection's client: to send a request, or to read its answer."""
        if not awaited:
            self._awaited.pop(connection, None)
        elif connection not in self._awaited and connection not in self._given_up:
            self._make_room()  # if none could be had before; this one is the last to be given up
            self._awaited[connection] = None

    def _make_room(self) -> None:
        while self._open > self.max_connections and self._awaited:
            longest = next(iter(self._awaited))
            del self._awaited[longest]
            self._open -= 1  # now, as it is closed a little later
            self._given_up.add(longest)
            longest.transport.abort()


def reserve_descriptors(max_connections: int) -> int:
    """Raise the process's limit of open files as far as the connections need it, and return how many it has room for.

    A process without descriptors accepts nobody, not the probes either.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    others = _OTHER_DESCRIPTORS + _DESCRIPTORS_OF_A_FLOOD
    wanted = max_connections * _DESCRIPTORS_PER_CONNECTION + others
    if hard != resource.RLIM_INFINITY and wanted > hard:
        max_connections = max(_FEWEST_CONNECTIONS, (hard - others) // _DESCRIPTORS_PER_CONNECTION)
        _log.warning("open files are limited to %d, so TURBO_MAX_CONNECTIONS is %d", hard, max_connections)
        wanted = hard
    if soft != resource.RLIM_INFINITY and wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max_connections
