"""Both ends of HTTP without a network: a transport that keeps what is written, and who hears what was read."""

from __future__ import annotations

import asyncio
from typing import Any

from cascadia_router.http1_request import Limits, Request, Room
from cascadia_router.http1_server import ServerConnection
from cascadia_router.response_sink import Fault

__all__ = ["LIMITS", "Echo", "Sink", "Wire", "serve", "statuses_of"]

LIMITS = Limits(header_bytes=400, headers=8, body_bytes=300)


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False
        self.paused = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class Echo:
    """Answers each request with its body."""

    closing = False

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def expects(self, target: bytes, authorization: bytes) -> bool:
        return True

    def turned_away(self, status: int, code: str, given_id: bytes) -> bytes:
        """See `Application`."""
        return b""

    def handle(self, connection: ServerConnection, request: Request) -> None:
        self.requests.append(request)
        connection.respond(200, request.body)


def statuses_of(written: bytes) -> list[int]:
    """Statuses of the answers that were written; none of them is an answer to HEAD."""
    statuses: list[int] = []
    while written:
        head, separator, rest = written.partition(b"\r\n\r\n")
        assert separator
        statuses.append(int(head.split(b" ")[1]))
        length = next((line for line in head.split(b"\r\n") if line.startswith(b"content-length: ")), None)
        written = rest[int(length[16:]) :] if length else rest
    return statuses


def serve(pieces: list[bytes]) -> tuple[Echo, Wire]:
    """Hand pieces to a server that echoes; nothing of their bodies is held afterwards."""

    async def run() -> tuple[Echo, Wire]:
        echo, wire, room = Echo(), Wire(), Room()
        connection = ServerConnection(echo, LIMITS, set(), room)
        connection.connection_made(wire)  # type: ignore[arg-type]
        for piece in pieces:
            if wire.closed:
                break
            connection.data_received(piece)
            for _ in range(3 * len(piece)):
                if not connection._queue:
                    break
                await asyncio.sleep(0)
        await asyncio.sleep(0)
        connection.connection_lost(None)
        assert room.used == 0
        return echo, wire

    return asyncio.run(run())


class Sink:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.body = b""

    def response_whole(self, head: bytes, body: bytes) -> None:
        self.heard += [200, "end"]
        self.body += body

    def response_head(self, status: int, headers: dict[bytes, bytes], length: int | None) -> None:
        self.heard.append(status)

    def response_body(self, data: bytes) -> None:
        self.body += data

    def response_pump(self) -> None:
        pass

    def response_end(self) -> None:
        self.heard.append("end")

    def response_fault(self, fault: Fault) -> None:
        self.heard.append(fault)
