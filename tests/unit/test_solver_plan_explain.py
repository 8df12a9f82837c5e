"""Why a plan is as it is, in words and numbers: each number is that of a plan made for it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from cascadia_api.errors import InfeasibleError, PlanningTimeoutError
from cascadia_api.plan import Plan
from cascadia_solver.explain import explain
from cascadia_solver.margins import binding, quality_prices, runner_up, what_gpus_do
from cascadia_solver.neighbours import neighbours
from cascadia_solver.planner import PlanningInputs, plan_cascade
from tests.support.planning import cascade, probit_table

PAIR = ("small", "medium")
TABLE = probit_table(600, 7, accuracies=(0.72, 0.86), models=PAIR)


def inputs_for(**objective: Any) -> PlanningInputs:
    return PlanningInputs(cascade(models=PAIR, gpus=12, rate="12", objective={"minQuality": "0.78"} | objective), TABLE)


def seconds(plan: Plan) -> str:
    return f"{plan.latency.p95_ms / 1e3:.{1 if plan.latency.p95_ms >= 1e4 else 2}f} s"


def test_every_number_of_the_explanation_is_what_planning_gives() -> None:
    inputs = inputs_for()
    plan = plan_cascade(inputs)
    told: list[tuple[str, float]] = []
    said = explain(plan, inputs, lambda what, share: told.append((what, share)))
    text = "\n".join(said)
    assert [share for _, share in told] == sorted(share for _, share in told)
    assert told[0][0] == "the quality floor of 0.78 at 0.76"
    assert "against a floor of 0.78" in text
    for stage in plan.live_stages:
        assert f"{stage.name} sees" in text
    assert "Not medium alone: its p95 is" in text
    lower, higher = (plan_cascade(inputs_for(minQuality=floor)) for floor in ("0.77", "0.79"))
    assert f"The quality floor of 0.78 binds: at 0.77, p95 {seconds(lower)} (" in text
    prices = next(sentence for sentence in said if sentence.startswith("What quality costs in p95, against 0.78 at"))
    assert f"against 0.78 at {seconds(plan)}: " in prices
    assert f"0.77 {seconds(lower)} (" in prices
    assert f"0.79 {seconds(higher)} (" in prices
    fewer = plan_cascade(replace(inputs, available_gpus={"h100": plan.gpus - 1}))
    assert f"One GPU fewer: p95 {seconds(fewer)} (" in text
    assert "One GPU more: " in text
    assert "8 GPUs more: p95 " in text
    second = re.search(r"The runner-up has a p95 of (?:about )?([\d.]+) s", text)
    assert second is not None
    assert plan.latency.p95_ms / 1e3 - 0.01 <= float(second[1]) <= fewer.latency.p95_ms / 1e3 + 0.01


def test_any_target_can_bind_and_the_runner_up_keeps_it() -> None:
    """Points of the frontier do not say whether they keep a target of the first token: none of them is second."""
    targets = [{"metric": "TimeToFirstToken", "percentile": 50, "milliseconds": 1000}]
    inputs = inputs_for(minQuality="0.76", minimize="Cost", targets=targets)
    plan = plan_cascade(inputs)

    def without_targets(changed: PlanningInputs) -> Plan:
        if changed.cascade.spec.objective.targets:
            raise InfeasibleError("LatencyOutOfReach", "not planned here", nearest="a day")
        return plan_cascade(changed)

    around = neighbours(plan, inputs, without_targets)
    free = next(of.plan for of in around if of.plan is not None)
    assert free.gpus < plan.gpus
    (only,) = binding(plan, inputs, around)
    assert only.startswith("The target of 1000 ms on TimeToFirstToken p50 binds: without it, p95 ")
    assert f" for {free.cost_per_hour:.2f} an hour (" in only
    assert any(point.cost_per_hour == free.cost_per_hour for point in plan.frontier), "cheaper, and too slow"
    assert runner_up(plan, inputs, around) is None
    fewer = "One GPU fewer: no plan is feasible (LatencyOutOfReach; nearest feasible: a day)."
    assert fewer in what_gpus_do(plan, inputs, around)
    prices = quality_prices(plan, inputs, around)
    assert prices is not None
    assert prices.endswith("0.77 cannot be had."), "what lies above is not asked for"


def test_replicas_that_have_to_be_can_bind() -> None:
    manifest = cascade(models=PAIR, rate="2", objective={"minQuality": "0.5", "minimize": "Cost"},
                       model_fields={"small": {"minReplicas": 2}})  # fmt: skip
    inputs = PlanningInputs(manifest, TABLE)
    plan = plan_cascade(inputs)
    (only,) = binding(plan, inputs, neighbours(plan, inputs, plan_cascade))
    assert only.startswith("The minReplicas of small binds: without it, p95 ")
    assert only.endswith(" for 2.50 an hour (-50%) on 1 GPU.")


def test_what_is_not_known_is_told_and_loses_nothing_of_the_explanation() -> None:
    inputs = inputs_for()
    plan = plan_cascade(inputs)

    def late(_: PlanningInputs) -> Plan:
        raise PlanningTimeoutError("no plan was found within 60 s")

    around = neighbours(plan, inputs, late)
    assert "One GPU fewer: not known: no plan was found within 60 s." in what_gpus_do(plan, inputs, around)
    assert binding(plan, inputs, around) == ["No limit binds: none makes a better plan if it is moved a little."]
