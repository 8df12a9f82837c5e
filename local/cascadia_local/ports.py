"""Free loopback ports, from a range that the kernel does not take for outgoing connections.

A port from the ephemeral range (``bind(0)``) can be taken by some outgoing connection between the
moment that it was found free and the moment that a server, or its restart after a crash, binds it.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

from cascadia_api.errors import CascadiaError

__all__ = ["PortAllocator", "is_free"]

LOOPBACK = "127.0.0.1"
LOWEST, HIGHEST = 10_240, 32_000


def _ephemeral_start() -> int:
    """First port of the kernel's ephemeral range; Linux' default where it cannot be read."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 32_768


def is_free(port: int) -> bool:
    """Whether a server can bind `port` on loopback now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers bind: connections of an earlier owner that linger in TIME_WAIT do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


class PortAllocator:
    """Hands out ports of one run, each once until it is given back."""

    def __init__(self) -> None:
        self._highest = max(LOWEST + 1_000, min(HIGHEST, _ephemeral_start() - 1))
        self._taken: set[int] = set()

    def take(self) -> int:
        """Return a free loopback port.

        Raises:
            CascadiaError: None was found.
        """
        for _ in range(1_000):
            port = random.randint(LOWEST, self._highest)  # noqa: S311 - spreads concurrent runs apart
            if port not in self._taken and is_free(port):
                self._taken.add(port)
                return port
        raise CascadiaError(f"no free loopback port between {LOWEST} and {self._highest}: end some servers")

    def give_back(self, *ports: int) -> None:
        """Make ports available again."""
        self._taken.difference_update(ports)
