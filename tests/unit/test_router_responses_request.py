"""Requests to OpenAI's Responses API told as chat completions."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_router.completion_body import BodyError
from cascadia_router.responses_answer import ResponseBuilder
from cascadia_router.responses_request import chat_request
from tests.support.responses import json_values

IMAGE_BY_ID = {"type": "input_image", "file_id": "f"}


def chat(**fields: Any) -> dict[str, Any]:
    body = {"model": "chat", "input": "hi", **fields}
    return json.loads(chat_request(json.dumps(body).encode()).body)  # type: ignore[no-any-return]


def messages(*items: Any, **fields: Any) -> list[dict[str, Any]]:
    return chat(input=list(items), **fields)["messages"]  # type: ignore[no-any-return]


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


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["input", "tools", "text", "tool_choice", "reasoning", "include"]), json_values))
def test_odd_fields_are_refused_or_taken(fields: dict[str, Any]) -> None:
    try:
        made = chat(**fields)
    except BodyError:
        return
    assert isinstance(made["messages"], list)
