"""Traces of real traffic: when requests came, and how long prompts and answers were."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from cascadia_api.errors import InputError
from cascadia_solver.ability import needs_mask
from cascadia_solver.rejected_rows import RowProblem, rejected_rows_summary, token_count

__all__ = ["Trace", "parse_trace"]

Floats = NDArray[np.float64]

_ARRIVAL = {"timestampms": 1e-3, "timestamp": 1e-3, "arrived_at": 1.0}
"""Columns of arrival times and the seconds of their unit. A timestamp with a date is read as such."""
_LATEST_S = 1e11
"""Seconds since 1970, or since anything else: three thousand years."""
_INPUT = frozenset({"inputtokens", "contexttokens", "input_length", "num_prefill_tokens"})
_OUTPUT = frozenset({"outputtokens", "generatedtokens", "output_length", "num_decode_tokens"})


@dataclass(frozen=True, eq=False)
class Trace:
    """Requests in order of arrival.

    Attributes:
        arrivals: Seconds since the first one [n].
        input_tokens: Prompt lengths [n].
        output_tokens: Answer lengths [n], taken to be those of the largest model.
        needs: What each request needs beyond text, as `ability.needs_mask` says [n]; None where the trace is silent.
        unit_unstated: Whether arrival times are numbers without a stated unit: taken as milliseconds.
    """

    arrivals: Floats
    input_tokens: Floats
    output_tokens: Floats
    needs: NDArray[np.uint8] | None = None
    unit_unstated: bool = False

    def __len__(self) -> int:
        return len(self.arrivals)

    @property
    def requests_per_second(self) -> float:
        """Mean arrival rate, 1/s."""
        return (len(self) - 1) / float(self.arrivals[-1])


def parse_trace(lines: Iterable[bytes | str]) -> tuple[Trace, list[RowProblem]]:
    """Read a trace: Azure's CSV, or JSONL with ``timestampMs``, ``inputTokens`` and ``outputTokens``.

    Other public names of the same columns are understood (Mooncake's, Vidur's). An optional `needs` says what
    a request needs beyond text: a list of words in JSON, words between spaces in CSV. Rows out of order are
    sorted; unusable rows are skipped.

    Raises:
        InputError: Not a trace, no usable rows, or all at one moment.
    """
    text = (line.decode("utf-8", "replace") if isinstance(line, bytes) else line for line in lines)
    numbered = ((number, line) for number, line in enumerate(text, start=1) if line.strip())
    first = next(numbered, None)
    if first is None:
        raise InputError("trace: it is empty")
    records = (_json_records if first[1].lstrip().startswith("{") else _csv_records)(chain([first], numbered))
    rows: list[tuple[float, float, float, float]] = []
    problems: list[RowProblem] = []
    unstated = False
    for number, record in records:
        try:
            rows.append(_request(record))
            unstated = unstated or _is_unit_unstated(record)
        except ValueError as error:
            problems.append(RowProblem(number, str(error)))
    if len(rows) < 2:
        detail = " " + rejected_rows_summary(problems, "trace") if problems else ""
        raise InputError(f"trace: it has {len(rows)} usable rows; two are the least.{detail}")
    table = np.array(rows)
    table = table[np.argsort(table[:, 0], kind="stable")]
    arrivals = table[:, 0] - table[0, 0]
    if arrivals[-1] <= 0:
        raise InputError("trace: all requests have the same timestamp, so it has no arrival rate")
    needs = None if np.isnan(table[:, 3]).all() else np.nan_to_num(table[:, 3]).astype(np.uint8)
    inputs, outputs = (np.ascontiguousarray(table[:, column]) for column in (1, 2))
    return Trace(arrivals, inputs, outputs, needs, unstated), problems


def _json_records(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in lines:
        try:
            record = msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError) as error:
            deep = isinstance(error, RecursionError)
            yield number, {"": "it is nested too deeply" if deep else str(error)}
            continue
        yield number, record if isinstance(record, dict) else {"": "it is not a JSON object"}


def _csv_records(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    _, header = next(lines)
    names = next(csv.reader([header]))
    folded = {name.strip().casefold() for name in names}
    if not (folded & _ARRIVAL.keys() and folded & _INPUT and folded & _OUTPUT):
        raise InputError(
            f"trace: columns are {', '.join(names)}; a CSV trace has TIMESTAMP, ContextTokens and GeneratedTokens"
        )
    for number, line in lines:
        try:
            yield number, dict(zip(names, next(csv.reader([line])), strict=False))
        except csv.Error as error:
            yield number, {"": f"it is no CSV: {error}"}


def _request(record: Mapping[str, Any]) -> tuple[float, float, float, float]:
    if "" in record:
        raise ValueError(str(record[""]))
    fields = {name.strip().casefold(): value for name, value in record.items()}
    arrival = next((name for name in _ARRIVAL if name in fields), None)
    if arrival is None:
        raise ValueError("it has no timestampMs")
    seconds = _seconds(fields[arrival], _ARRIVAL[arrival])
    return seconds, _tokens(fields, _INPUT), _tokens(fields, _OUTPUT), _needs(fields.get("needs"))


def _is_unit_unstated(record: Mapping[str, Any]) -> bool:
    """Whether a record says `timestamp`, a plain number, without being one of Mooncake's, whose are milliseconds."""
    fields = {name.strip().casefold(): value for name, value in record.items()}
    if "timestamp" not in fields or "timestampms" in fields or "input_length" in fields:
        return False
    try:
        float(str(fields["timestamp"]))
    except ValueError:
        return False
    return True


def _needs(value: object) -> float:
    """Mask of what a request needs; NaN where its record does not say."""
    if value is None:
        return math.nan
    return float(needs_mask([str(word) for word in value] if isinstance(value, list) else str(value).split()))


def _seconds(value: object, unit: float) -> float:
    try:
        seconds = float(str(value)) * unit
    except ValueError:
        moment = datetime.fromisoformat(str(value).strip())
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not abs(seconds) <= _LATEST_S:
        raise ValueError(f"its timestamp is {value}")
    return seconds


def _tokens(fields: Mapping[str, Any], names: frozenset[str]) -> float:
    name = next((name for name in fields if name in names), None)
    if name is None:
        raise ValueError(f"it has no {'inputTokens' if names is _INPUT else 'outputTokens'}")
    return token_count(name, fields[name])
