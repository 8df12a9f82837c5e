"""Bad input to planning: each kind has a message of its own, with the numbers and what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from cascadia_api.errors import InfeasibleError, InputError
from cascadia_api.load import parse_cascade
from cascadia_solver.calibration import parse_calibration
from cascadia_solver.inputs import PlanningInputs
from cascadia_solver.planner import plan_cascade
from cascadia_solver.trace import parse_trace
from tests.support.planning import MODELS, cascade, probit_table

TABLE = probit_table(400, 7)
TRACE_HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens"


def manifest(**changes: Any) -> Callable[[], object]:
    """Read the example with fields changed: `a__0__b=1` sets spec.a[0].b, None removes it."""
    document = cascade().model_dump(mode="json", by_alias=True, exclude_none=True)
    for path, value in changes.items():
        *parents, last = path.split("__")
        place: Any = document["spec"]
        for key in parents:
            place = place[int(key)] if key.isdigit() else place[key]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return lambda: parse_cascade(document)


def planned(calibration: object = TABLE, rate: float | None = None, **changes: Any) -> Callable[[], object]:
    inputs = PlanningInputs(cascade(**changes), calibration, requests_per_second=rate)  # type: ignore[arg-type]
    return lambda: plan_cascade(inputs)


def calibrated(rows: int, **answer: Any) -> Callable[[], object]:
    """Read a set whose small model's answers have fields changed."""
    lines = []
    for k in range(rows):
        given = {"scores": {"logprob-mean": k / rows}, "quality": float(k % 2), "outputTokens": 5}
        answers = {name: dict(given) for name in MODELS} | {"small": given | answer}
        lines.append(json.dumps({"id": str(k), "inputTokens": 9, "answers": answers}))
    return lambda: parse_calibration(lines, models=MODELS, scorer="logprob-mean")


CASES: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "more replicas than GPUs": (
        planned(model_fields={"medium": {"minReplicas": 20}}),
        InfeasibleError,
        r"need at least 8\d GPUs of pool h100, has 32 \(.*80 for medium with minReplicas 20",
    ),
    "more stages than escalations": (
        planned(model_fields={name: {"minReplicas": 1} for name in MODELS}, routing={"maxEscalations": 1}),
        InputError,
        r"maxEscalations: is 1, which lets a request visit 2 stages, but 3 models have minReplicas above 0: raise it",
    ),
    "a lower floor under overload that is higher": (
        manifest(objective__minQualityOverloaded="0.9"), InputError, "Overloaded must not be above minQuality",
    ),
    "lengths that no distribution has": (
        manifest(workload__inputTokens={"mean": 100, "p95": 50}), InputError, "p95 must lie between the mean and 3.8",
    ),
    "a model that fits on no shape": (
        planned(model_fields={"large": {
            "minReplicas": 1, "parallelism": {"maxTensorParallel": 2, "maxPipelineParallel": 1}}}),
        InfeasibleError,
        r"405B-Instruct in fp8 fits on no shape of at most 32 x H100.*220\.\d GB needed per GPU.* use more GPUs",
    ),
    "quality out of reach": (
        planned(objective={"minQuality": "1"}),
        InfeasibleError,
        r"minQuality 1 is out of reach at confidence 0\.95: the best lower bound is 0\.\d+ where the mean is 0\.\d+",
    ),
    "a target out of reach": (
        planned(objective={"targets": [{"metric": "EndToEnd", "percentile": 50, "milliseconds": 5}]}),
        InfeasibleError,
        r"EndToEnd p50 ms 5 is asked, \d+ is the best found",
    ),
    "an empty set": (calibrated(0), InputError, "it is empty; write one JSON object or table row a request"),
    "a small set": (calibrated(9), InputError, "9 usable rows; planning needs at least 50"),
    "a set of constant scores": (
        calibrated(60, scores={"logprob-mean": 0.5}), InputError, "every score of model 'small' .* is 0.5; a constant",
    ),
    "a set of constant worth": (
        lambda: parse_calibration(
            [json.dumps({"id": str(k), "inputTokens": 9, "answers": {
                "a": {"scores": {"logprob-mean": k}, "quality": 1, "outputTokens": 5}}}) for k in range(60)],
            models=["a"], scorer="logprob-mean"),
        InputError,
        "every answer of every model is worth 1 on all 60 rows; .* check the judge",
    ),
    "a set without the scorer": (
        lambda: parse_calibration(
            [json.dumps({"id": str(k), "inputTokens": 9, "answers": {
                "a": {"scores": {"judge": k}, "quality": 1, "outputTokens": 5}}}) for k in range(60)],
            models=["a", "b"], scorer="logprob-mean"),
        InputError,
        "it has no scores of 'logprob-mean', only of judge; make it with the scorer of spec.routing.scorer",
    ),
    "NaN scores": (
        calibrated(60, scores={"logprob-mean": float("nan")}),
        InputError,
        "0 usable rows; .* 60 rows were skipped .* line 1: NaN is not a number in JSON: leave a score out",
    ),
    "a set of other models": (
        planned(models=("small", "large")), InputError, "it is of the models small, medium, large, the manifest",
    ),
    "a negative rate in the manifest": (
        manifest(workload__requestsPerSecond="-3"),
        InputError,
        "spec.workload.requestsPerSecond: '-3' is not a decimal number of at least 0",
    ),
    "a rate of too many digits": (
        manifest(workload__requestsPerSecond="1000000000"),
        InputError,
        "requestsPerSecond: '1000000000' has too many digits: use at most 9 before the point and 6 after it",
    ),
    "no rate in the manifest": (
        manifest(workload__requestsPerSecond="0.0"), InputError, "requestsPerSecond must be above 0",
    ),
    "a negative rate": (planned(rate=-2.0), InputError, "requests per second are -2.0; they must be a number above 0"),
    "a rate that is no number": (planned(rate=float("nan")), InputError, "requests per second are nan"),
    "an endless rate": (planned(rate=float("inf")), InputError, "requests per second are inf"),
    "negative lengths in a trace": (
        lambda: parse_trace([TRACE_HEAD, "0,-5,6", "1000,-5,6"]),
        InputError,
        "it has 0 usable rows; .* line 2: contexttokens is '-5'; it must lie between 1 and",
    ),
    "a trace without a rate": (
        lambda: parse_trace([TRACE_HEAD, "7,5,6", "7,5,6"]), InputError, "all requests have the same timestamp",
    ),
    "cost without prices": (
        manifest(objective__minimize="Cost", gpus__pools__0__pricePerGpuHour=None),
        InputError,
        "minimize: Cost needs pricePerGpuHour on every pool",
    ),
    "no GPU": (
        lambda: plan_cascade(PlanningInputs(cascade(), TABLE, available_gpus={"h100": 0})),
        InfeasibleError,
        "no GPU is available: pool h100 has 0",
    ),
    "more than all requests": (
        manifest(workload__needs={"tools": "1.5"}), InputError, "shares of requests must lie between 0 and 1",
    ),
}  # fmt: skip


@cache
def refusal(name: str) -> Exception:
    with pytest.raises(CASES[name][1]) as caught:
        CASES[name][0]()
    return caught.value


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_in_its_own_words_with_numbers(name: str) -> None:
    said = str(refusal(name))
    assert re.search(CASES[name][2], said), said


def test_no_two_kinds_share_a_message() -> None:
    assert len({str(refusal(name)) for name in CASES}) == len(CASES)


def test_worth_that_only_one_model_has_constant_is_fine() -> None:
    """As of `AgreementWithLargest`, by which the largest model's own answers are all worth 1."""
    sure = replace(TABLE, quality=np.column_stack([TABLE.quality[:, :2], np.ones(len(TABLE))]))
    assert plan_cascade(PlanningInputs(cascade(objective={"minQuality": "0.8"}), sure)).live_stages
