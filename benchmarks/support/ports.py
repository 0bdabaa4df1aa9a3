"""Ports for servers that must know theirs before they start."""

import contextlib
import random
import socket


def free_port() -> int:
    """Return a free TCP port of loopback, which no connection takes before the server that is to have it has started.

    The kernel gives connections their ports from 32768 on (ip_local_port_range, ip(7)), and Ray its workers from 10002
    to 19999.
    """
    while True:
        port = random.randrange(20_000, 32_768)  # noqa: S311 - no secret
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
