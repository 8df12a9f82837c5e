"""How far two texts agree, and which samples a report holds."""

import json

import pytest

from cascadia_api.report import CalibrationSample, NextAnswer
from cascadia_router.agreement import agreement, answer_text
from cascadia_router.window import MAX_SAMPLES, Window


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("Paris.", "paris", 1.0),
        ("the cat sat", "sat the cat", 1.0),
        ("yes", "no", 0.0),
        ("a a b", "a b b", 2 / 3),
        ("", "something", None),
        ("...", "something", None),
        ("größer als 7", "Größer als 8", 2 / 3),
    ],
)
def test_agreement_is_token_f1(one: str, other: str, expected: float | None) -> None:
    assert agreement(one, other) == (expected if expected is None else pytest.approx(expected))
    assert agreement(other, one) == agreement(one, other)


def test_the_text_is_the_first_choices_whole_or_streamed() -> None:
    whole = {"choices": [{"index": 0, "message": {"content": "one two"}}, {"index": 1, "message": {"content": "no"}}]}
    assert answer_text(json.dumps(whole).encode()) == "one two"
    assert answer_text(b'{"choices": [{"text": "plain"}]}') == "plain"
    chunks = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in ("one ", "two", None)]
    chunks.append({"choices": [{"index": 1, "delta": {"content": "no"}}]})
    events = b"".join(b"data: %s\n\n" % json.dumps(chunk).encode() for chunk in chunks)
    assert answer_text(b": keep-alive\n\n" + events + b'data: {"choices":[]}\n\ndata: [DONE]\n\n') == "one two"
    assert answer_text(b"\xff") == ""
    assert answer_text(b'{"choices": [{"message": {"content": null, "tool_calls": []}}]}') == ""


def test_compared_samples_are_not_crowded_out_and_probabilities_stay_true() -> None:
    window = Window(0.0, seed=1)
    for number in range(2000):
        compared = NextAnswer(stage="large", agreement=1.0) if number % 5 == 0 else None
        window.keep_sample(
            1.0,
            CalibrationSample(
                request_id=str(number), stage="small", score=0.5, output_tokens=1, input_tokens=1,
                inclusion_probability=0.5, next=compared,
            ),
        )  # fmt: skip
    chosen = window.report(1.0, 60, window_end=0, plan_id="", policy_revision=1).samples
    assert len(chosen) == MAX_SAMPLES
    weights = {True: 0.0, False: 0.0}
    for sample in chosen:
        weights[sample.next is not None] += 1 / sample.inclusion_probability
    assert weights[True] == pytest.approx(400 / 0.5)
    assert weights[False] == pytest.approx(1600 / 0.5)
