"""Calibration sets made from public per-question results.

The public files say which model answered which question rightly and how long the answer was, but hold
no score of the answer. The score is therefore simulated, with a stated AUROC (area under the receiver
operating characteristic, for the model's own correctness), by the binormal model::

    x = d * quality + e,  e ~ N(0, 1) from a seeded hash of (question, model),  d = sqrt(2) * Phi^-1(AUROC)
    score = 1 / (1 + exp(-(1.2 + 0.8 * (x - d / 2))))

The logistic function is increasing, so it keeps the AUROC; its constants put scores where the mean
token probabilities of instruction-tuned models lie, around 0.77.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from statistics import NormalDist
from typing import NamedTuple

from cascadia_api.errors import InputError
from cascadia_solver.calibration import CalibrationAnswer, calibration_line
from cascadia_solver.rejected_rows import MOST_TOKENS, RowProblem, rejected_rows_summary

__all__ = ["CHARACTERS_PER_TOKEN", "binormal_separation", "import_wildbench", "import_zeroeval"]

CHARACTERS_PER_TOKEN = 4.6
"""Median of English text and code under the Llama 3 tokenizer."""
_NORMAL = NormalDist()
_Figure = Callable[[Mapping[str, str]], float]
_SCORER = "logprob-mean"
_WILDBENCH_JUDGE_TOKENS = 620
"""WildBench's judge prompt without conversation and answer: what the shortest prompts (1 %) leave over."""


def import_zeroeval(
    lines: Iterable[str], model_by_stage: Mapping[str, str], *, auroc: Mapping[str, float] | float, seed: int = 0
) -> Iterator[bytes | RowProblem]:
    """Turn ZeroEval results into calibration lines: quality is 1 for a correct answer, else 0.

    Args:
        lines: CSV with ``dataset, id, model, correct, parsed, prompt_chars, output_chars``.
        model_by_stage: The file's model name of each stage of the cascade, smallest first.
        auroc: Stated AUROC of the simulated score, for all stages or by stage; in [0.5, 1).
        seed: Seed of the simulated scores.

    Yields:
        One line for each question that all of the models answered, in the file's order; problems of rows and
        questions that are left out, for `parse_calibration` to count.

    Raises:
        InputError: Missing columns, a model that the file does not have, or no common question.
    """
    yield from _import(
        lines,
        model_by_stage,
        auroc,
        seed,
        columns=("id", "model", "correct", "prompt_chars", "output_chars"),
        quality=lambda row: _number(row, "correct", 0, 1),
        input_tokens=lambda row: _length(row, "prompt_chars") / CHARACTERS_PER_TOKEN,
    )


def import_wildbench(
    lines: Iterable[str], model_by_stage: Mapping[str, str], *, auroc: Mapping[str, float] | float, seed: int = 0
) -> Iterator[bytes | RowProblem]:
    """Turn WildBench's judged scores (1 to 10) into calibration lines: quality is (score - 1) / 9.

    The file has no prompt length: it is what the judge read, less the answer and the judge's own
    instructions. Arguments, results and errors as for `import_zeroeval`.
    """
    yield from _import(
        lines,
        model_by_stage,
        auroc,
        seed,
        columns=("session_id", "model", "gpt4o_score_1_10", "output_chars", "judge_prompt_tokens"),
        quality=lambda row: (_number(row, "gpt4o_score_1_10", 1, 10) - 1) / 9,
        input_tokens=lambda row: (
            _length(row, "judge_prompt_tokens")
            - _WILDBENCH_JUDGE_TOKENS
            - _length(row, "output_chars") / CHARACTERS_PER_TOKEN
        ),
    )


def binormal_separation(auroc: float) -> float:
    """Return the distance between two unit normals that one threshold tells apart with this AUROC."""
    return math.sqrt(2) * _NORMAL.inv_cdf(auroc)


def _import(
    lines: Iterable[str],
    model_by_stage: Mapping[str, str],
    auroc: Mapping[str, float] | float,
    seed: int,
    *,
    columns: tuple[str, ...],
    quality: _Figure,
    input_tokens: _Figure,
) -> Iterator[bytes | RowProblem]:
    separation = {}
    for stage in model_by_stage:
        stated = auroc if isinstance(auroc, float | int) else auroc.get(stage, math.nan)
        if not 0.5 <= stated < 1:
            raise InputError(f"AUROC of stage {stage!r} is {stated}; state one between 0.5 and 1, as in 0.8")
        separation[stage] = binormal_separation(stated)
    questions, problems = _by_question(lines, columns, set(model_by_stage.values()))
    yield from problems
    usable = 0
    for identifier, rows in questions.items():
        missing = [model for model in model_by_stage.values() if model not in rows]
        line = max(row.line for row in rows.values())
        if missing:
            problems.append(RowProblem(line, f"question {identifier!r} has no answer of {', '.join(missing)}"))
            yield problems[-1]
            continue
        prompts, answers = [], {}
        try:
            for stage, model in model_by_stage.items():
                line, cells = rows[model]
                prompts.append(input_tokens(cells))
                worth = quality(cells)
                noise = _standard_normal(f"{seed}/{identifier}/{model}")
                score = 1 / (1 + math.exp(-(1.2 + 0.8 * (separation[stage] * (worth - 0.5) + noise))))
                tokens = max(1, round(_length(cells, "output_chars") / CHARACTERS_PER_TOKEN))
                answers[stage] = CalibrationAnswer({_SCORER: round(score, 6)}, round(worth, 6), tokens)
        except ValueError as error:
            problems.append(RowProblem(line, str(error)))
            yield problems[-1]
            continue
        usable += 1
        yield calibration_line(identifier, max(1, round(min(prompts))), answers, scores_simulated=True)
    if not usable:
        summary = rejected_rows_summary(problems, "results") if problems else "it has no rows"
        raise InputError(
            f"no question of the CSV was answered by all of {', '.join(model_by_stage.values())}: {summary}"
        )


class _Row(NamedTuple):
    line: int
    cells: Mapping[str, str]


def _by_question(
    lines: Iterable[str], columns: tuple[str, ...], models: set[str]
) -> tuple[dict[str, dict[str, _Row]], list[RowProblem]]:
    """Rows of the models by question and model, and those that cannot be told apart."""
    reader = csv.DictReader(lines)
    missing = [column for column in columns if column not in (reader.fieldnames or ())]
    if missing:
        there = ", ".join(reader.fieldnames or ()) or "none"
        raise InputError(f"the CSV lacks the columns {', '.join(missing)}; it has {there}")
    questions: dict[str, dict[str, _Row]] = {}
    problems: list[RowProblem] = []
    known: set[str] = set()
    try:
        for cells in reader:
            question, model = cells[columns[0]], cells["model"]
            if not question or not model:
                problems.append(RowProblem(reader.line_num, f"it has no {'model' if question else columns[0]}"))
                continue
            known.add(model)
            rows = questions.setdefault(question, {}) if model in models else {}
            if model in rows:
                first = f"question {question!r} of {model} stands on line {rows[model].line} already: that one counts"
                problems.append(RowProblem(reader.line_num, first))
            else:
                rows[model] = _Row(reader.line_num, cells)
    except csv.Error as error:
        raise InputError(f"line {reader.line_num} is no CSV: {error}") from None
    if unknown := sorted(models - known):
        raise InputError(f"the CSV has no model {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    return questions, problems


def _number(row: Mapping[str, str], column: str, least: int, most: int) -> float:
    """A figure of a row; raises ValueError where it is none."""
    try:
        number = float(row[column] or "")
    except ValueError:
        number = math.nan
    if not least <= number <= most:
        raise ValueError(f"{column} of {row['model']} is {row[column]!r}; it must lie between {least:,} and {most:,}")
    return number


def _length(row: Mapping[str, str], column: str) -> float:
    """Characters, or tokens."""
    return _number(row, column, 0, round(MOST_TOKENS * CHARACTERS_PER_TOKEN))


def _standard_normal(key: str) -> float:
    """A standard normal number that every machine derives alike from the key."""
    bits = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
    return _NORMAL.inv_cdf((bits + 0.5) / 2**64)
