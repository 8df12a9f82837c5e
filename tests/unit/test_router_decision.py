"""What an answer says of how it came about."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_router.completion_body import Usage
from cascadia_router.decision import DecisionText

names = st.text(min_size=1, max_size=12)
tokens = st.integers(0, 10**7)


@settings(max_examples=60, deadline=None)
@given(
    names,
    st.dictionaries(names, st.tuples(tokens, tokens), max_size=7),
    st.one_of(st.none(), st.tuples(tokens, tokens)),
    st.one_of(st.none(), st.floats(0, 1)),
    names,
)
def test_the_document_adds_up(
    stage: str, before: dict[str, tuple[int, int]], own: tuple[int, int] | None, score: float | None, plan: str
) -> None:
    before.pop(stage, None)
    said = DecisionText(stage, 0.5, tuple(before), plan, 3)
    spent = tuple((name, *both) for name, both in before.items())
    document = json.loads(said.document(score, None if own is None else Usage(*own), spent))
    every = {**before, stage: own or (0, 0)}
    assert document == {
        "stage": stage,
        "score": score,
        "threshold": 0.5,
        "path": ">".join(every),
        "plan": plan,
        "policyRevision": 3,
        "usage": {
            "promptTokens": sum(prompt for prompt, _ in every.values()),
            "completionTokens": sum(completion for _, completion in every.values()),
            "stages": {name: {"promptTokens": p, "completionTokens": c} for name, (p, c) in every.items()},
        },
    }


@pytest.mark.parametrize("name", ["small", "größer", "a\r\nx-evil: 1", "50%s"])
def test_header_lines_are_printable_and_one_a_line(name: str) -> None:
    lines = DecisionText(name, None, (), "p", 1).lines(0.25)
    assert lines.count(b"\r\n") == 3
    assert lines.endswith(b"x-cascadia-score: 0.250000\r\n")
    assert all(32 <= byte < 127 for byte in lines.replace(b"\r\n", b""))
