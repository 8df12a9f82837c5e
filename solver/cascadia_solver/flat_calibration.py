"""Calibration sets as tables: the fields of the JSON lines as columns.

::

    id,inputTokens,answers.small.quality,answers.small.outputTokens,answers.small.scores.logprob-mean,answers.large.…

An empty cell (in Parquet: null or NaN) is a field that the row does not have. An optional column `needs` has
words between spaces (in Parquet also a list). Other columns are ignored.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from cascadia_api.errors import InputError
from cascadia_solver.rejected_rows import RowProblem

__all__ = ["lines_of_csv", "lines_of_table"]

_ANSWER_FIELDS = frozenset({"quality", "outputTokens"})
_MARKS = {";": "semicolons", "\t": "tabs"}


def lines_of_csv(lines: Iterable[str]) -> Iterator[bytes | RowProblem]:
    """Turn a CSV file into what `parse_calibration` reads, blank lines included: line numbers stay those of the file.

    Args:
        lines: Of the file, the header first.

    Raises:
        InputError: It is no CSV, or its header lacks a column.
    """
    reader = csv.reader(lines, strict=True, skipinitialspace=True)
    try:
        header = [name.strip().removeprefix("\ufeff") for name in next(reader, [])]
        paths = _paths(header)
        yield b""
        written = 1
        for cells in reader:
            yield from [b""] * (reader.line_num - 1 - written)  # of a row that takes several lines, the last one counts
            written = reader.line_num
            if not cells:
                yield b""
            elif len(cells) != len(header):
                yield RowProblem(written, f"{len(cells)} cells for {len(header)} columns")
            else:
                yield _line(written, header, paths, [cell.strip() for cell in cells])
    except csv.Error as error:
        raise InputError(f"line {reader.line_num}: not CSV: {error}") from None


def lines_of_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[bytes | RowProblem]:
    """Turn the rows of a table into what `parse_calibration` reads; line numbers are row numbers.

    Args:
        columns: Names of the columns.
        rows: Values in the order of the columns.

    Raises:
        InputError: A column is missing.
    """
    paths = _paths(columns)
    for number, row in enumerate(rows, start=1):
        yield _line(number, columns, paths, row)


def _paths(columns: Sequence[str]) -> list[tuple[str, ...]]:
    """Where each column's value belongs in a row's JSON; empty for a column that is ignored."""
    paths = [_path(column) for column in columns]
    needed: list[tuple[str, ...]] = [("id",), ("inputTokens",)]
    models = sorted({path[1] for path in paths if len(path) > 2}) or ["small"]
    needed += [("answers", model, field) for model in models for field in ("quality", "outputTokens")]
    if missing := [".".join(path) for path in needed if path not in paths]:
        apart = next((name for mark, name in _MARKS.items() if len(columns) == 1 and mark in columns[0]), None)
        hint = f"; its columns are separated by {apart}: save it with commas" if apart else ""
        raise InputError(
            f"the table lacks the columns {', '.join(missing)}; it has {', '.join(columns) or 'none'}{hint}"
        )
    if twice := sorted({column for column, path in zip(columns, paths, strict=True) if path and paths.count(path) > 1}):
        raise InputError(f"the table has the column {twice[0]} twice: remove one")
    return paths


def _path(column: str) -> tuple[str, ...]:
    if column in {"id", "inputTokens", "needs"}:
        return (column,)
    head, _, rest = column.partition(".")
    model, _, field = rest.partition(".")
    if head == "answers" and model:
        kind, _, scorer = field.partition(".")
        if field in _ANSWER_FIELDS:
            return (head, model, field)
        if kind == "scores" and scorer:
            return (head, model, kind, scorer)
    return ()


def _line(
    number: int, columns: Sequence[str], paths: Sequence[tuple[str, ...]], values: Sequence[Any]
) -> bytes | RowProblem:
    row: dict[str, Any] = {"answers": {}}
    for column, path, value in zip(columns, paths, values, strict=True):
        if not path or value is None or (isinstance(value, str) and value == ""):
            continue
        if path == ("id",):
            row["id"] = str(value)
            continue
        if path == ("needs",):
            if not isinstance(value, str | list):
                return RowProblem(number, f"needs is {value!r}, no words")
            row["needs"] = value.split() if isinstance(value, str) else [str(word) for word in value]
            continue
        try:
            figure = float(value)
        except (TypeError, ValueError, OverflowError):
            return RowProblem(number, f"{column} is {value!r}, not a number")
        if math.isnan(figure):
            continue
        if math.isinf(figure):
            return RowProblem(number, f"{column} is {value!r}, not a finite number")
        target = row
        for name in path[:-1]:
            target = target.setdefault(name, {})
        target[path[-1]] = figure
    for answer in row["answers"].values():
        answer.setdefault("scores", {})
    return msgspec.json.encode(row)
