"""What `cascadia calibrate` says of a finished set."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from cascadia_cli.calibrating.record import JudgedRow
from cascadia_cli.calibrating.report import set_summary, stage_table, target_words
from cascadia_solver.calibration import CalibrationAnswer
from tests.support.planning import MODELS, cascade, probit_table


def rows(count: int, *, references: int = 0) -> list[JudgedRow]:
    """Rows of a generated population, judged too kindly where the reference says 0."""
    table = probit_table(count, 7)
    made = []
    for n in range(count):
        answers = {
            model: CalibrationAnswer(
                {"logprob-mean": float(table.scores[n, c]), "logprob-min": 0.1},
                float(table.quality[n, c]),
                float(table.output_tokens[n, c]),
            )
            for c, model in enumerate(MODELS)
        }
        wrong = {model: answer.quality * (n % 4 > 0) for model, answer in answers.items()}
        made.append(
            JudgedRow(str(n), 9.0, answers, judge="Endpoint/m", prompt="0", reference=wrong if n < references else None)
        )
    return made


def shown(summary: dict[str, Any]) -> str:
    text = io.StringIO()
    Console(file=text, width=80).print(stage_table(summary))
    return text.getvalue()


def test_the_summary_has_quality_scores_and_the_judges_bias() -> None:
    made = rows(300, references=100)
    summary = set_summary(cascade(objective={"minQuality": "0.85"}).spec, made)
    table = probit_table(300, 7)
    small = summary["stages"][0]
    assert small["quality"]["mean"] == pytest.approx(table.quality[:, 0].mean())
    assert 0.7 < small["auroc"] < 0.9
    checked = table.quality[:100, 0]
    assert small["judgeBias"]["mean"] == pytest.approx(checked[::4].sum() / 100)
    assert small["judgeBias"]["agreement"] == pytest.approx(1 - checked[::4].sum() / 100)
    assert (summary["target"]["enough"], summary["target"]["requestsNeeded"]) == (True, None)
    text = shown(summary)
    assert "Judge bias" in text
    assert f"{small['quality']['mean']:.3f} ± {small['quality']['standardError']:.3f}" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_a_bias_from_a_handful_of_references_is_not_shown() -> None:
    summary = set_summary(cascade().spec, rows(60, references=19))
    assert summary["stages"][0]["judgeBias"] is None
    assert "Judge bias" not in shown(summary)


@pytest.mark.parametrize(
    ("floor", "count", "said"),
    [
        (
            "0.80",
            1500,
            "large enough for minQuality 0.8 at confidence 0.95: the best lower bound on the mean quality is 0.",
        ),
        ("0.89", 300, "too small for minQuality 0.89 at confidence 0.95: "),
        ("0.99", 300, "no set is large enough for minQuality 0.99 at confidence 0.95: "),
        (
            "0.80",
            30,
            "planning refuses this set as it is: calibration set: it has 30 usable rows; planning needs at least",
        ),
    ],
)
def test_the_size_is_judged_by_the_target(floor: str, count: int, said: str) -> None:
    summary = set_summary(cascade(objective={"minQuality": floor}).spec, rows(count))
    words = target_words(summary["target"], count)
    assert words.startswith(said)
    if "too small" in said:
        assert f"about {summary['target']['requestsNeeded']:,} requests would do, it has {count}" in words


def test_a_mean_that_may_be_on_either_side_of_the_floor_is_no_verdict() -> None:
    target = {"minQuality": 0.9, "confidence": 0.95, "mean": 0.89, "lowerBound": 0.8, "enough": False}
    words = target_words(target | {"requestsNeeded": None, "inDoubt": True}, 300)
    assert words.startswith("too small to tell for minQuality 0.9")
    assert words.endswith("1,200 requests would halve the error, it has 300")


def test_a_mean_at_the_floor_needs_more_than_can_be_made() -> None:
    target = {"minQuality": 0.9, "confidence": 0.95, "mean": 0.9001, "lowerBound": 0.8, "enough": False}
    words = target_words(target | {"requestsNeeded": 300_000_000}, 300)
    assert words.startswith("no set of a size that can be made is large enough")
