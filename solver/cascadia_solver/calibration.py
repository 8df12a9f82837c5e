"""Calibration sets: requests that every model answered, scored and judged once.

One JSON object a line::

    {"id": "gsm8k-17", "inputTokens": 134,
     "answers": {"small": {"scores": {"logprob-mean": 0.93}, "quality": 1.0, "outputTokens": 211}, …}}

`quality` in [0, 1] is the judged worth of the answer; `scores` holds raw scores by scorer id. A request that
needs more than text says so in `needs`: `["tools"]`, `["images"]`, `["audio"]`, `["json-schema"]`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import msgspec
import numpy as np
from msgspec import UNSET, Struct, UnsetType
from numpy.typing import NDArray

from cascadia_api.errors import InputError
from cascadia_solver.ability import needs_mask
from cascadia_solver.rejected_rows import RowProblem, rejected_rows_summary, token_count

__all__ = ["MIN_ROWS", "CalibrationAnswer", "CalibrationRow", "CalibrationSet", "calibration_line", "parse_calibration"]

Floats = NDArray[np.float64]

MIN_ROWS = 50
"""Fewer requests say next to nothing: the bound on a mean quality of 0.9 is then wider than ±0.08."""


class CalibrationAnswer(Struct, rename="camel"):
    """One model's answer to one request.

    Attributes:
        scores: Raw score by scorer id.
        quality: Judged worth, 0 to 1.
        output_tokens: Length of the answer.
    """

    scores: dict[str, float]
    quality: float
    output_tokens: float


class CalibrationRow(Struct, rename="camel"):
    """One request with the answers of all models.

    Attributes:
        id: Unique in the set.
        input_tokens: Length of the prompt.
        answers: By model name.
        needs: What it needs beyond text: ``tools``, ``images``, ``audio``, ``json-schema``.
        scores_simulated: Whether nobody scored its answers: its scores are drawn, of a stated AUROC.
    """

    id: str
    input_tokens: float
    answers: dict[str, CalibrationAnswer]
    needs: list[str] | UnsetType = UNSET
    scores_simulated: bool | UnsetType = UNSET


@dataclass(frozen=True, eq=False)
class CalibrationSet:
    """A calibration set as arrays; n requests, C models.

    Attributes:
        ids: Request ids, n.
        models: Model names, C, smallest first.
        scorer: Scorer id that `scores` are of.
        input_tokens: [n].
        output_tokens: [n, C].
        scores: Raw scores [n, C]; those of the last model may be NaN, since no threshold applies to them.
        quality: Judged worth [n, C], 0 to 1.
        source: ``Calibration``, or ``Prior`` for a table that was made up from published accuracies.
        needs: What each request needs beyond text, as `ability.needs_mask` says [n]; None where no row says.
        able: Which models can take each request [n, C]; None: all of them, or not yet looked up.
        scores_simulated: Whether some scores are drawn, not given by a scorer: good for trying things out.
    """

    ids: Sequence[str]
    models: tuple[str, ...]
    scorer: str
    input_tokens: Floats
    output_tokens: Floats
    scores: Floats
    quality: Floats
    source: str = field(default="Calibration")
    needs: NDArray[np.uint8] | None = None
    able: NDArray[np.bool_] | None = None
    scores_simulated: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything in the set that plans depend on, hexadecimal."""
        state = hashlib.sha256(repr((self.models, self.scorer, self.source, len(self))).encode())
        for array in (self.input_tokens, self.output_tokens, self.scores, self.quality):
            state.update(np.ascontiguousarray(array).tobytes())
        if self.needs is not None:
            state.update(self.needs.tobytes())
        return state.hexdigest()

    def with_able(self, able: NDArray[np.bool_] | None) -> CalibrationSet:
        """The set with which models can take each request [n, C]; of the same digest."""
        known = {name: value for name, value in vars(self).items() if name == "digest"}
        found = replace(self, able=able)
        vars(found).update(known)
        return found


def parse_calibration(
    lines: Iterable[bytes | str | RowProblem], *, models: Sequence[str], scorer: str
) -> tuple[CalibrationSet, list[RowProblem]]:
    """Read a calibration set.

    Args:
        lines: JSONL; blank lines are ignored. Rows of a table that could not be made JSON come as problems.
        models: Names of the cascade's models, smallest first. Answers of other models are ignored.
        scorer: Id of the configured scorer.

    Returns:
        The set, and the rows that were skipped.

    Raises:
        InputError: The set is empty, too small, lacks the scorer, or has constant scores.
    """
    decoder = msgspec.json.Decoder(CalibrationRow)
    rows: list[tuple[str, float, list[float]]] = []
    needs: list[int | None] = []
    problems: list[RowProblem] = []
    seen: set[str] = set()
    scorers: set[str] = set()
    simulated = False
    for number, line in enumerate(lines, start=1):
        if isinstance(line, RowProblem):
            problems.append(line)
            continue
        if not line.strip():
            continue
        try:
            row = decoder.decode(line)
            for answer in row.answers.values():
                scorers.update(answer.scores)
            values = _values(row, models, scorer, seen)
            needed = None if row.needs is UNSET else needs_mask(row.needs)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError) as error:
            problems.append(RowProblem(number, _words(error, line)))
            continue
        seen.add(row.id)
        simulated = simulated or row.scores_simulated is True
        rows.append((row.id, float(row.input_tokens), values))
        needs.append(needed)
    _check_rows(len(rows), problems, scorer, scorers)
    columns = np.array([values for _, _, values in rows]).reshape(len(rows), 3, len(models))
    result = CalibrationSet(
        ids=[identifier for identifier, _, _ in rows],
        models=tuple(models),
        scorer=scorer,
        input_tokens=np.array([tokens for _, tokens, _ in rows]),
        output_tokens=np.ascontiguousarray(columns[:, 0]),
        scores=np.ascontiguousarray(columns[:, 1]),
        quality=np.ascontiguousarray(columns[:, 2]),
        needs=None if set(needs) == {None} else np.array([mask or 0 for mask in needs], dtype=np.uint8),
        scores_simulated=simulated,
    )
    if np.ptp(result.quality) == 0:
        raise InputError(
            f"calibration set: every answer of every model is worth {result.quality[0, 0]:g} on all {len(rows)} rows; "
            "nothing tells the models apart: check the judge that wrote the set"
        )
    for index, name in enumerate(models[:-1]):
        if np.ptp(result.scores[:, index]) == 0:
            raise InputError(
                f"calibration set: every score of model {name!r} under {scorer!r} is {result.scores[0, index]:g}; "
                "a constant score cannot tell good answers from bad ones: check the scorer that wrote the set"
            )
    return result, problems


def _words(error: Exception, line: bytes | str) -> str:
    text = line.decode("utf-8", "replace") if isinstance(line, bytes) else line
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, msgspec.DecodeError) and (wrong := re.search(r"[:\[,]\s*(-?NaN|-?Infinity)\b", text)):
        return f"{wrong[1]} is not a number in JSON: leave a score out where there is none"
    return str(error)


def calibration_line(
    identifier: str, input_tokens: float, answers: Mapping[str, CalibrationAnswer], *, scores_simulated: bool = False
) -> bytes:
    """Return one line of a calibration set, without the line end."""
    row = CalibrationRow(identifier, input_tokens, dict(answers), scores_simulated=scores_simulated or UNSET)
    return msgspec.json.encode(row)


def _values(row: CalibrationRow, models: Sequence[str], scorer: str, seen: Collection[str]) -> list[float]:
    """Output tokens of all models, then scores, then qualities; raises ValueError naming what is wrong."""
    if row.id in seen:
        raise ValueError(f"id {row.id!r} is a duplicate")
    token_count("inputTokens", row.input_tokens)
    tokens, scores, qualities = [], [], []
    for index, name in enumerate(models):
        answer = row.answers.get(name)
        if answer is None:
            raise ValueError(f"no answer of model {name!r}; the row has {', '.join(sorted(row.answers)) or 'none'}")
        if not 0 <= answer.quality <= 1:
            raise ValueError(f"answers.{name}.quality is {answer.quality}; it must lie between 0 and 1")
        score = answer.scores.get(scorer, math.nan)
        if not math.isfinite(score) and (index < len(models) - 1 or scorer in answer.scores):
            found = f"is {score}" if scorer in answer.scores else "is missing"
            raise ValueError(f"answers.{name}.scores[{scorer!r}] {found}")
        tokens.append(token_count(f"answers.{name}.outputTokens", answer.output_tokens))
        scores.append(score)
        qualities.append(answer.quality)
    return tokens + scores + qualities


def _check_rows(count: int, problems: Sequence[RowProblem], scorer: str, scorers: set[str]) -> None:
    if count >= MIN_ROWS:
        return
    skipped = " " + rejected_rows_summary(problems, "calibration set") if problems else ""
    if scorers and scorer not in scorers:
        raise InputError(
            f"calibration set: it has no scores of {scorer!r}, only of {', '.join(sorted(scorers))}; "
            "make it with the scorer of spec.routing.scorer, or configure the one that it has"
        )
    if not count and not problems:
        raise InputError("calibration set: it is empty; write one JSON object or table row a request")
    raise InputError(
        f"calibration set: it has {count} usable rows; planning needs at least {MIN_ROWS}, "
        f"and some hundreds for a useful quality bound.{skipped}"
    )
