"""Calibration sets: what is read, what is skipped, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cascadia_api.errors import InputError
from cascadia_solver.calibration import CalibrationAnswer, calibration_line, parse_calibration
from cascadia_solver.rejected_rows import rejected_rows_summary

NAMES = ["small", "large"]


def row(number: int, **changes: object) -> dict[str, object]:
    answer = {"scores": {"logprob-mean": 0.5 + number / 1000}, "quality": float(number % 2), "outputTokens": 100}
    document = {"id": f"q{number}", "inputTokens": 20 + number, "answers": {name: dict(answer) for name in NAMES}}
    for path, value in changes.items():
        target: dict[str, object] = document
        *parents, last = path.split("__")
        for parent in parents:
            target = target[parent]  # type: ignore[assignment]
        if value is None:
            del target[last]
        else:
            target[last] = value
    return document


def lines(*rows: dict[str, object] | str) -> list[str]:
    good = [row(number) for number in range(100, 160)]
    return [entry if isinstance(entry, str) else json.dumps(entry) for entry in (*rows, *good)]


def test_a_good_set_is_read_into_arrays() -> None:
    table, problems = parse_calibration(lines(), models=NAMES, scorer="logprob-mean")
    assert problems == []
    assert (len(table), table.models, table.source) == (60, ("small", "large"), "Calibration")
    assert table.scores[3].tolist() == pytest.approx([0.603, 0.603])
    assert table.quality[:, 0].tolist() == [float(k % 2) for k in range(100, 160)]
    assert table.input_tokens[0] == 120


def test_bytes_blank_lines_and_unknown_models_are_fine() -> None:
    extra = row(1)
    extra["answers"]["other"] = {"scores": {}, "quality": 0, "outputTokens": 1}  # type: ignore[index]
    text = [line.encode() for line in ["", json.dumps(extra), *lines(), "  "]]
    table, problems = parse_calibration(text, models=NAMES, scorer="logprob-mean")
    assert (len(table), problems) == (61, [])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{not json", "malformed"),
        ('{"id": "x", "inputTokens": NaN, "answers": {}}', "NaN is not a number in JSON"),
        ('{"id": "NaN", "inputTokens": 1', "Input data was truncated"),
        (row(1, answers__small=None), "no answer of model 'small'; the row has large"),
        (row(1, answers__small__quality=1.2), "answers.small.quality is 1.2; it must lie between 0 and 1"),
        (row(1, answers__small__outputTokens=0), "answers.small.outputTokens is 0"),
        (row(1, answers__large__quality="good"), "Expected `float`, got `str`"),
        (row(1, answers__small__scores={}), "answers.small.scores['logprob-mean'] is missing"),
        (row(1, inputTokens=0), "inputTokens is 0"),
        (row(1, inputTokens=1e308), "inputTokens is 1e+308; it must lie between 1 and 10,485,760"),
        (row(1, answers__large__outputTokens=1e9), "answers.large.outputTokens is 1000000000.0; it must lie"),
        (row(1, inputTokens=None), "missing required field `inputTokens`"),
        ('{"x": ' + "[" * 5000 + "]" * 5000 + "}", "it is nested too deeply"),
        (row(100), "id 'q100' is a duplicate"),
    ],
)
def test_a_bad_row_is_counted_named_and_skipped(bad: dict[str, object] | str, message: str) -> None:
    text = [*lines(), bad if isinstance(bad, str) else json.dumps(bad)]
    table, problems = parse_calibration(text, models=NAMES, scorer="logprob-mean")
    assert len(table) == 60
    (problem,) = problems
    assert problem.line == 61
    assert message in problem.message
    assert str(problem) in rejected_rows_summary(problems, "calibration set")


def test_the_last_model_needs_no_score() -> None:
    table, problems = parse_calibration(lines(row(1, answers__large__scores={})), models=NAMES, scorer="logprob-mean")
    assert problems == []
    assert np.isnan(table.scores[0, 1])


def test_a_set_without_the_scorer_names_those_it_has() -> None:
    with pytest.raises(InputError, match=r"no scores of 'judge', only of logprob-mean"):
        parse_calibration(lines(), models=NAMES, scorer="judge")


def test_an_empty_set_and_a_small_set_are_refused() -> None:
    with pytest.raises(InputError, match="it is empty"):
        parse_calibration([], models=NAMES, scorer="logprob-mean")
    with pytest.raises(InputError, match=r"40 usable rows; planning needs at least 50.*1 row was skipped"):
        parse_calibration([*lines()[:40], "{"], models=NAMES, scorer="logprob-mean")


def test_constant_scores_are_refused() -> None:
    constant = [json.dumps(row(k, answers__small__scores={"logprob-mean": 0.5})) for k in range(60)]
    with pytest.raises(InputError, match=r"every score of model 'small' under 'logprob-mean' is 0\.5"):
        parse_calibration(constant, models=NAMES, scorer="logprob-mean")


def test_written_lines_are_read_back() -> None:
    written = [
        calibration_line(f"r{k}", 10, {n: CalibrationAnswer({"logprob-mean": k / 100}, k % 2, 7) for n in NAMES})
        for k in range(50)
    ]
    table, problems = parse_calibration(written, models=NAMES, scorer="logprob-mean")
    assert problems == []
    assert table.scores[:, 0].tolist() == [k / 100 for k in range(50)]


def test_the_digest_depends_on_every_figure() -> None:
    table, _ = parse_calibration(lines(), models=NAMES, scorer="logprob-mean")
    same, _ = parse_calibration(lines(), models=NAMES, scorer="logprob-mean")
    other, _ = parse_calibration(lines(row(1)), models=NAMES, scorer="logprob-mean")
    assert table.digest == same.digest != other.digest
