"""A listening port and the connections that came in on it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from time import monotonic
from typing import cast

from cascadia_router.http1_request import Application, Limits, Room
from cascadia_router.http1_server import ServerConnection

__all__ = ["Listener"]


HANDSHAKE_SECONDS = 10.0
"""Longest TLS handshake, wall s."""


class Listener:
    """One listening port with its connections."""

    def __init__(self, application: Application, limits: Callable[[], Limits], room: Room) -> None:
        """Prepare a port.

        Args:
            application: Answers its requests.
            limits: Returns what a connection that comes now may ask for.
            room: For the bodies of requests; other ports may share it.
        """
        self.application = application
        self._limits = limits
        self._room = room
        self.connections: set[ServerConnection] = set()
        self._server: asyncio.Server | None = None

    async def start(self, address: str, tls: ssl.SSLContext | None = None) -> str:
        """Listen on ``host:port``; return the address with the real port (for port 0).

        Args:
            address: See above.
            tls: For TLS; None for plain connections.

        Raises:
            OSError: The address is not free or not this machine's.
        """
        host, _, port = address.rpartition(":")
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            self._connection,
            host.strip("[]"),
            int(port),
            backlog=1024,
            ssl=tls,
            ssl_handshake_timeout=None if tls is None else HANDSHAKE_SECONDS,
        )
        return f"{host}:{self._server.sockets[0].getsockname()[1]}"

    def _connection(self) -> asyncio.Protocol:
        connection = ServerConnection(self.application, self._limits(), self.connections, self._room)
        return cast("asyncio.Protocol", connection)

    def stop_accepting(self) -> None:
        """Close the listening socket and the connections on which nothing is under way."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.close_idle()

    def close_idle(self) -> None:
        """Close the connections on which nothing is under way."""
        for connection in list(self.connections):
            if connection.is_idle():
                connection.close()

    def close(self) -> None:
        """Close everything, answers under way included."""
        self.stop_accepting()
        for connection in list(self.connections):
            connection.abort()

    def sweep(self) -> None:
        """Close the connections whose time is over; call about once a second."""
        now = monotonic()
        for connection in list(self.connections):
            connection.expire(now)
