"""`cascadia calibrate fit FILE --calibration SET`: curves for the parts of a Composite, and its scores by them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import yaml

from cascadia_api.cascade.scorer import Scorer, ScorerPart
from cascadia_api.errors import InputError, Problem
from cascadia_api.scorer_policy import scorer_policy
from cascadia_cli.calibrating.record import JudgedRow
from cascadia_cli.failures import say
from cascadia_cli.files import read_lines, read_manifest
from cascadia_router.scorers.building import Workbench
from cascadia_router.scorers.composite import Composite
from cascadia_solver.calibration import CalibrationAnswer
from cascadia_solver.isotonic import monotone_curve

__all__ = ["fit"]

LEAST_ROWS = 50
"""As for planning: fewer say nothing."""


def fit(file: str, *, calibration: str, target: str | None) -> None:
    """Fit the parts' curves to a set that `cascadia calibrate run` has made with this scorer; print the scorer.

    A Validator keeps its 0 and 1: a failed check is to decide alone.

    Args:
        file: The manifest.
        calibration: The set.
        target: Where to write the set with the scores of the scorer that is printed; None: nowhere.

    Raises:
        InputError: The scorer is no Composite, the set lacks its parts, or a file is wrong.
    """
    spec = read_manifest(file).cascade.spec
    scorer = spec.routing.scorer
    if scorer.parts is None:
        message = f"{scorer.type} needs no curve: thresholds are on raw scores; only the parts of a Composite have one"
        raise InputError(Problem("spec.routing.scorer.type", message), source=file)
    rows = _rows(calibration)
    stages = [model.name for model in spec.models][:-1]  # the last stage's answers are not scored
    parts = [part if part.type == "Validator" else _fitted(part, rows, stages, calibration) for part in scorer.parts]
    fitted = Scorer.model_validate({**scorer.model_dump(by_alias=True, exclude_none=True), "parts": parts})
    document: dict[str, Any] = fitted.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    sys.stdout.write(yaml.safe_dump({"scorer": document}, sort_keys=False, allow_unicode=True))
    if target is not None:
        _write(fitted, rows, target)
        say(f"{target}: {len(rows):,} requests, scored by {fitted.id}; put the scorer above under spec.routing")


def _rows(path: str) -> list[JudgedRow]:
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            rows += [msgspec.json.decode(line, type=JudgedRow)] if line.strip() else []
        except msgspec.DecodeError as error:
            raise InputError(
                f"line {number} was not written by `cascadia calibrate run`: {error}", source=path
            ) from None
    if len(rows) < LEAST_ROWS:
        raise InputError(f"it has {len(rows)} requests: a curve needs {LEAST_ROWS} or more", source=path)
    return rows


def _fitted(part: ScorerPart, rows: list[JudgedRow], stages: list[str], path: str) -> ScorerPart:
    answers = [row.answers[stage] for row in rows for stage in stages if stage in row.answers]
    scored = [(answer.scores[part.id], answer.quality) for answer in answers if part.id in answer.scores]
    if len(scored) < len(answers) or not scored:
        message = f"{len(answers) - len(scored)} answers have no score of {part.id}: make the set with this manifest"
        raise InputError(message, source=path)
    curve = monotone_curve([score for score, _ in scored], [quality for _, quality in scored])
    points = [{"score": f"{score:.6f}", "worth": f"{worth:.6f}"} for score, worth in curve]
    # The id stays: its raw scores are the same, and an id that was given is kept.
    return ScorerPart.model_validate({**part.model_dump(by_alias=True, exclude_none=True), "calibration": points})


def _write(scorer: Scorer, rows: list[JudgedRow], target: str) -> None:
    composite = Workbench().scorer(scorer_policy(scorer))
    assert isinstance(composite, Composite)

    def rescored(answer: CalibrationAnswer) -> CalibrationAnswer:
        known = [answer.scores.get(part.id) for part in composite.scorers]
        scores = [score for score in known if score is not None]
        if len(scores) < len(known):
            return answer
        whole = {**answer.scores, scorer.id: round(composite.combine(scores), 6)}
        return msgspec.structs.replace(answer, scores=whole)

    lines = [
        msgspec.json.encode(
            msgspec.structs.replace(row, answers={name: rescored(answer) for name, answer in row.answers.items()})
        )
        for row in rows
    ]
    path, content = Path(target), b"".join(line + b"\n" for line in lines)
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            path.write_bytes(content)  # /dev/stdout
        else:
            beside = Path(f"{target}.new")  # the set may be written over itself, and has cost much
            beside.write_bytes(content)
            beside.replace(path)
    except OSError as error:
        raise InputError(Problem("--output", f"{target} cannot be written: {error.strerror}")) from None
