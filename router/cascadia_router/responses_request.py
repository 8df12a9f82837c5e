"""A request to OpenAI's Responses API, told as a chat completion.

Engines score chat completions only, so the entry router translates, and the chain knows nothing of it. What
needs a memory or tools of the server's own (`previous_response_id`, `web_search`, ...) is refused by name;
reasoning items are dropped, for the engines' chat templates have no place for them; fields that are not the
API's own pass on to the engine as they do in chat completions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from cascadia_router.completion_body import BodyError

__all__ = ["ResponsesRequest", "chat_request"]

_STATELESS = "The cascade stores no responses: send the whole conversation in `input`."
_REFUSED = {
    "previous_response_id": _STATELESS,
    "conversation": _STATELESS,
    "background": "Responses are not made in the background: leave `background` out and wait, or stream.",
    "prompt": "There are no stored prompt templates: send `instructions` and `input`.",
}
_OWN_FIELDS = frozenset(
    {
        "include", "input", "instructions", "max_output_tokens", "max_tool_calls", "metadata", "model",
        "parallel_tool_calls", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "reasoning",
        "safety_identifier", "service_tier", "store", "stream", "stream_options", "temperature", "text",
        "tool_choice", "tools", "top_logprobs", "top_p", "truncation", "user", *_REFUSED,
    }
)  # fmt: skip
_KEPT_FIELDS = ("temperature", "top_p", "parallel_tool_calls", "user")
"""Called the same in both APIs."""
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
"""Templates of open models know no developer."""
_LOGPROBS = "message.output_text.logprobs"

_decoder = msgspec.json.Decoder(dict[str, Any])
_encode = msgspec.json.Encoder().encode
_Object = dict[str, Any]


class ResponsesRequest(NamedTuple):
    """A translated request.

    Attributes:
        body: Of the chat completion.
        stream: Whether the answer is to be streamed.
        echo: The fields that the response object repeats, as JSON.
    """

    body: bytes
    stream: bool
    echo: dict[str, Raw]


def chat_request(document: bytes) -> ResponsesRequest:
    """Translate a request.

    Args:
        document: The body of a POST to `/v1/responses`.

    Raises:
        BodyError: It is not one, or it asks for what the cascade does not have.
    """
    try:
        request = _decoder.decode(document)
    except msgspec.ValidationError:
        raise BodyError("The body must be a JSON object.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BodyError(f"The body is not valid JSON: {error}") from None
    for name, reason in _REFUSED.items():
        if request.get(name):
            raise BodyError(reason, name)
    if request.get("truncation") not in {None, "disabled"}:
        raise BodyError("Long inputs are not truncated: `truncation` can only be `disabled`.", "truncation")
    body: _Object = {name: value for name, value in request.items() if name not in _OWN_FIELDS}
    body["model"] = _required(request, "model", str)
    body["messages"] = _messages(request)
    body |= _tool_options(request) | _sampling_options(request)
    stream = _optional(request, "stream", bool) is True
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    echo = _echo(request)
    try:
        return ResponsesRequest(_encode(body), stream, {name: Raw(_encode(value)) for name, value in echo.items()})
    except RecursionError:
        raise BodyError("The body is nested too deeply.") from None


def _sampling_options(request: _Object) -> _Object:
    options: _Object = {name: request[name] for name in _KEPT_FIELDS if request.get(name) is not None}
    options["max_tokens"] = _optional(request, "max_output_tokens", int)
    options["reasoning_effort"] = (_optional(request, "reasoning", dict) or {}).get("effort")
    options["response_format"] = _response_format((_optional(request, "text", dict) or {}).get("format"))
    top_logprobs = _optional(request, "top_logprobs", int)
    if top_logprobs is not None or _LOGPROBS in (_optional(request, "include", list) or ()):
        options |= {"logprobs": True, "top_logprobs": top_logprobs or None}
    return {name: value for name, value in options.items() if value is not None}


def _tool_options(request: _Object) -> _Object:
    options: _Object = {}
    tools = [_chat_tool(tool) for tool in _optional(request, "tools", list) or []]
    if tools:
        options["tools"] = tools
    if request.get("tool_choice") is not None:
        options["tool_choice"] = _chat_tool_choice(request["tool_choice"])
    return options


def _echo(request: _Object) -> _Object:
    text, reasoning = request.get("text") or {}, request.get("reasoning") or {}
    return {
        "background": False,
        "instructions": request.get("instructions"),
        "max_output_tokens": request.get("max_output_tokens"),
        "max_tool_calls": request.get("max_tool_calls"),
        "metadata": _optional(request, "metadata", dict) or {},
        "model": request["model"],
        "parallel_tool_calls": request.get("parallel_tool_calls") is not False,
        "previous_response_id": None,
        "prompt_cache_key": request.get("prompt_cache_key"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        "safety_identifier": request.get("safety_identifier"),
        "service_tier": "default",
        "store": False,
        "temperature": request.get("temperature"),
        "text": {"format": text.get("format") or {"type": "text"}},
        "tool_choice": request.get("tool_choice") or "auto",
        "tools": request.get("tools") or [],
        "top_logprobs": request.get("top_logprobs") or 0,
        "top_p": request.get("top_p"),
        "truncation": "disabled",
        "user": request.get("user"),
    }


# -- messages -------------------------------------------------------------------------------------


def _messages(request: _Object) -> list[_Object]:
    made: list[_Object] = []
    instructions = _optional(request, "instructions", str)
    if instructions is not None:
        made.append({"role": "system", "content": instructions})
    given = request.get("input")
    if isinstance(given, str):
        return [*made, {"role": "user", "content": given}]
    if not isinstance(given, list):
        raise BodyError("`input` is required: a text, or a list of items.", "input")
    for index, item in enumerate(given):
        where = f"input[{index}]"
        if not isinstance(item, dict):
            raise BodyError(f"`{where}` must be an object.", where)
        _add_item(made, item, where)
    return made


def _add_item(made: list[_Object], item: _Object, where: str) -> None:
    """Add one input item to the messages made so far."""
    kind = item.get("type", "message")
    if kind == "message":
        _add_message(made, item, where)
    elif kind == "function_call":
        function = {name: _required(item, name, str, where) for name in ("name", "arguments")}
        call = {"id": _required(item, "call_id", str, where), "type": "function", "function": function}
        if not made or made[-1]["role"] != "assistant":
            made.append({"role": "assistant", "content": None})
        made[-1].setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        output = item.get("output")
        text = output if isinstance(output, str) else _text_of(_parts(output, f"{where}.output"), f"{where}.output")
        made.append({"role": "tool", "tool_call_id": _required(item, "call_id", str, where), "content": text})
    elif kind == "item_reference":
        raise BodyError(_STATELESS, where)
    elif kind != "reasoning":
        raise BodyError(f"`{where}`: items of type {str(kind)[:100]!r} are not supported.", f"{where}.type")


def _add_message(made: list[_Object], item: _Object, where: str) -> None:
    role = _ROLES.get(str(item.get("role")))
    if role is None:
        raise BodyError(f"`{where}.role` must be one of {', '.join(_ROLES)}.", f"{where}.role")
    content = item.get("content")
    if not isinstance(content, str):
        parts = _parts(content, f"{where}.content")
        if role == "user" and not (len(parts) == 1 and parts[0]["type"] == "text"):
            made.append({"role": role, "content": parts})
            return
        content = _text_of(parts, f"{where}.content")
    if role == "system" and made and all(each["role"] == "system" for each in made):
        # Most templates take one system message, the first.
        made[0]["content"] += "\n\n" + content
    else:
        made.append({"role": role, "content": content})


def _parts(content: Any, where: str) -> list[_Object]:
    if not isinstance(content, list):
        raise BodyError(f"`{where}` must be a text or a list of parts.", where)
    return [_part(part, f"{where}[{index}]") for index, part in enumerate(content)]


def _part(part: Any, where: str) -> _Object:
    """One content part in the words of chat completions."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in {"input_text", "output_text", "text", "summary_text"}:
        return {"type": "text", "text": _required(part, "text", str, where)}
    if kind == "refusal":
        return {"type": "text", "text": _required(part, "refusal", str, where)}
    if kind == "input_image" and isinstance(part.get("image_url"), str):
        image = {"url": part["image_url"]}
        if part.get("detail") is not None:
            image["detail"] = part["detail"]
        return {"type": "image_url", "image_url": image}
    if kind == "input_audio":
        return {"type": "input_audio", "input_audio": _required(part, "input_audio", dict, where)}
    if kind == "input_file" and isinstance(part.get("file_data"), str):
        return {"type": "file", "file": {"filename": part.get("filename"), "file_data": part["file_data"]}}
    if kind in {"input_image", "input_file"}:
        raise BodyError(f"`{where}`: there are no stored files: send the content itself.", where)
    raise BodyError(f"`{where}`: parts of type {str(kind)[:100]!r} are not supported.", where)


def _text_of(parts: Iterable[_Object], where: str) -> str:
    texts = []
    for part in parts:
        if part["type"] != "text":
            raise BodyError(f"`{where}` can only hold text here.", where)
        texts.append(part["text"])
    return "".join(texts)


# -- tools and formats ----------------------------------------------------------------------------


def _chat_tool(tool: Any) -> _Object:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if kind != "function":
        raise BodyError(f"Tools of type {str(kind)[:100]!r} are not supported: only functions are.", "tools")
    function = {name: tool[name] for name in ("description", "parameters", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": {"name": _required(tool, "name", str, "tools"), **function}}


def _chat_tool_choice(choice: Any) -> Any:
    if choice in ("none", "auto", "required"):
        return choice
    if isinstance(choice, dict) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": _required(choice, "name", str, "tool_choice")}}
    raise BodyError("`tool_choice` must be `none`, `auto`, `required` or a function.", "tool_choice")


def _response_format(given: Any) -> _Object | None:
    kind = given.get("type") if isinstance(given, dict) else None
    if given is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "json_object"}
    if kind == "json_schema":
        schema = {name: given[name] for name in ("name", "description", "schema", "strict") if name in given}
        return {"type": "json_schema", "json_schema": schema}
    raise BodyError("`text.format.type` must be `text`, `json_object` or `json_schema`.", "text.format")


# -- fields ---------------------------------------------------------------------------------------

_NAMES = {str: "a text", int: "a whole number", bool: "true or false", list: "a list", dict: "an object"}


def _optional(of: _Object, name: str, kind: type) -> Any:
    value = of.get(name)
    if value is None or (isinstance(value, kind) and not (kind is int and isinstance(value, bool))):
        return value
    raise BodyError(f"`{name}` must be {_NAMES[kind]}.", name)


def _required(of: _Object, name: str, kind: type, where: str = "") -> Any:
    path = f"{where}.{name}" if where else name
    if isinstance(of.get(name), kind):
        return of[name]
    raise BodyError(f"`{path}` is required: {_NAMES[kind]}.", path)
