"""Server-sent events of a streamed completion: relayed as they come, or held until they are scored.

Both take the engine's bytes as they arrive and both end the stream with the cascade's decision: in the
engine's usage chunk where the client asked for usage, in a chunk of its own (`choices: []`) otherwise.
openai-python, openai-node and the AI SDK take such a chunk; they also need `[DONE]` last.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import Raw, Struct

from cascadia_router.completion_body import Usage, read_answer, strip_logprobs, with_field
from cascadia_router.scoring import TokenTally, score_of

__all__ = ["KEEP_ALIVE", "HeldStream", "StraightStream"]

KEEP_ALIVE = b": keep-alive\n\n"
"""A comment, which every client skips. An empty `data:` line breaks them."""

_MAX_EVENT_BYTES = 1024 * 1024
"""An event that grows longer is passed on without waiting for its end."""
_DONE = b"data: [DONE]\n\n"
_NULL = Raw(b"null")


class _ChunkHead(Struct):
    """What a stream's own chunk repeats of the engine's."""

    id: Raw = _NULL
    object: Raw = _NULL
    created: Raw = _NULL
    model: Raw = _NULL


_head_decoder = msgspec.json.Decoder(_ChunkHead)


class _EventStream:
    """Common to both: splits bytes into events and keeps what ends the stream.

    Attributes:
        usage: The engine's count of tokens, once it has come.
        done: Whether the engine has ended the stream with `[DONE]`.
        failed: Whether the engine has sent an error in place of a chunk.
    """

    def __init__(self, *, wants_usage: bool) -> None:
        self.usage: Usage | None = None
        self.done = False
        self.failed = False
        self._wants_usage = wants_usage
        self._tail = b""
        self._head: bytes | None = None
        self._usage_payload: bytes | None = None

    def _complete_events(self, data: bytes) -> bytes:
        """Return what is complete of what has come; the rest waits for more."""
        if self._tail:
            data = self._tail + data
        if b"\r" in data:
            # Raw carriage returns are line ends only: within JSON they are escaped.
            cr = b"\r" if data.endswith(b"\r") else b""
            data = data.removesuffix(cr).replace(b"\r\n", b"\n") + cr
        end = data.rfind(b"\n\n")
        if data.endswith(b"\n\n") or (end < 0 and len(data) > _MAX_EVENT_BYTES):
            self._tail = b""
            return data
        cut = end + 2 if end >= 0 else 0
        self._tail = data[cut:]
        return data[:cut]

    def _payload(self, event: bytes) -> bytes | None:
        """Payload of an event's `data` line; None for a comment."""
        for line in event.split(b"\n"):
            if line.startswith(b"data:"):
                payload = line[5:].strip()
                if self._head is None and payload.startswith(b"{"):
                    self._keep_head(payload)
                return payload
        return None

    def _keep_head(self, payload: bytes) -> None:
        try:
            head = _head_decoder.decode(payload)
        except msgspec.DecodeError:
            return
        # `object` of a chat's chunk is chat.completion.chunk, of a completion's text_completion.
        self._head = b'{"id":%s,"object":%s,"created":%s,"model":%s,"choices":[]}' % (
            bytes(head.id),
            bytes(head.object),
            bytes(head.created),
            bytes(head.model),
        )

    def _ending(self, decision: bytes) -> bytes:
        """The chunk that carries the decision, and the end."""
        chunk = self._usage_payload if self._wants_usage else None
        chunk = chunk or self._head or b'{"choices":[]}'
        return b"data: %s\n\n%s" % (with_field(chunk, b"cascadia", decision), _DONE)


class StraightStream(_EventStream):
    """A stream that goes to the client chunk by chunk."""

    def feed(self, data: bytes, decision: bytes) -> bytes:
        """Take bytes of the engine; return what to send on now.

        Args:
            data: As read.
            decision: JSON of the `cascadia` object, for the end if it is in these bytes.
        """
        if (
            data.endswith(b"\n\n")
            and not (b"[D" in data or b"[]" in data or b"\r" in data or self._tail)
            and self._head is not None
        ):
            return data  # whole events, and nothing in them that ends a stream
        events = self._complete_events(data)
        if self._head is None and events:
            for event in events.split(b"\n\n"):
                self._payload(event)
        if not (b"[DONE]" in events or b'"choices":[]' in events or b'"choices": []' in events):
            return events
        kept = []
        for event in events.split(b"\n\n")[:-1]:
            payload = self._payload(event)
            if payload == b"[DONE]":
                self.done = True
                kept.append(self._ending(decision))
            elif payload is None or not self._takes_usage(payload):
                kept.append(event + b"\n\n")
        return b"".join(kept)

    def _takes_usage(self, payload: bytes) -> bool:
        try:
            chunk = read_answer(payload)
        except msgspec.DecodeError:
            return False
        if chunk.choices or chunk.usage is None:
            return False
        self.usage = chunk.usage
        self._usage_payload = payload
        return True


class HeldStream(_EventStream):
    """A stream that is held until it is scored, then replayed as it came or dropped.

    Attributes:
        size: Bytes held.
        unreadable: Whether an event was not an answer's chunk.
    """

    def __init__(self, *, wants_usage: bool, wants_logprobs: bool) -> None:
        super().__init__(wants_usage=wants_usage)
        self.size = 0
        self.unreadable = False
        self._wants_logprobs = wants_logprobs
        self._events: list[bytes] = []
        self._tallies: dict[int, TokenTally] = {}

    def feed(self, data: bytes) -> None:
        """Take bytes of the engine."""
        self.size += len(data)
        events = self._complete_events(data)
        if events:
            for event in events.split(b"\n\n")[:-1]:
                self._take(event)

    def _take(self, event: bytes) -> None:
        payload = self._payload(event)
        if payload is None:
            return  # a comment of the engine's: we send our own
        if payload == b"[DONE]":
            self.done = True
            return
        try:
            chunk = read_answer(payload)
            for choice in chunk.choices:
                self._tallies.setdefault(choice.index, TokenTally()).add(choice.logprobs)
        except msgspec.DecodeError:
            self.unreadable = True
            return
        if bytes(chunk.error) != b"null":
            self.failed = True
        if chunk.usage is not None:
            self.usage = chunk.usage
            if not chunk.choices:
                self._usage_payload = payload
                return
        self._events.append(b"data: " + (payload if self._wants_logprobs else strip_logprobs(payload, chunk)))

    def score(self, statistic: Literal["Mean", "Minimum"]) -> float | None:
        """Score of the whole answer; None if it cannot be scored."""
        return score_of(list(self._tallies.values()), statistic)

    def replay(self, decision: bytes) -> bytes:
        """The whole stream, decision included.

        Args:
            decision: JSON of the `cascadia` object.
        """
        self._events.append(self._ending(decision))
        return b"\n\n".join(self._events)
