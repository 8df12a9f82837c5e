"""What clients ask of an engine: the fields of OpenAI's two completion requests that are simulated."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta, Struct

__all__ = ["BadRequest", "CompletionRequest", "parse_chat", "parse_text"]

CHARACTERS_PER_TOKEN = 4
"""Bytes of prompt per token where the request does not say how many tokens it has."""

Count = Annotated[int, Meta(ge=1)]


class BadRequest(Exception):  # noqa: N818 - the name of the HTTP status
    """The request cannot be served (400); the message says why."""


class SimulationHints(Struct, rename="camel", kw_only=True):
    """The body's `simulation` object: how traffic generators steer the simulation.

    Attributes:
        key: Identity of the request to the difficulty model; the prompt where absent.
        row: `id` of a recorded request (`outcomesFile`) whose outcome to use.
        hardness: Shift of the request's difficulty.
        input_tokens: Prompt tokens.
        output_tokens: Base answer length, see `difficulty`.
    """

    key: str | None = None
    row: str | None = None
    hardness: Annotated[float, Meta(ge=-20, le=20)] = 0.0
    input_tokens: Count | None = None
    output_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None


class _StreamOptions(Struct):
    include_usage: bool | None = None


class _ContentPart(Struct):
    type: str
    text: str = ""


class _Message(Struct):
    role: str
    content: str | list[_ContentPart] | None = None


class _Body(Struct, kw_only=True):
    model: str = ""
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: int | None = None
    max_tokens: Count | None = None
    simulation: SimulationHints | None = None


class _ChatBody(_Body, kw_only=True):
    messages: Annotated[list[_Message], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class _TextBody(_Body, kw_only=True):
    prompt: str | list[Any]
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


_CHAT = msgspec.json.Decoder(_ChatBody)
_TEXT = msgspec.json.Decoder(_TextBody)
_NO_HINTS = SimulationHints()


class CompletionRequest(NamedTuple):
    """One request, as far as the simulation needs it.

    Attributes:
        key: Identity of the request to the difficulty model.
        row: `id` of a recorded request, if the client asks for one.
        hardness: Shift of the request's difficulty.
        input_tokens: Prompt tokens, None where only a recorded row knows.
        estimated_tokens: Prompt tokens by the prompt's bytes.
        base_tokens: Base answer length, None if not given.
        max_tokens: Longest answer that the client takes, None for any.
        stream: Whether to stream.
        include_usage: Whether a stream ends with a usage chunk.
        logprobs: Whether to return log-probabilities.
        top_logprobs: Alternatives per token asked for.
    """

    key: bytes
    row: str | None
    hardness: float
    input_tokens: int | None
    estimated_tokens: int
    base_tokens: int | None
    max_tokens: int | None
    stream: bool
    include_usage: bool
    logprobs: bool
    top_logprobs: int


def parse_chat(body: bytes) -> CompletionRequest:
    """Read the body of `/v1/chat/completions`.

    Raises:
        BadRequest: It is malformed or asks for something that is not simulated.
    """
    chat = _decode(_CHAT, body)
    if chat.top_logprobs and not chat.logprobs:
        raise BadRequest("top_logprobs needs logprobs to be true")
    prompt = "\n".join(_text(message) for message in chat.messages).encode()
    limit = chat.max_completion_tokens or chat.max_tokens
    return _request(chat, prompt, len(prompt), limit, bool(chat.logprobs), chat.top_logprobs or 0)


def parse_text(body: bytes) -> CompletionRequest:
    """Read the body of `/v1/completions`: one prompt, a string or a list of token ids.

    Raises:
        BadRequest: It is malformed or asks for something that is not simulated.
    """
    text = _decode(_TEXT, body)
    prompt = text.prompt
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = prompt[0]  # a batch of one
    if isinstance(prompt, list) and all(type(token) is int for token in prompt):
        key, size = msgspec.json.encode(prompt), CHARACTERS_PER_TOKEN * len(prompt)
    elif isinstance(prompt, str):
        key = prompt.encode()
        size = len(key)
    else:
        raise BadRequest("prompt must be one string or one list of token ids; this engine answers one prompt a request")
    if not size:
        raise BadRequest("prompt must not be empty")
    return _request(text, key, size, text.max_tokens or 16, text.logprobs is not None, text.logprobs or 0)


def _decode(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(str(error)) from None


def _text(message: _Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(part.text for part in message.content or ())


def _request(
    body: _Body, prompt: bytes, size: int, limit: int | None, logprobs: bool, top_logprobs: int
) -> CompletionRequest:
    if body.n not in (None, 1):
        raise BadRequest(f"n must be 1, not {body.n}: this engine gives one answer a request")
    hints = body.simulation or _NO_HINTS
    return CompletionRequest(
        key=prompt if hints.key is None else hints.key.encode(),
        row=hints.row,
        hardness=hints.hardness,
        input_tokens=hints.input_tokens,
        estimated_tokens=max(1, -(-size // CHARACTERS_PER_TOKEN)),
        base_tokens=hints.output_tokens,
        max_tokens=limit,
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        logprobs=logprobs,
        top_logprobs=top_logprobs,
    )
