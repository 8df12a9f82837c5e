"""Curves for the parts of a Composite: fitted, printed, and the set rescored by them."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_api.cascade import CascadeDeployment
from cascadia_api.errors import InputError
from cascadia_cli.calibrating.fitting import fit
from cascadia_cli.calibrating.scoring import required_ids
from cascadia_solver.isotonic import monotone_curve
from tests.support.manifests import cascade_manifest

few = settings(max_examples=60, deadline=None)


@few
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=60))
def test_a_curve_is_monotone_keeps_the_mean_and_has_few_points(answers: list[tuple[float, float]]) -> None:
    scores, worths = zip(*answers, strict=True)
    curve = monotone_curve(scores, worths)
    xs, ys = zip(*curve, strict=True)
    assert len(curve) <= 16
    assert all(a < b for a, b in pairwise(xs))
    assert all(a <= b for a, b in pairwise(ys))
    assert min(worths) - 1e-9 <= ys[0] <= ys[-1] <= max(worths) + 1e-9


def test_a_curve_finds_the_worth_of_each_score() -> None:
    drawn = random.Random(1)
    scores = [drawn.random() for _ in range(8000)]
    worths = [float(drawn.random() < score**2) for score in scores]
    for score, worth in monotone_curve(scores, worths):
        assert worth == pytest.approx(score**2, abs=0.05)
    assert monotone_curve([0, 1, 0, 1], [0, 1, 0.5, 0.5]) == [(0.0, 0.25), (1.0, 0.75)]
    assert monotone_curve([0, 1], [1, 0]) == [(0.0, 0.5), (1.0, 0.5)]


COMPOSITE = {
    "type": "Composite",
    "combine": "All",
    "parts": [
        {"type": "Validator", "validator": {"pattern": "a"}},
        {"type": "LogProb"},
        {"type": "Http", "id": "mine", "http": {"url": "http://127.0.0.1:9/score"}},
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "chat.yaml").write_text(yaml.safe_dump(cascade_manifest(routing={"scorer": COMPOSITE})))
    routing = CascadeDeployment.model_validate(cascade_manifest(routing={"scorer": COMPOSITE})).spec.routing
    validator = next(each for each in required_ids(routing) if each.startswith("validator-"))
    drawn = random.Random(2)
    lines = []
    for number in range(200):
        sure, mine = drawn.random(), drawn.random()
        scores = {"logprob-mean": sure, "mine": mine, validator: float(number % 4 > 0), routing.scorer_id: 0.0}
        small = {"scores": scores, "quality": float(drawn.random() < sure), "outputTokens": 10}
        answers = {"small": small, "large": small | {"quality": 1.0}}
        lines.append({"id": f"q{number}", "inputTokens": 5, "answers": answers, "judge": "Reference", "prompt": "x"})
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_a_composites_parts_are_fitted_and_the_set_is_rescored(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = folder / "new.jsonl"
    fit(str(folder / "chat.yaml"), calibration=str(folder / "set.jsonl"), target=str(target))
    printed = yaml.safe_load(capsys.readouterr().out)["scorer"]
    check, sure, mine = printed["parts"]
    assert "calibration" not in check  # a failed check is to decide alone
    assert (sure["type"], mine["id"]) == ("LogProb", "mine")
    routing = CascadeDeployment.model_validate(cascade_manifest(routing={"scorer": printed})).spec.routing
    curves = [
        ([float(p["score"]) for p in part["calibration"]], [float(p["worth"]) for p in part["calibration"]])
        for part in (sure, mine)
    ]
    for number, line in enumerate(target.read_text().splitlines()):
        scores = json.loads(line)["answers"]["small"]["scores"]
        values = [np.interp(scores[name], *curve) for name, curve in zip(("logprob-mean", "mine"), curves, strict=True)]
        expected = float(np.prod(values)) * (number % 4 > 0)
        assert scores[routing.scorer_id] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("scorer", "drop", "message"),
    [({"type": "LogProb"}, None, "LogProb needs no curve"), (COMPOSITE, "mine", "have no score of mine")],
)
def test_what_cannot_be_fitted_is_named(folder: Path, scorer: Any, drop: str | None, message: str) -> None:
    (folder / "chat.yaml").write_text(yaml.safe_dump(cascade_manifest(routing={"scorer": scorer})))
    if drop is not None:
        text = (folder / "set.jsonl").read_text()
        (folder / "set.jsonl").write_text(text.replace(f'"{drop}"', '"other"'))
    with pytest.raises(InputError, match=message):
        fit(str(folder / "chat.yaml"), calibration=str(folder / "set.jsonl"), target=None)
