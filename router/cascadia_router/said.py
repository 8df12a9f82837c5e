"""What an answer says: texts and tool calls, read only when somebody has to look at them."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import Struct

__all__ = ["UNREADABLE", "Said", "ToolCall", "said_by", "said_by_chunks"]


UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What reading an answer raises if it is none."""


class ToolCall(Struct):
    """A call of a tool.

    Attributes:
        name: The tool's.
        arguments: JSON, if the model wrote JSON.
    """

    name: str
    arguments: str


class Said(Struct):
    """One choice of an answer.

    Attributes:
        text: Its text; empty if it only calls tools.
        tool_calls: Its calls of tools.
    """

    text: str
    tool_calls: list[ToolCall]

    @property
    def as_text(self) -> str:
        """The text; after it each call of a tool, as a line of JSON."""
        calls = [
            f'{{"tool": {msgspec.json.encode(c.name).decode()}, "arguments": {c.arguments}}}' for c in self.tool_calls
        ]
        return "\n".join([self.text, *calls] if self.text else calls)


class _Function(Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(Struct):
    index: int = 0
    function: _Function | None = None


class _Message(Struct):
    content: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(Struct):
    index: int = 0
    text: str | None = None
    message: _Message | None = None
    delta: _Message | None = None


class _Answer(Struct):
    choices: list[_Choice]


_decoder = msgspec.json.Decoder(_Answer)


def said_by(document: bytes) -> list[Said]:
    """The choices of an answer that came whole.

    Raises:
        msgspec.DecodeError: It does not have an answer's shape.
    """
    said = []
    for choice in _decoder.decode(document).choices:
        message = choice.message or _Message(choice.text)
        calls = [each.function or _Function() for each in message.tool_calls or ()]
        said.append(Said(message.content or "", [ToolCall(call.name or "", call.arguments or "") for call in calls]))
    return said


def said_by_chunks(payloads: Iterable[bytes]) -> list[Said]:
    """The choices of a streamed answer, put together from its chunks.

    Raises:
        msgspec.DecodeError: One does not have a chunk's shape.
    """
    texts: dict[int, list[str]] = {}
    calls: dict[int, dict[int, ToolCall]] = {}
    for payload in payloads:
        for choice in _decoder.decode(payload).choices:
            piece = choice.delta or _Message(choice.text)
            texts.setdefault(choice.index, []).append(piece.content or "")
            its_calls = calls.setdefault(choice.index, {})
            for call in piece.tool_calls or ():
                whole = its_calls.setdefault(call.index, ToolCall("", ""))
                function = call.function or _Function()
                whole.name += function.name or ""
                whole.arguments += function.arguments or ""
    return [Said("".join(texts[index]), [*calls[index].values()]) for index in sorted(texts)]
