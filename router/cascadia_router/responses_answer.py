"""A chat completion's answer, told as a response of OpenAI's Responses API.

An answer is taken chunk by chunk and told in events; a whole answer is one chunk, and the response object
that the last event carries is all that is sent of it. So both ways say the same.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

__all__ = ["ChatChunk", "ResponseBuilder", "read_chunk"]

_Object = dict[str, Any]
_encoder = msgspec.json.Encoder()
_ERROR_CODES = {"rate_limit_error": "rate_limit_exceeded"}
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class _Function(Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Token(Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[_Token] | None = None


class _Logprobs(Struct):
    content: list[_Token] | None = None


class _Choice(Struct):
    index: int = 0
    delta: _Delta | None = None
    message: _Delta | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _PromptDetails(Struct):
    cached_tokens: int | None = None


class _CompletionDetails(Struct):
    reasoning_tokens: int | None = None


class _Usage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int | None = None  # where SGLang says it
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Error(Struct):
    message: str = "The answer could not be completed."
    type: str | None = None


class ChatChunk(Struct):
    """A chunk of a chat completion, or a whole one, as far as it is told on.

    Attributes:
        choices: The first is told; a stream's usage chunk has none.
        created: Unix time, s.
        usage: Tokens.
        cascadia: The decision.
        error: In the place of an answer.
    """

    choices: list[_Choice] = msgspec.field(default_factory=list)
    created: int | None = None
    usage: _Usage | None = None
    cascadia: Raw | UnsetType = UNSET
    error: _Error | UnsetType = UNSET


_decoder = msgspec.json.Decoder(ChatChunk)


def read_chunk(document: bytes) -> ChatChunk:
    """Read a chunk or an answer.

    Raises:
        msgspec.DecodeError: It is none.
    """
    return _decoder.decode(document)


class ResponseBuilder:
    """The response so far.

    Args:
        echo: Fields of the request that the response repeats, as JSON.
        suffix: Makes the ids of the response and its items unique.
        created_at: Unix time, s.

    Attributes:
        begun: Whether its first events have been told.
        ended: Whether its last event has been told.
    """

    def __init__(self, echo: dict[str, Raw], suffix: str, created_at: int) -> None:
        self._response: _Object = {
            "id": f"resp_{suffix}",
            "object": "response",
            "created_at": created_at,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
            **echo,
        }
        self._suffix = suffix
        self._output: list[_Object] = self._response["output"]
        self._open: int | None = None  # index of the message or reasoning item that grows
        self._calls: dict[int, int] = {}  # index of the item of each tool call that grows
        self._finish_reason: str | None = None
        self._events: list[bytes] = []
        self._told = 0
        self.begun = False
        self.ended = False

    def begin(self) -> bytes:
        """Events that come before any of the answer; none the second time."""
        if not self.begun:
            self.begun = True
            self._tell("response.created", response=self._response)
            self._tell("response.in_progress", response=self._response)
        return self._take_events()

    def take(self, chunk: ChatChunk) -> bytes:
        """Events that a chunk of the answer makes; or a whole answer, which is one chunk."""
        self._events.append(self.begin())
        if chunk.error is not UNSET:
            return self.fail(chunk.error.message, chunk.error.type)
        if chunk.usage is not None:
            self._response["usage"] = _usage(chunk.usage)
        if chunk.cascadia is not UNSET:
            self._response["cascadia"] = Raw(bytes(chunk.cascadia))
        for choice in chunk.choices:
            if choice.index:
                continue  # a response has one
            delta = choice.delta or choice.message
            if delta is not None:
                self._take_delta(delta, choice.logprobs)
            self._finish_reason = choice.finish_reason or self._finish_reason
        return self._take_events()

    def end(self) -> bytes:
        """Events that follow the last chunk."""
        self._events.append(self.begin())
        self.ended = True
        reason = _INCOMPLETE.get(self._finish_reason or "")
        status = "incomplete" if reason else "completed"
        self._close(status)
        for index in self._calls.values():
            self._close_call(index, status)
        self._response["status"] = status
        self._response["incomplete_details"] = {"reason": reason} if reason else None
        self._tell(f"response.{status}", response=self._response)
        return self._take_events()

    def fail(self, message: str, kind: str | None) -> bytes:
        """Events that end a response which cannot be completed.

        Args:
            message: The error's.
            kind: Its type, in chat completions' words.
        """
        self._events.append(self.begin())
        self.ended = True
        self._response["status"] = "failed"
        self._response["error"] = {"code": _ERROR_CODES.get(kind or "", "server_error"), "message": message}
        self._tell("response.failed", response=self._response)
        return self._take_events()

    def whole(self, answer: ChatChunk) -> bytes:
        """JSON of the response that a whole answer makes."""
        self._response["created_at"] = answer.created or self._response["created_at"]
        self.take(answer)
        self.end()
        return _encoder.encode(self._response)

    # -- the answer's pieces ----------------------------------------------------------------------

    def _take_delta(self, delta: _Delta, logprobs: _Logprobs | None) -> None:
        reasoning = delta.reasoning_content or delta.reasoning
        if reasoning:
            self._grow("reasoning", "reasoning_text", "text", reasoning)
        if delta.content:
            tokens = (logprobs.content if logprobs is not None else None) or []
            self._grow("message", "output_text", "text", delta.content, [_told_token(token) for token in tokens])
        if delta.refusal:
            self._grow("message", "refusal", "refusal", delta.refusal)
        for place, call in enumerate(delta.tool_calls or ()):
            self._grow_call(place if call.index is None else call.index, call)

    def _grow(self, kind: str, part: str, field: str, text: str, logprobs: list[_Object] | None = None) -> None:
        """Add text to the last part of the open item, which is begun if there is none of its kind."""
        index = self._open
        if index is None or self._output[index]["type"] != kind:
            self._close("completed")
            self._open = index = self._add_item(kind)
        item = self._output[index]
        parts = item["content"]
        if not parts or parts[-1]["type"] != part:
            self._close_part(index)
            parts.append(
                {"type": part, field: "", **({"annotations": [], "logprobs": []} if logprobs is not None else {})}
            )
            self._tell_of_part("response.content_part.added", index, part=parts[-1])
        parts[-1][field] += text
        extra = {}
        if logprobs is not None:
            parts[-1]["logprobs"] += logprobs
            extra["logprobs"] = logprobs
        self._tell_of_part(f"response.{part}.delta", index, delta=text, **extra)

    def _close_part(self, index: int) -> None:
        """Tell that the last part of an item is complete, if it has one."""
        parts = self._output[index]["content"]
        if not parts:
            return
        part = parts[-1]
        told = {name: part[name] for name in ("text", "refusal", "logprobs") if name in part}
        self._tell_of_part(f"response.{part['type']}.done", index, **told)
        self._tell_of_part("response.content_part.done", index, part=part)

    def _close(self, status: str) -> None:
        """Tell that the open item is complete, if there is one."""
        if self._open is not None:
            index, self._open = self._open, None
            self._close_part(index)
            self._output[index]["status"] = status
            self._tell("response.output_item.done", output_index=index, item=self._output[index])

    def _grow_call(self, number: int, call: _ToolCall) -> None:
        """Add to a tool call; several may grow at a time."""
        function = call.function or _Function()
        index = self._calls.get(number)
        if index is None:
            self._close("completed")
            index = self._calls[number] = self._add_item(
                "function_call",
                call_id=call.id or f"call_{self._suffix}_{number}",
                name=function.name or "",
            )
        arguments = function.arguments
        if arguments:
            item = self._output[index]
            item["arguments"] += arguments
            self._tell(
                "response.function_call_arguments.delta", item_id=item["id"], output_index=index, delta=arguments
            )

    def _close_call(self, index: int, status: str) -> None:
        item = self._output[index]
        item["status"] = status
        told = {"name": item["name"], "arguments": item["arguments"]}
        self._tell("response.function_call_arguments.done", item_id=item["id"], output_index=index, **told)
        self._tell("response.output_item.done", output_index=index, item=item)

    def _add_item(self, kind: str, **fields: Any) -> int:
        index = len(self._output)
        prefix = {"message": "msg", "reasoning": "rs", "function_call": "fc"}[kind]
        item: _Object = {"type": kind, "id": f"{prefix}_{self._suffix}_{index}", "status": "in_progress", **fields}
        if kind == "function_call":
            item["arguments"] = ""
        elif kind == "reasoning":
            item |= {"summary": [], "content": []}
        else:
            item |= {"role": "assistant", "content": []}
        self._output.append(item)
        self._tell("response.output_item.added", output_index=index, item=item)
        return index

    # -- events -----------------------------------------------------------------------------------

    def _tell_of_part(self, kind: str, index: int, **fields: Any) -> None:
        item = self._output[index]
        place = len(item["content"]) - 1
        self._tell(kind, item_id=item["id"], output_index=index, content_index=place, **fields)

    def _tell(self, kind: str, **fields: Any) -> None:
        event = _encoder.encode({"type": kind, "sequence_number": self._told, **fields})
        self._events.append(b"event: %s\ndata: %s\n\n" % (kind.encode(), event))
        self._told += 1

    def _take_events(self) -> bytes:
        events = b"".join(self._events)
        self._events.clear()
        return events


def _usage(usage: _Usage) -> _Object:
    read, made = usage.prompt_tokens_details, usage.completion_tokens_details
    cached = (read.cached_tokens if read is not None else None) or 0
    reasoning = (made.reasoning_tokens if made is not None else None) or usage.reasoning_tokens or 0
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _told_token(entry: _Token) -> _Object:
    told = {"token": entry.token, "logprob": entry.logprob, "bytes": entry.bytes or []}
    return told | {"top_logprobs": [_told_token(top) for top in entry.top_logprobs or ()]}
