"""An engine's double for transport faults: it speaks just enough HTTP to be asked, and misbehaves on request.

The product's simulated engine stands for real engines elsewhere; this one is for what no engine does on
purpose: resets, truncated and malformed answers, silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "Behaviour",
    "RunningEngine",
    "ScriptedEngine",
    "Seen",
    "answer",
    "hang",
    "malformed",
    "reset",
    "status",
    "stream_then",
    "truncated",
]


@dataclass
class Seen:
    """One request as the engine saw it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Behaviour = Callable[["ScriptedEngine", Seen, asyncio.StreamWriter], Awaitable[None]]


def http_response(code: int, body: bytes, content_type: str = "application/json", extra: str = "") -> bytes:
    head = f"HTTP/1.1 {code} X\r\ncontent-type: {content_type}\r\n{extra}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def completion(engine: str, seen: Seen, logprob: float, tokens: int, *, scored: bool = True) -> dict[str, Any]:
    """An answer to a chat or completions request, with log-probabilities if they were asked for."""
    asked = seen.json.get("logprobs")
    words = [f"{engine}{index} " for index in range(tokens)]
    text = "".join(words)
    chat = seen.path.endswith("chat/completions")
    logprobs: Any = None
    if asked not in (None, False) and scored:
        logprobs = (
            {"content": [{"token": word, "logprob": logprob, "bytes": None, "top_logprobs": []} for word in words]}
            if chat
            else {"tokens": words, "token_logprobs": [logprob] * tokens, "top_logprobs": None, "text_offset": []}
        )
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "logprobs": logprobs}
    choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    return {
        "id": "cmpl-1",
        "object": "chat.completion" if chat else "text_completion",
        "created": 1,
        "model": seen.json["model"],
        "choices": [choice],
        "usage": {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens},
        "engineExtra": {"kept": True},
    }


def events(engine: str, seen: Seen, logprob: float, tokens: int) -> list[bytes]:
    """The same as a stream's events."""
    chat = seen.path.endswith("chat/completions")
    asked = seen.json.get("logprobs") not in (None, False)
    base = {"id": "cmpl-1", "object": "chat.completion.chunk", "created": 1, "model": seen.json["model"]}
    if not chat:
        base["object"] = "text_completion"
    made = []
    for index in range(tokens):
        word = f"{engine}{index} "
        logprobs: Any = None
        if asked:
            logprobs = (
                {"content": [{"token": word, "logprob": logprob, "bytes": None, "top_logprobs": []}]}
                if chat
                else {"tokens": [word], "token_logprobs": [logprob], "top_logprobs": None, "text_offset": []}
            )
        piece = {"delta": {"role": "assistant", "content": word}} if chat else {"text": word}
        finish = "stop" if index == tokens - 1 else None
        made.append({**base, "choices": [{"index": 0, **piece, "logprobs": logprobs, "finish_reason": finish}]})
    if (seen.json.get("stream_options") or {}).get("include_usage"):
        usage = {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens}
        made.append({**base, "choices": [], "usage": usage})
    return [b"data: " + json.dumps(event).encode() + b"\n\n" for event in made] + [b"data: [DONE]\n\n"]


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def answer(logprob: float = -0.05, tokens: int = 3, *, scored: bool = True) -> Behaviour:
    """Answer properly, streamed if asked; `scored=False` leaves out the log-probabilities."""

    async def behave(engine: ScriptedEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
        if seen.json.get("stream"):
            writer.write(STREAM_HEAD)
            for event in events(engine.name, seen, logprob, tokens):
                writer.write(chunk(event))
                await asyncio.sleep(0)
            writer.write(b"0\r\n\r\n")
        else:
            writer.write(
                http_response(200, json.dumps(completion(engine.name, seen, logprob, tokens, scored=scored)).encode())
            )

    return behave


def status(code: int, body: bytes = b'{"error": {"message": "engine says no"}}') -> Behaviour:
    """Answer with a status."""

    async def behave(engine: ScriptedEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(http_response(code, body))

    return behave


async def reset(engine: ScriptedEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
    """Close the connection without a word."""
    writer.transport.abort()


async def malformed(engine: ScriptedEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
    """Answer 200 with a body that is no answer."""
    writer.write(http_response(200, b'{"choices": [{'))


async def truncated(engine: ScriptedEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
    """Announce more than is sent, then close."""
    writer.write(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{"id": 1')
    await writer.drain()
    writer.transport.abort()


async def hang(engine: ScriptedEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
    """Never answer; end when the peer has gone."""
    await asyncio.Event().wait()


def stream_then(
    ending: str, pieces: int = 2, gate: asyncio.Event | None = None, *, logprob: float = -0.05
) -> Behaviour:
    """Send some events of a stream, wait for the gate if there is one, then `reset`, `stop` (no [DONE]) or `hang`.

    `end` sends one more event and ends the stream properly.
    """

    async def behave(engine: ScriptedEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        sent = events(engine.name, seen, logprob, pieces + 1)
        for event in sent[:pieces]:
            writer.write(chunk(event))
        await writer.drain()
        if gate is not None:
            await gate.wait()
        if ending == "end":
            for event in sent[pieces:]:
                writer.write(chunk(event))
            writer.write(b"0\r\n\r\n")
        elif ending == "reset":
            writer.transport.abort()
        elif ending == "stop":
            writer.write(b"0\r\n\r\n")
        else:
            await asyncio.Event().wait()

    return behave


@dataclass
class ScriptedEngine:
    """One engine on a free port of loopback.

    Attributes:
        name: Appears in its answers.
        behaviour: What it does with completion requests from now on.
        ready: What `/ready` answers.
        healthy: What `/health` answers.
        seen: Completion requests, in order.
        disconnects: Requests whose connection the peer closed while they were being answered.
    """

    name: str
    behaviour: Behaviour = field(default_factory=answer)
    ready: int = 200
    healthy: int = 200
    seen: list[Seen] = field(default_factory=list)
    disconnects: int = 0
    address: str = ""

    def __post_init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.changed = asyncio.Event()

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", port)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Die: no listener, no connection."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not writer.transport.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                first, *lines = head.decode("latin-1").strip().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                method, path, _ = first.split(" ")
                await self._answer(Seen(method, path, headers, body), reader, writer)
                with contextlib.suppress(ConnectionError):
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.transport.abort()

    async def _answer(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if seen.path == "/ready":
            writer.write(http_response(self.ready, b"{}"))
        elif seen.path == "/health":
            writer.write(http_response(self.healthy, b"{}"))
        elif seen.path == "/metrics":
            writer.write(http_response(200, b"sglang:num_running_reqs 3\n", "text/plain"))
        else:
            self.seen.append(seen)
            self.changed.set()
            await self._unless_gone(self.behaviour(self, seen, writer), reader)

    async def _unless_gone(self, work: Awaitable[None], reader: asyncio.StreamReader) -> None:
        """Behave until done, or until the peer closes the connection."""
        working = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                self.disconnects += 1
                self.changed.set()
                raise ConnectionResetError
            await working
        finally:
            working.cancel()
            gone.cancel()
            await asyncio.gather(working, gone, return_exceptions=True)


class RunningEngine(ScriptedEngine):
    """An engine that runs elsewhere, in the place of a scripted one."""

    async def start(self, port: int = 0) -> None:
        """It runs already."""

    async def stop(self) -> None:
        """It is stopped elsewhere."""
