"""The number of open connections, and which of them is closed when there are too many."""

import asyncio
import logging
import resource
from collections.abc import Callable
from dataclasses import dataclass, field

_log = logging.getLogger(__name__)

BACKLOG = 512
"""Connections that the system queues until they are accepted. The service may accept all of them at once."""

_OTHER_DESCRIPTORS = 256 + 4 * BACKLOG
"""Open files besides connections: 256 for libraries, logs and large bodies on disk; and new connections that are
accepted in a burst, before those that make room for them are closed."""

_FEWEST_CONNECTIONS = 16

_DESCRIPTORS_PER_CONNECTION = 2
"""One for the connection, one for the file that it uploads."""


@dataclass(kw_only=True)
class ConnectionLimits:
    """The limits of one server's connections.

    At `max_connections`, the connection whose client has stalled longest is closed. A connection whose request has
    arrived completely is never closed for a new one.
    """

    header_timeout_s: float
    max_connections: int
    count_error: Callable[[str], None]
    """Counts an error response that is sent below the app, by the error's code."""
    _open: set[asyncio.Transport] = field(default_factory=set, init=False)
    _stalled: dict[asyncio.Transport, None] = field(default_factory=dict, init=False)
    """Open connections whose clients have stalled, the longest stalled first."""

    def opened(self, connection: asyncio.Transport) -> None:
        """Count a connection, and make room for it."""
        self._open.add(connection)
        self._make_room()

    def closed(self, connection: asyncio.Transport) -> None:
        """Stop counting a connection."""
        self._open.discard(connection)
        self._stalled.pop(connection, None)

    def review(self, connection: asyncio.Transport, *, stalled: bool) -> None:
        """Note whether the service waits for the client: to send a request, or to read its response."""
        if not stalled:
            self._stalled.pop(connection, None)
        elif connection in self._open and connection not in self._stalled:
            self._make_room()  # before this connection is added, because it has stalled for the shortest time
            self._stalled[connection] = None

    def _make_room(self) -> None:
        while len(self._open) > self.max_connections and self._stalled:
            longest = next(iter(self._stalled))
            self.closed(longest)
            longest.abort()


def reserve_descriptors(max_connections: int) -> int:
    """Raise the process's limit of open files for the connections, and return how many connections it allows.

    Without free descriptors a process accepts no connection, not even from health checks.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_connections * _DESCRIPTORS_PER_CONNECTION + _OTHER_DESCRIPTORS
    if hard != resource.RLIM_INFINITY and wanted > hard:
        max_connections = max(_FEWEST_CONNECTIONS, (hard - _OTHER_DESCRIPTORS) // _DESCRIPTORS_PER_CONNECTION)
        _log.warning("open files are limited to %d, so TURBO_MAX_CONNECTIONS is %d", hard, max_connections)
        wanted = hard
    if soft != resource.RLIM_INFINITY and wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max_connections
