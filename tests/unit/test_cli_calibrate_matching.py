"""Which answers say what a reference says."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_cli.calibrating.matching import agrees, final_answer, matches


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("18", "She makes 9 * 2 = 18 dollars a day.\n#### 18"),
        ("18", "3 * 6 makes 18."),
        ("18", "**Answer:** 18 eggs"),
        ("1000", "The answer is $1,000.00."),
        ("$1,000", "#### 1000"),
        ("-3", "so x = -3"),
        ("-5", "It fell by −5"),  # noqa: RUF001 - the typographic minus sign
        ("-5", "-$5"),
        ("0.5", r"\boxed{\frac{1}{2}}"),
        (".5", "0.5"),
        ("1e3", "1000"),
        ("42", "The answer is 6 * 7 = 42"),
        ("2", r"Not \boxed{1} but \boxed{2}."),
        ("B", "The answer is (B) Paris."),
        ("b", "B. Paris"),
        ("A", "A"),
        ("The Eiffel Tower", "Answer: eiffel tower!"),
        ("new york", "New  York."),
        ("café", "CAFÉ"),
    ],
)
def test_right(reference: str, text: str) -> None:
    assert matches(reference, text)


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("18", "It is 18 at first, then 20."),
        ("18", "#### 180"),
        ("3", "The answer is 3 * 14 = 42"),
        ("5", "no number at all"),
        ("5", ""),
        ("3", "13"),
        ("1", "1" * 5000),
        ("A", "A good question."),
        ("A", "B) not A"),
        ("Paris", "London, not Paris"),
        ("Paris", ""),
        ("?", "anything"),
    ],
)
def test_wrong(reference: str, text: str) -> None:
    assert not matches(reference, text)


def test_the_final_answer_is_the_last_one_marked() -> None:
    assert final_answer("the answer is 3, no: the answer is 4\nbye") == "4"
    assert final_answer("#### 7\nmore") == "7"
    assert final_answer("**Answer**:\n\n7\nmore") == "7"
    assert final_answer("nothing is marked") is None


def test_agreement_is_with_the_final_answer_or_else_the_whole_text() -> None:
    assert agrees("Long reasoning. The answer is 12.", "12")
    assert not agrees("Long reasoning. The answer is 12.", "13")
    assert agrees("Paris, of course", "paris of course!")
    assert not agrees("Paris, of course", "Paris")


@settings(max_examples=200, deadline=None)
@given(st.integers(-(10**9), 10**9), st.integers(0, 4))
def test_a_number_is_the_same_however_it_is_written(number: int, digits: int) -> None:
    value = Fraction(number, 10**digits)
    plain = f"{number / 10**digits:.{digits}f}"
    assert Fraction(plain) == value
    for text in (plain, f"{number / 10**digits:,.{digits}f}", f"so it is {plain}.", f"#### {plain}", f"${plain}"):
        assert matches(plain, text), text
    other = float(value) + math.copysign(0.1 + abs(value) / 100, value)
    assert not matches(plain, f"#### {other:.{digits + 3}f}")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_is_judged(reference: str, text: str) -> None:
    assert matches(reference, text) in (True, False)
    assert agrees(reference, text) in (True, False)
