"""Event streams come out the same however the network cuts them."""

import itertools
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_router.completion_body import CompletionRequest, Usage
from cascadia_router.event_stream import GatedStream, HeldStream, StraightStream
from cascadia_router.scoring import TokenStatistic

few = settings(max_examples=40, deadline=None)
DECISION = b'{"stage":"s"}'
MEAN = TokenStatistic("Mean")


def decide(usage: Usage | None) -> bytes:
    return b'{"stage":"s","spent":%d}' % (usage.completion_tokens if usage else -1)


def chunk(text: str, logprob: float | None = -0.1, **extra: Any) -> dict[str, Any]:
    logprobs = None if logprob is None else {"content": [{"token": text, "logprob": logprob}]}
    choice = {"index": 0, "delta": {"content": text}, "logprobs": logprobs}
    return {"id": "c", "object": "chat.completion.chunk", "created": 5, "model": "m", "choices": [choice]} | extra


USAGE = chunk("", choices=[], usage={"prompt_tokens": 3, "completion_tokens": 2})
# The text tries to look like the stream's own marks.
CHUNKS = [chunk("one"), chunk('data: [DONE]\n\n"choices":[] "usage":'), chunk("zwei ü", finish_reason="stop")]


def encoded(events: list[Any], line_end: bytes = b"\n", space: bytes = b" ") -> bytes:
    payloads = [event.encode() if isinstance(event, str) else json.dumps(event).encode() for event in events]
    return b"".join(b"data:" + space + payload + line_end * 2 for payload in payloads)


def payloads(data: bytes) -> list[Any]:
    assert data.endswith(b"\n\n")
    found = [event.removeprefix(b"data:").strip() for event in data.split(b"\n\n")[:-1]]
    return [payload.decode() if payload == b"[DONE]" else json.loads(payload) for payload in found]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


wire = st.tuples(
    st.sampled_from([b"\n", b"\r\n"]), st.sampled_from([b" ", b""]), st.lists(st.integers(0, 2000), max_size=8)
)


@few
@given(wire, st.booleans(), st.booleans())
def test_a_held_stream_is_replayed_whole(cuts: Any, wants_usage: bool, wants_logprobs: bool) -> None:
    line_end, space, places = cuts
    stream = HeldStream(wants_usage=wants_usage, wants_logprobs=wants_logprobs)
    for piece in cut(encoded([*CHUNKS, USAGE, "[DONE]"], line_end, space), places):
        stream.feed(piece)
    assert stream.done
    assert not stream.failed
    assert not stream.unreadable
    assert stream.score(MEAN) == pytest.approx(0.904837418)
    assert stream.usage is not None
    assert stream.usage.completion_tokens == 2
    *chunks, last, done = payloads(stream.replay(DECISION))
    expected = CHUNKS if wants_logprobs else [
        each | {"choices": [each["choices"][0] | {"logprobs": None}]} for each in CHUNKS
    ]  # fmt: skip
    assert chunks == expected
    assert done == "[DONE]"
    assert last["cascadia"] == {"stage": "s"}
    assert (last["id"], last["object"], last["created"], last["model"], last["choices"]) == (
        "c", "chat.completion.chunk", 5, "m", [],
    )  # fmt: skip
    assert ("usage" in last) is wants_usage


@few
@given(wire, st.booleans(), st.booleans())
def test_a_straight_stream_loses_and_adds_nothing_else(cuts: Any, wants_usage: bool, has_usage: bool) -> None:
    line_end, space, places = cuts
    stream = StraightStream(wants_usage=wants_usage, decide=decide)
    events = [*CHUNKS, *([USAGE] if has_usage else []), "[DONE]"]
    out = b"".join(stream.feed(piece) for piece in cut(encoded(events, line_end, space), places))
    assert stream.done
    *chunks, last, done = payloads(out)
    assert chunks == CHUNKS
    assert done == "[DONE]"
    assert last["cascadia"] == {"stage": "s", "spent": 2 if has_usage else -1}
    assert last["choices"] == []
    assert ("usage" in last) is (wants_usage and has_usage)
    assert (stream.usage is not None) is has_usage


def test_straight_events_leave_as_soon_as_they_are_complete() -> None:
    stream = StraightStream(wants_usage=False, decide=decide)
    event = encoded([CHUNKS[0]])
    assert stream.feed(event + event[:20]) == event
    assert stream.feed(event[20:]) == event


def test_an_event_without_end_is_not_kept_for_ever() -> None:
    stream = StraightStream(wants_usage=False, decide=decide)
    passed = sum(len(stream.feed(b"x" * 65536)) for _ in range(64))
    assert passed > 2_000_000


@pytest.mark.parametrize("payload", ['{"error": {"message": "out of memory"}}', "{", "[]", '{"choices": 1}'])
def test_errors_and_rubbish_within_a_held_stream_are_noticed(payload: str) -> None:
    stream = HeldStream(wants_usage=False, wants_logprobs=False)
    stream.feed(encoded([CHUNKS[0], payload, "[DONE]"]))
    assert stream.failed or stream.unreadable


def test_comments_and_other_fields_are_skipped() -> None:
    stream = HeldStream(wants_usage=False, wants_logprobs=True)
    stream.feed(b": ping\n\nevent: chunk\nid: 7\n" + encoded([CHUNKS[0], "[DONE]"]))
    assert payloads(stream.replay(DECISION))[0] == CHUNKS[0]


@few
@given(st.lists(st.binary(max_size=60), max_size=6))
def test_no_bytes_break_a_stream(pieces: list[bytes]) -> None:
    held = HeldStream(wants_usage=False, wants_logprobs=False)
    straight = StraightStream(wants_usage=True, decide=decide)
    gated = GatedStream(wants_usage=True, wants_logprobs=False, first=1, choices=1)
    for piece in pieces:
        gated.feed(b"data: " + piece + b"\n\n")
        if gated.decidable and not gated.opened:
            gated.open(0.5, decide)
        if gated.opened:
            gated.released()
        held.feed(b"data: " + piece + b"\n\n")
        straight.feed(b"data: " + piece + b"\n\n")
    held.score(MEAN)
    held.replay(DECISION)


@few
@given(wire, st.booleans(), st.booleans(), st.integers(1, 3))
def test_a_gated_stream_is_whole_and_opens_at_its_tokens(
    cuts: Any, wants_usage: bool, wants_logprobs: bool, first: int
) -> None:
    line_end, space, places = cuts
    stream = GatedStream(wants_usage=wants_usage, wants_logprobs=wants_logprobs, first=first, choices=1)
    out = b""
    for piece in cut(encoded([*CHUNKS, USAGE, "[DONE]"], line_end, space), places):
        stream.feed(piece)
        if stream.decidable and not stream.opened:
            assert stream.score(MEAN) == pytest.approx(0.904837418)
            stream.open(0.9, decide)
        if stream.opened:
            out += stream.released()
    assert stream.done
    assert stream.opened
    *chunks, last, done = payloads(out)
    assert chunks == (
        CHUNKS if wants_logprobs else [each | {"choices": [each["choices"][0] | {"logprobs": None}]} for each in CHUNKS]
    )
    assert done == "[DONE]"
    assert last["cascadia"] == {"stage": "s", "spent": 2}
    assert ("usage" in last) is wants_usage
    assert stream.usage is not None


def tokens(*logprobs: float, index: int = 0) -> dict[str, Any]:
    """A chunk of several tokens, as engines send them under load."""
    content = [{"token": "t", "logprob": value} for value in logprobs]
    return {"choices": [{"index": index, "delta": {"content": "t"}, "logprobs": {"content": content}}]}


def test_only_the_first_tokens_are_scored_however_they_come() -> None:
    stream = GatedStream(wants_usage=False, wants_logprobs=False, first=3, choices=1)
    stream.feed(encoded([tokens(-0.1, -0.2)]))
    assert not stream.decidable
    stream.feed(encoded([tokens(-0.3, -9.0, -9.0)]))
    assert stream.decidable
    assert stream.score(MEAN) == pytest.approx(math.exp(-0.2))
    assert stream.scored_tokens == 3
    assert stream.score(TokenStatistic("Minimum")) == pytest.approx(math.exp(-0.3))
    stream.open(None, decide)
    stream.feed(b": engine's own\n\n" + encoded([tokens(-9.0), '{"error": {"message": "x"}}']))
    assert b": engine's own\n\n" in stream.released()


@pytest.mark.parametrize(("choices", "decidable"), [(1, False), (2, True), (3, False), (None, False)])
def test_every_choice_must_have_its_tokens(choices: int | None, decidable: bool) -> None:
    stream = GatedStream(wants_usage=False, wants_logprobs=False, first=2, choices=choices)
    stream.feed(encoded([tokens(-0.1, -0.1), tokens(-0.1, index=1)]))
    assert not stream.decidable
    stream.feed(encoded([tokens(-0.5, index=1)]))
    assert stream.decidable is decidable
    assert stream.score(MEAN) == pytest.approx(math.exp(-0.3))


def test_a_faulty_beginning_is_not_decided_on() -> None:
    stream = GatedStream(wants_usage=False, wants_logprobs=False, first=1, choices=1)
    stream.feed(encoded([tokens(-0.1), '{"error": {"message": "out of memory"}}']))
    assert stream.failed
    assert not stream.decidable


@pytest.mark.parametrize(
    ("path", "extra", "choices"),
    [
        ("chat/completions", {}, 1),
        ("chat/completions", {"n": 3}, 3),
        ("chat/completions", {"n": "3"}, None),
        ("completions", {"prompt": "one"}, 1),
        ("completions", {"prompt": "one", "n": 2}, 2),
        ("completions", {"prompt": ["one", "two"]}, None),
    ],
)
def test_how_many_choices_an_answer_will_have(path: str, extra: dict[str, Any], choices: int | None) -> None:
    body = json.dumps({"model": "m", "messages": [], **extra}).encode()
    assert CompletionRequest(b"/v1/" + path.encode(), body).choices == choices
