"""Responses of OpenAI's Responses API, as tests read them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import strategies as st

from cascadia_router.responses_answer import ResponseBuilder

__all__ = ["builder", "delta", "json_values", "parsed"]

ECHO = {"model": msgspec.Raw(b'"chat"'), "store": msgspec.Raw(b"false")}

FIELDS = ["type", "role", "content", "text"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner),
    max_leaves=8,
)
"""Any JSON."""


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


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}
