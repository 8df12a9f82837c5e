"""What a client asked, as scorers need it: its text, the schema it wants, the tools it offers."""

from __future__ import annotations

import re

import msgspec
from msgspec import Raw, Struct

from cascadia_router.completion_body import CompletionRequest
from cascadia_router.said import UNREADABLE

__all__ = ["Asked", "asked_by", "fill_in"]


_NULL = Raw(b"null")


class _Part(Struct):
    type: str = ""
    text: str | None = None


class _Message(Struct):
    role: str = ""
    content: str | list[_Part] | None = None


class _Schema(Struct):
    schema: Raw = _NULL


class _Format(Struct):
    type: str = ""
    json_schema: _Schema | None = None


class _Function(Struct):
    name: str = ""
    parameters: Raw = _NULL


class _Tool(Struct):
    function: _Function | None = None


class Asked(Struct):
    """A request's body.

    Attributes:
        messages: Of a chat.
        prompt: Of a completion; anything but one string has no text.
        response_format: The form that is wanted.
        tools: Those that may be called.
        tool_choice: Which of them must be.
    """

    messages: list[_Message] | None = None
    prompt: Raw = _NULL
    response_format: _Format | None = None
    tools: list[_Tool] | None = None
    tool_choice: Raw = _NULL

    @property
    def text(self) -> str | None:
        """The whole question as text; None if it has none. A single message stands alone, others after their roles."""
        if self.messages is None:
            try:
                return msgspec.json.decode(self.prompt, type=str)
            except msgspec.DecodeError:
                return None
        texts = [(message.role, _text(message.content)) for message in self.messages]
        if len(texts) == 1:
            return texts[0][1]
        return "\n\n".join(f"{role}: {text}" for role, text in texts)

    @property
    def schema(self) -> bytes | None:
        """JSON Schema of the answer's text, if one is wanted."""
        wanted = self.response_format
        return None if wanted is None or wanted.json_schema is None else _given(wanted.json_schema.schema)

    @property
    def parameters(self) -> dict[str, bytes | None]:
        """Schema of each tool's arguments by its name."""
        functions = [tool.function for tool in self.tools or () if tool.function is not None]
        return {function.name: _given(function.parameters) for function in functions}

    @property
    def must_call(self) -> bool:
        """Whether the answer must call a tool."""
        choice = bytes(self.tool_choice)
        return choice == b'"required"' or choice.startswith(b"{")


def _given(value: Raw) -> bytes | None:
    document = bytes(value)
    return None if document == b"null" else document


def _text(content: str | list[_Part] | None) -> str:
    if isinstance(content, list):
        return "\n".join(f"[{part.type}]" if part.text is None else part.text for part in content)
    return content or ""


_decoder = msgspec.json.Decoder(Asked)


def asked_by(request: CompletionRequest) -> Asked | None:
    """Read a request's body; None if it has another shape."""
    try:
        return _decoder.decode(request.body)
    except UNREADABLE:
        return None


_PLACE = re.compile(r"\{(question|answer)\}")


def fill_in(template: str, question: str, answer: str) -> str:
    """Fill in `{question}` and `{answer}`, once each time they occur: not those in what is filled in."""
    texts = {"question": question, "answer": answer}
    return _PLACE.sub(lambda place: texts[place[1]], template)
