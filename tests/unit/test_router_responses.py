"""OpenAI's Responses API told as chat completions, and their answers told as responses."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_router.completion_body import BodyError
from cascadia_router.http1_request import JSON, InFlight
from cascadia_router.responses_answer import ResponseBuilder, read_chunk
from cascadia_router.responses_connection import ResponsesConnection
from cascadia_router.responses_request import chat_request

IMAGE_BY_ID = {"type": "input_image", "file_id": "f"}
ECHO = {"model": msgspec.Raw(b'"chat"'), "store": msgspec.Raw(b"false")}


def chat(**fields: Any) -> dict[str, Any]:
    body = {"model": "chat", "input": "hi", **fields}
    return json.loads(chat_request(json.dumps(body).encode()).body)  # type: ignore[no-any-return]


def messages(*items: Any, **fields: Any) -> list[dict[str, Any]]:
    return chat(input=list(items), **fields)["messages"]  # type: ignore[no-any-return]


# -- requests -------------------------------------------------------------------------------------


def test_a_text_is_the_users_message() -> None:
    assert chat(instructions="Be brief.") == {
        "model": "chat",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
    }


def test_options_have_their_names_in_chat_completions() -> None:
    schema = {"type": "object", "properties": {}}
    made = chat(
        temperature=0, top_p=0.5, max_output_tokens=9, user="u", parallel_tool_calls=False, store=True,
        reasoning={"effort": "low", "summary": "auto"}, metadata={"k": "v"}, service_tier="auto",
        text={"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}, "verbosity": "low"},
        top_logprobs=2, stream=True, top_k=5, simulation={"key": "a"},
    )  # fmt: skip
    del made["messages"]
    assert made == {
        "model": "chat", "temperature": 0, "top_p": 0.5, "max_tokens": 9, "user": "u", "parallel_tool_calls": False,
        "reasoning_effort": "low", "logprobs": True, "top_logprobs": 2, "top_k": 5, "simulation": {"key": "a"},
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}},
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip


def test_tools_are_nested() -> None:
    tool = {"type": "function", "name": "f", "description": None, "parameters": {"type": "object"}, "strict": True}
    made = chat(tools=[tool], tool_choice={"type": "function", "name": "f"})
    function = {"name": "f", "parameters": {"type": "object"}, "strict": True}
    assert made["tools"] == [{"type": "function", "function": function}]
    assert made["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert chat(tools=[], tool_choice="none")["tool_choice"] == "none"


def test_a_conversation_with_tools_keeps_its_order() -> None:
    call = {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "c1",
        "name": "f",
        "arguments": "{}",
        "status": "completed",
    }
    made = messages(
        {"role": "developer", "content": "One."},
        {"role": "system", "content": [{"type": "input_text", "text": "Two."}]},
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Wait", "annotations": []}],
        },
        call,
        call | {"call_id": "c2"},
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "2"}]},
        call | {"call_id": "c3"},
    )

    def called(name: str) -> dict[str, Any]:
        return {"id": name, "type": "function", "function": {"name": "f", "arguments": "{}"}}

    assert made == [
        {"role": "system", "content": "One.\n\nTwo."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Wait", "tool_calls": [called("c1"), called("c2")]},
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
        {"role": "tool", "tool_call_id": "c2", "content": "2"},
        {"role": "assistant", "content": None, "tool_calls": [called("c3")]},
    ]


def test_images_files_and_sounds_are_parts() -> None:
    [message] = messages(
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "what?"},
                {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "low"},
                {"type": "input_file", "filename": "a.pdf", "file_data": "AA"},
                {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
            ],
        }
    )
    assert message["content"] == [
        {"type": "text", "text": "what?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "AA"}},
        {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
    ]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "whole conversation"),
        ({"conversation": "conv_1"}, "conversation", "whole conversation"),
        ({"background": True}, "background", "background"),
        ({"prompt": {"id": "p"}}, "prompt", "templates"),
        ({"truncation": "auto"}, "truncation", "disabled"),
        ({"tools": [{"type": "web_search"}]}, "tools", "web_search"),
        ({"tools": ["f"]}, "tools", "functions"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice", "required"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format", "json_schema"),
        ({"input": None}, "input", "required"),
        ({"input": ["hi"]}, "input[0]", "object"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "stores no"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type", "web_search_call"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role", "user"),
        ({"input": [{"role": "user", "content": [{"type": "video"}]}]}, "input[0].content[0]", "video"),
        ({"input": [{"role": "user", "content": [IMAGE_BY_ID]}]}, "input[0].content[0]", "stored"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id", "required"),
        ({"max_output_tokens": "9"}, "max_output_tokens", "whole number"),
        ({"max_output_tokens": True}, "max_output_tokens", "whole number"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"model": None}, "model", "required"),
        ({"metadata": []}, "metadata", "object"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(BodyError, match=words) as caught:
        chat(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'"x"', b"[" * 100_000])
def test_no_body_breaks_it(body: bytes) -> None:
    with pytest.raises(BodyError):
        chat_request(body)


@pytest.mark.parametrize("field", ["metadata", "unknown", "text"])
def test_no_depth_breaks_it(field: str) -> None:
    for depth in (200, *range(960, 1010), 5000):
        try:
            made = chat_request(
                b'{"model":"m","input":"i","%s":{"a":%s%s}}' % (field.encode(), b"[" * depth, b"]" * depth)
            )
        except BodyError:
            continue
        assert ResponseBuilder(made.echo, "1", 5).end()


FIELDS = ["type", "role", "content", "text"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["input", "tools", "text", "tool_choice", "reasoning", "include"]), json_values))
def test_odd_fields_are_refused_or_taken(fields: dict[str, Any]) -> None:
    try:
        made = chat(**fields)
    except BodyError:
        return
    assert isinstance(made["messages"], list)


# -- answers --------------------------------------------------------------------------------------

LOGPROBS = {
    "content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [{"token": "a", "logprob": -0.5}]}]
}


def builder() -> ResponseBuilder:
    return ResponseBuilder(ECHO, "1", 5)


def parsed(events: bytes) -> list[dict[str, Any]]:
    made = []
    for event in events.split(b"\n\n")[:-1]:
        if not event.startswith(b":"):
            first, second = event.split(b"\n")
            made.append(json.loads(second.removeprefix(b"data: ")))
            assert first == b"event: " + made[-1]["type"].encode()
    return made


def told(*chunks: dict[str, Any]) -> list[dict[str, Any]]:
    made = builder()
    events = b"".join(made.take(read_chunk(json.dumps(each).encode())) for each in chunks)
    return parsed(events + (b"" if made.ended else made.end()))


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def test_a_text_comes_in_the_official_order() -> None:
    events = told(
        delta(role="assistant", content=""),
        delta(content="Hel"),
        delta(content="lo"),
        delta(finish="stop"),
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}, "cascadia": {"stage": "small"}},
    )
    assert [event["type"] for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(10))
    assert events[0]["response"]["output"] == []
    assert events[2]["item"] == {
        "type": "message", "id": "msg_1_0", "status": "in_progress", "role": "assistant", "content": [],
    }  # fmt: skip
    assert events[3]["part"] == {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    assert [event["delta"] for event in events[4:6]] == ["Hel", "lo"]
    assert {(event["item_id"], event["output_index"], event["content_index"]) for event in events[3:8]} == {
        ("msg_1_0", 0, 0)
    }
    assert events[6]["text"] == "Hello"
    response = events[-1]["response"]
    assert (response["id"], response["status"], response["store"]) == ("resp_1", "completed", False)
    assert response["output"] == [events[8]["item"]]
    assert response["cascadia"] == {"stage": "small"}
    assert response["usage"] == {
        "input_tokens": 3,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 5,
    }


def test_reasoning_text_and_calls_are_items_of_their_own() -> None:
    def call(index: int, **function: Any) -> dict[str, Any]:
        return delta(tool_calls=[{"index": index, "id": function.pop("id", None), "function": function}])

    events = told(
        delta(reasoning_content="Hm"),
        delta(content="So"),
        call(0, id="a", name="f", arguments=""),
        call(1, id="b", name="g", arguments="{"),
        call(0, arguments="[]"),
        call(1, arguments="}"),
        delta(finish="tool_calls"),
    )
    assert [event["type"].removeprefix("response.") for event in events[2:]] == [
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done", "content_part.done",
        "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done",
        "output_item.done",
        "output_item.added", "output_item.added", "function_call_arguments.delta", "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done", "output_item.done", "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    reasoning, message, first, second = events[-1]["response"]["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Hm"}]
    assert message["content"][0]["text"] == "So"
    assert (first["call_id"], first["name"], first["arguments"], first["status"]) == ("a", "f", "[]", "completed")
    assert (second["call_id"], second["name"], second["arguments"]) == ("b", "g", "{}")


@pytest.mark.parametrize(("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_a_cut_answer_is_incomplete(finish: str, reason: str) -> None:
    last = told(delta(content="Hel"), delta(finish=finish))[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": reason}
    assert last["response"]["output"][0]["status"] == "incomplete"


def test_an_error_in_the_stream_fails_the_response() -> None:
    events = told(delta(content="Hel"), {"error": {"message": "lost", "type": "server_error"}})
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"] == {"code": "server_error", "message": "lost"}
    assert events[-1]["response"]["status"] == "failed"


def test_a_whole_answer_says_the_same_as_a_stream() -> None:
    message = {
        "role": "assistant",
        "content": "a",
        "reasoning_content": "Hm",
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }
    usage = {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }
    choice = {"index": 0, "message": message, "logprobs": LOGPROBS, "finish_reason": "tool_calls"}
    answer = {"created": 5, "choices": [choice], "usage": usage, "cascadia": {"stage": "s"}}
    whole = json.loads(builder().whole(read_chunk(json.dumps(answer).encode())))
    assert whole == told(answer)[-1]["response"]
    assert [item["type"] for item in whole["output"]] == ["reasoning", "message", "function_call"]
    [token] = whole["output"][1]["content"][0]["logprobs"]
    assert (token["token"], token["logprob"], token["top_logprobs"][0]["token"]) == ("a", -0.5, "a")
    assert whole["usage"]["input_tokens_details"]["cached_tokens"] == 1
    assert whole["usage"]["output_tokens_details"]["reasoning_tokens"] == 1


def test_reasoning_tokens_are_found_where_sglang_says_them() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "reasoning_tokens": 1, "completion_tokens_details": None}
    response = told(delta(content="a"), {"choices": [], "usage": usage})[-1]["response"]
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 1}


def test_a_response_has_one_choice() -> None:
    other = {"choices": [{"index": 1, "delta": {"content": "b"}, "finish_reason": "length"}]}
    last = told(delta(content="a"), other, delta(finish="stop"))[-1]
    assert last["type"] == "response.completed"
    assert last["response"]["output"][0]["content"][0]["text"] == "a"


def test_a_refusal_is_a_part_of_its_own() -> None:
    events = told(delta(refusal="No."), delta(finish="stop"))
    assert [event["type"] for event in events[4:6]] == ["response.refusal.delta", "response.refusal.done"]
    assert events[-1]["response"]["output"][0]["content"] == [{"type": "refusal", "refusal": "No."}]


# -- the connection -------------------------------------------------------------------------------


class Wire:
    """What a client's connection is told."""

    in_flight: InFlight | None = None

    def __init__(self) -> None:
        self.status = 0
        self.head = b""
        self.body = b""
        self.ended = self.broken = self.closing = False

    def respond(self, status: int, body: bytes, head: bytes = b"", content_type: bytes = JSON) -> None:
        self.begin(status, head, len(body))
        self.end(body)

    def pass_on(self, message: bytes, body: bytes) -> None:
        raise AssertionError("a chat completion's bytes are no response")

    def begin(self, status: int, head: bytes, length: int | None) -> None:
        assert not self.status
        self.status, self.head = status, head

    def send(self, data: bytes) -> None:
        self.body += data

    def end(self, data: bytes = b"") -> None:
        self.body += data
        self.ended = True

    def close_after_answer(self) -> None:
        self.closing = True

    def break_off(self) -> None:
        self.broken = True


ANSWER = json.dumps({"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}).encode()
SSE = b"content-type: text/event-stream\r\n"
STREAM = b"".join(
    b"data: " + (each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n\n"
    for each in (
        delta(content="Hi"),
        delta(content=" ü"),
        delta(finish="stop"),
        {"choices": [], "cascadia": {}},
        b"[DONE]",
    )
)


def connection(*, stream: bool) -> tuple[ResponsesConnection, Wire]:
    wire = Wire()
    request = chat_request(json.dumps({"model": "chat", "input": "hi", "stream": stream}).encode())
    return ResponsesConnection(wire, request), wire


@pytest.mark.parametrize("way", ["respond", "pass_on", "pieces"])
def test_a_whole_answer_is_told_whole(way: str) -> None:
    made, wire = connection(stream=False)
    if way == "respond":
        made.respond(200, ANSWER, b"x-cascadia-stage: s\r\n")
    elif way == "pass_on":
        made.pass_on(
            b"HTTP/1.1 200 OK\r\ncontent-type: a\r\nx-cascadia-stage: s\r\ncontent-length: 9\r\n\r\n" + ANSWER, ANSWER
        )
    else:
        made.begin(200, b"content-type: application/json\r\nx-cascadia-stage: s\r\n", len(ANSWER))
        made.send(ANSWER[:9])
        made.end(ANSWER[9:])
    assert (wire.status, wire.head) == (200, b"x-cascadia-stage: s\r\n")
    assert json.loads(wire.body)["output"][0]["content"][0]["text"] == "Hi"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, len(STREAM)), max_size=5).map(sorted))
def test_a_stream_is_told_the_same_however_it_is_cut(places: list[int]) -> None:
    made, wire = connection(stream=True)
    made.begin(200, SSE, None)
    for start, end in zip([0, *places], [*places, len(STREAM)], strict=True):
        made.send(STREAM[start:end])
    made.end()
    events = parsed(wire.body)
    assert [event["delta"] for event in events if event["type"] == "response.output_text.delta"] == ["Hi", " ü"]
    assert events[-1]["type"] == "response.completed"
    assert wire.ended


def test_comments_go_on_and_come_after_the_first_events() -> None:
    made, wire = connection(stream=True)
    made.begin(200, SSE, None)
    made.send(b": keep-alive\n\n")
    assert [event["type"] for event in parsed(wire.body)] == ["response.created", "response.in_progress"]
    assert wire.body.endswith(b": keep-alive\n\n")
    made.end(STREAM)
    assert parsed(wire.body)[-1]["sequence_number"] == 9


@pytest.mark.parametrize(
    "last",
    [b"", b'data: {"choices": [{"del\n\ndata: {"error": {"message": "lost"}}\n\n', b"data: [1]\n\n", b"data: \xff\n\n"],
)
def test_a_broken_stream_fails_the_response_once(last: bytes) -> None:
    made, wire = connection(stream=True)
    made.begin(200, SSE, None)
    made.send(STREAM[: STREAM.index(b"\n\n") + 2])
    made.close_after_answer()
    made.end(last)
    assert [event["type"] for event in parsed(wire.body)].count("response.failed") == 1
    assert parsed(wire.body)[-1]["type"] == "response.failed"
    assert wire.closing


def test_an_engine_that_does_not_stream_is_told_in_events() -> None:
    made, wire = connection(stream=True)
    made.begin(200, b"content-type: application/json\r\n", len(ANSWER))
    made.end(ANSWER)
    assert b"text/event-stream" in wire.head
    assert parsed(wire.body)[-1]["response"]["output"][0]["content"][0]["text"] == "Hi"


def test_errors_pass_as_they_are() -> None:
    made, wire = connection(stream=True)
    made.respond(429, b'{"error": 1}', b"retry-after: 1\r\n")
    assert (wire.status, wire.head, wire.body) == (429, b"retry-after: 1\r\n", b'{"error": 1}')
    made, wire = connection(stream=False)
    made.begin(400, b"content-type: application/json\r\nx-a: b\r\n", None)
    made.send(b'{"err')
    made.end(b'or": 1}')
    assert (wire.status, wire.head, wire.body) == (400, b"x-a: b\r\n", b'{"error": 1}')


@pytest.mark.parametrize("body", [b"", b"[]", b'{"choices": 1}', b"\xff"])
def test_what_is_no_answer_is_an_error(body: bytes) -> None:
    made, wire = connection(stream=False)
    made.respond(200, body)
    assert wire.status == 502
    assert json.loads(wire.body)["error"]["type"] == "server_error"


def test_an_answer_that_breaks_off_before_anything_was_told_is_an_error() -> None:
    made, wire = connection(stream=False)
    made.begin(200, b"", 1000)
    made.send(ANSWER[:5])
    made.break_off()
    assert (wire.status, wire.broken) == (502, False)
    made, wire = connection(stream=True)
    made.begin(200, SSE, None)
    made.break_off()
    assert wire.broken


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(["choices", "usage", "cascadia", "error", "created"]), json_values))
def test_no_chunk_breaks_a_response(chunk: dict[str, Any]) -> None:
    made = builder()
    try:
        made.take(read_chunk(json.dumps(chunk).encode()))
    except msgspec.DecodeError:
        return
    assert made.ended or made.end()
