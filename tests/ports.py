"""Ports that nothing listens on."""

import contextlib
import socket


def free_ports(count: int) -> list[int]:
    """Returns different ports that are free at this moment."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("localhost", 0))
        return [one.getsockname()[1] for one in sockets]
