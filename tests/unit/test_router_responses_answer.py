"""Answers of chat completions told as OpenAI's responses."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_router.responses_answer import read_chunk
from tests.support.responses import builder, delta, json_values, parsed

LOGPROBS = {
    "content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [{"token": "a", "logprob": -0.5}]}]
}


def told(*chunks: dict[str, Any]) -> list[dict[str, Any]]:
    made = builder()
    events = b"".join(made.take(read_chunk(json.dumps(each).encode())) for each in chunks)
    return parsed(events + (b"" if made.ended else made.end()))


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


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(["choices", "usage", "cascadia", "error", "created"]), json_values))
def test_no_chunk_breaks_a_response(chunk: dict[str, Any]) -> None:
    made = builder()
    try:
        made.take(read_chunk(json.dumps(chunk).encode()))
    except msgspec.DecodeError:
        return
    assert made.ended or made.end()
