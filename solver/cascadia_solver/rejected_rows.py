"""Rows of a file that cannot be used: counted, named and skipped, never guessed at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["MOST_TOKENS", "RowProblem", "rejected_rows_summary", "token_count"]

MOST_TOKENS = 10_485_760
"""No published model has a longer context window (Llama 4 Scout's)."""


@dataclass(frozen=True, slots=True)
class RowProblem:
    """One row that was skipped.

    Attributes:
        line: Line number in the file, from 1.
        message: What is wrong with it.
    """

    line: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}"


def token_count(name: str, value: object) -> float:
    """A number of tokens, prompt or answer, that some model could have had.

    Args:
        name: The field, for the message.
        value: A number, or its text.

    Raises:
        ValueError: It is none, or lies outside 1 to `MOST_TOKENS`.
    """
    try:
        tokens = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        tokens = math.nan
    if not 1 <= tokens <= MOST_TOKENS:
        raise ValueError(f"{name} is {value!r}; it must lie between 1 and {MOST_TOKENS:,}")
    return tokens


def rejected_rows_summary(problems: Sequence[RowProblem], what: str, *, shown: int = 3) -> str:
    """Say in one sentence how many rows were skipped, and show the first few.

    Args:
        problems: At least one.
        what: What the rows are of, for example ``calibration set``.
        shown: Most rows to name.
    """
    rows = "row was" if len(problems) == 1 else "rows were"
    rest = "; …" if len(problems) > shown else ""
    return f"{len(problems)} {rows} skipped in the {what}: " + "; ".join(map(str, problems[:shown])) + rest
