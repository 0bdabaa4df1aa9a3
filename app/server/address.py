"""The check of the address to listen on, before anything is loaded."""

import errno
import socket

from app.errors import AddressError


def check_address(host: str, port: int) -> None:
    """Check that the service can listen at this address. The port stays closed until the model is loaded.

    Raises:
        AddressError: The port is in use or needs other rights, or the host is not an address of this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in found:
            try:
                listener = socket.socket(family, kind, protocol)
            except OSError:  # such as IPv6 that the kernel lacks; asyncio skips it too
                continue
            with listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind(address)
    except UnicodeError as error:
        remedy = "Set TURBO_HOST to an address or a name of this machine."
        raise AddressError(f"{host}:{port}: The host's name is invalid.", remedy=remedy) from error
    except OSError as error:
        remedies = {
            errno.EADDRINUSE: "Set TURBO_PORT to another port, or stop the program that listens there.",
            errno.EACCES: "Set TURBO_PORT to a port that this user may listen on, such as 8000.",
        }
        remedy = remedies.get(error.errno or 0, "Set TURBO_HOST to an address of this machine.")
        raise AddressError(f"{host}:{port}: {error.strerror or error}.", remedy=remedy) from error
