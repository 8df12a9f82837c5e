r"""Whether an answer says what a reference says: by number, by letter, or by the same words.

The *final answer* of a text is the content of its last ``\boxed{…}``; without one, the rest of the line after its
last ``####``, "answer is", "answer:" or "answer =" (the next line, if nothing follows on that one).

- A reference that is a number is matched by the first number of the final answer (after an ``=`` sign if there
  is one), or, in a text without one, by the last number of the text. ``1,000``, ``$1000.00`` and ``1000`` are equal.
- A reference of one letter is matched by a final answer, or a text, that begins with that letter alone, as in
  ``(B)`` or ``B. Paris``.
- Any other reference is matched by a final answer, or a whole text, of the same words: case, punctuation and the
  articles a, an, the do not count.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

__all__ = ["agrees", "final_answer", "matches"]

_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_MARK = re.compile(r"####|\banswer\b[\s*]*(?:is\b\s*:?|:|=)", re.IGNORECASE)
_NUMBER = re.compile(
    r"(?:(?<!\w)-)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3}(?!\d)|/[1-9]\d*)?"
)
_FRACTION = re.compile(r"\\d?frac\{(\d+)\}\{(\d+)\}")
_LETTER = re.compile(r"[\s(\[*]*([A-Za-z])(?:[)\].:,*]|\s*$)")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_AROUND_NUMBERS = "$€£% \t*"
_MOST_DIGITS = 100
"""Longer numbers are those of a model that repeats itself."""
_RELATIVE_TOLERANCE = Fraction(1, 1_000_000)


def matches(reference: str, text: str) -> bool:
    """Whether a text's answer is the reference, by the rules above."""
    final = final_answer(text)
    number = _number(reference)
    if number is not None:
        found = _first_number(final) if final is not None else _last_number(text)
        return found is not None and abs(found - number) <= _RELATIVE_TOLERANCE * abs(number)
    letter = _LETTER.fullmatch(reference)
    candidates = [text] if final is None else [final, text]
    if letter is not None:
        starts = (_LETTER.match(candidate) for candidate in candidates)
        return any(start is not None and start[1].upper() == letter[1].upper() for start in starts)
    words = _words(reference)
    return bool(words) and any(_words(candidate) == words for candidate in candidates)


def agrees(leader: str, text: str) -> bool:
    """Whether a text answers as another one does: matches that one's final answer, or all of it where it marks none."""
    final = final_answer(leader)
    return matches(leader if final is None else final, text)


def final_answer(text: str) -> str | None:
    """The answer that a text marks as its last; None if it marks none."""
    boxed = _BOXED.findall(text)
    if boxed:
        return str(boxed[-1])
    marks = list(_MARK.finditer(text))
    rest = text[marks[-1].end() :].strip() if marks else ""
    return rest.splitlines()[0] if rest else None


def _number(text: str) -> Fraction | None:
    found = _NUMBER.fullmatch(_plain(text).strip(_AROUND_NUMBERS).rstrip("." + _AROUND_NUMBERS))
    return None if found is None else _value(found[0])


def _first_number(text: str) -> Fraction | None:
    found = _NUMBER.search(_plain(text).rpartition("=")[2])
    return None if found is None else _value(found[0])


def _last_number(text: str) -> Fraction | None:
    found = [match[0] for match in _NUMBER.finditer(_plain(text))]
    return _value(found[-1]) if found else None


def _plain(text: str) -> str:
    """The text with signs before currencies, typographic minus signs and LaTeX fractions written plainly."""
    plain = _FRACTION.sub(r"\1/\2", text.replace("\N{MINUS SIGN}", "-"))
    return plain.replace("-$", "-").replace("-€", "-").replace("-£", "-")


def _value(number: str) -> Fraction | None:
    if len(number) > _MOST_DIGITS:
        return None
    above, _, below = number.replace(",", "").partition("/")
    return Fraction(above) / Fraction(below or 1)


def _words(text: str) -> list[str]:
    plain = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(" " if unicodedata.category(character)[0] in "PSZC" else character for character in plain)
    return _ARTICLES.sub(" ", kept).split()
