"""Rows of a file that cannot be used: counted, named and skipped, never guessed at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["RowProblem", "rejected_rows_summary"]


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
