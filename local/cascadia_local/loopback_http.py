"""One HTTP request to a process of this run: enough for probes, reports and `/drain`.

Each request has a connection of its own, so a restarted process is never asked over a dead one.
"""

from __future__ import annotations

import asyncio

from cascadia_api.errors import CascadiaError

__all__ = ["UnreachableError", "ask"]

MAX_ANSWER_BYTES = 16 * 1024 * 1024


class UnreachableError(CascadiaError):
    """The process did not answer in time, or not with HTTP."""


async def ask(address: str, path: str, *, method: str = "GET", deadline_s: float = 5.0) -> tuple[int, bytes]:
    """Send a request without a body; return the status and the body.

    Args:
        address: ``host:port``.
        path: Path and query.
        method: HTTP method.
        deadline_s: Wall seconds for the whole exchange.

    Raises:
        UnreachableError: No complete HTTP answer within the deadline.
    """
    try:
        async with asyncio.timeout(deadline_s):
            answer = await _exchange(address, f"{method} {path} HTTP/1.1")
        head, _, body = answer.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").lower().split("\r\n")
        status = int(lines[0].split(" ")[1])
    except (TimeoutError, OSError, ValueError, IndexError, EOFError) as error:
        raise UnreachableError(f"{method} http://{address}{path}: {type(error).__name__} {error}".rstrip()) from error
    if "transfer-encoding: chunked" in lines:
        body = _dechunk(body)
    return status, body


async def _exchange(address: str, request_line: str) -> bytes:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=MAX_ANSWER_BYTES)
    try:
        head = f"{request_line}\r\nHost: {address}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        writer.write(head.encode())
        await writer.drain()
        return await reader.read(-1)
    finally:
        writer.close()


def _dechunk(body: bytes) -> bytes:
    parts: list[bytes] = []
    position = 0
    while True:
        end = body.index(b"\r\n", position)
        size = int(body[position:end].split(b";")[0], 16)
        if not size:
            return b"".join(parts)
        parts.append(body[end + 2 : end + 2 + size])
        position = end + size + 4
