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

from cascadia_api.errors import InputError
from cascadia_solver.calibration import CalibrationAnswer, calibration_line

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
) -> Iterator[bytes]:
    """Turn ZeroEval results into calibration lines: quality is 1 for a correct answer, else 0.

    Args:
        lines: CSV with ``dataset, id, model, correct, parsed, prompt_chars, output_chars``.
        model_by_stage: The file's model name of each stage of the cascade, smallest first.
        auroc: Stated AUROC of the simulated score, for all stages or by stage; in [0.5, 1).
        seed: Seed of the simulated scores.

    Yields:
        One line for each question that all of the models answered, in the file's order.

    Raises:
        InputError: Missing columns, a model that the file does not have, or no common question.
    """
    yield from _import(
        lines,
        model_by_stage,
        auroc,
        seed,
        columns=("id", "model", "correct", "prompt_chars", "output_chars"),
        quality=lambda row: _number(row, "correct"),
        input_tokens=lambda row: _number(row, "prompt_chars") / CHARACTERS_PER_TOKEN,
    )


def import_wildbench(
    lines: Iterable[str], model_by_stage: Mapping[str, str], *, auroc: Mapping[str, float] | float, seed: int = 0
) -> Iterator[bytes]:
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
        quality=lambda row: (_number(row, "gpt4o_score_1_10") - 1) / 9,
        input_tokens=lambda row: (
            _number(row, "judge_prompt_tokens")
            - _WILDBENCH_JUDGE_TOKENS
            - _number(row, "output_chars") / CHARACTERS_PER_TOKEN
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
) -> Iterator[bytes]:
    separation = {}
    for stage in model_by_stage:
        stated = auroc if isinstance(auroc, float | int) else auroc.get(stage, math.nan)
        if not 0.5 <= stated < 1:
            raise InputError(f"AUROC of stage {stage!r} is {stated}; state one between 0.5 and 1, as in 0.8")
        separation[stage] = binormal_separation(stated)
    questions = _by_question(lines, columns, set(model_by_stage.values()))
    for identifier, rows in questions.items():
        if any(model not in rows for model in model_by_stage.values()):
            continue
        prompt = max(1, round(min(input_tokens(row) for row in rows.values())))
        answers = {}
        for stage, model in model_by_stage.items():
            worth = min(1.0, max(0.0, quality(rows[model])))
            noise = _standard_normal(f"{seed}/{identifier}/{model}")
            score = 1 / (1 + math.exp(-(1.2 + 0.8 * (separation[stage] * (worth - 0.5) + noise))))
            tokens = max(1, round(_number(rows[model], "output_chars") / CHARACTERS_PER_TOKEN))
            answers[stage] = CalibrationAnswer({_SCORER: round(score, 6)}, round(worth, 6), tokens)
        yield calibration_line(identifier, prompt, answers)


def _by_question(
    lines: Iterable[str], columns: tuple[str, ...], models: set[str]
) -> dict[str, dict[str, dict[str, str]]]:
    reader = csv.DictReader(lines)
    missing = [column for column in columns if column not in (reader.fieldnames or ())]
    if missing:
        there = ", ".join(reader.fieldnames or ()) or "none"
        raise InputError(f"the CSV lacks the columns {', '.join(missing)}; it has {there}")
    questions: dict[str, dict[str, dict[str, str]]] = {}
    known: set[str] = set()
    try:
        for row in reader:
            known.add(row["model"] or "")
            if row["model"] in models:
                questions.setdefault(row[columns[0]], {}).setdefault(row["model"], row)
    except csv.Error as error:
        raise InputError(f"line {reader.line_num} is no CSV: {error}") from None
    if unknown := sorted(models - known):
        raise InputError(f"the CSV has no model {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    if not any(len(rows) == len(models) for rows in questions.values()):
        raise InputError(f"no question of the CSV was answered by all of {', '.join(sorted(models))}")
    return questions


def _number(row: Mapping[str, str], column: str) -> float:
    try:
        number = float(row[column] or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{column} of {row['model']} is {row[column]!r}, and must be a number: mend that row")
    return number


def _standard_normal(key: str) -> float:
    """A standard normal number that every machine derives alike from the key."""
    bits = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
    return _NORMAL.inv_cdf((bits + 0.5) / 2**64)
