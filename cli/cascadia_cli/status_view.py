"""A cascade in a cluster as a person reads it: conditions, stages, plan, the last re-plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cascadia_api.status import CascadeStatus, PlanSummary
from cascadia_cli.figures import duration, money, percent

__all__ = ["status_view"]

_GOOD_WHEN_FALSE = frozenset({"Transitioning", "Reconciling", "Stalled"})


def status_view(cascade: Mapping[str, Any]) -> RenderableType:
    """Return what `kubectl cascadia status` prints, of a CascadeDeployment as the API server returns it."""
    name, namespace = cascade["metadata"]["name"], cascade["metadata"].get("namespace", "default")
    title = Text.assemble((name, "bold cyan"), f" in namespace {namespace}")
    if not cascade.get("status"):
        return Group(title, Text("no status yet: is the operator running?", style="yellow"))
    status = CascadeStatus.model_validate(cascade["status"])
    parts: list[RenderableType] = [title]
    if status.endpoint:
        parts.append(Text(f"endpoint {status.endpoint}"))
    generation = cascade["metadata"].get("generation")
    if status.observed_generation != generation:
        parts.append(Text(f"the operator has not seen generation {generation} of the spec yet", style="yellow"))
    parts.append(_conditions(status))
    if status.plan is not None:
        parts += [_plan_line(status.plan), _stages(status, status.plan)]
    parts += [
        Text(
            f"{learnt.model} on {learnt.shape} of {learnt.gpu} ({learnt.engine_version}): prompts take "
            f"{learnt.prefill:g} and decoding {learnt.decode:g} times as long as the cost model says"
            + ("" if learnt.planned_with is None else f" (planned with {learnt.planned_with:g})")
        )
        for learnt in status.corrections or ()
    ]
    if status.proposed_plan:
        parts.append(Text(f"proposed: {status.proposed_plan} (kubectl cascadia approve {status.proposed_plan})"))
    if status.last_replan is not None:
        last = status.last_replan
        parts.append(Text(f"last re-plan {last.time}: {last.trigger}, {last.decision.lower()}: {last.reason}"))
    return Group(*parts)


def _conditions(status: CascadeStatus) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("Condition", "", "Reason", "Message"):
        table.add_column(header, overflow="fold")
    for condition in status.conditions or ():
        good = (condition.status == "False") == (condition.type in _GOOD_WHEN_FALSE)
        style = "dim" if condition.status == "Unknown" else "green" if good else "yellow"
        table.add_row(condition.type, Text(condition.status, style=style), condition.reason, condition.message)
    return table


def _plan_line(plan: PlanSummary) -> Text:
    bound = "" if plan.quality_lower_bound is None else f" (at least {plan.quality_lower_bound:.3f})"
    cost = "" if plan.cost_per_hour is None else f", {money(plan.cost_per_hour)} an hour"
    return Text.assemble(
        "plan ",
        (plan.name, "bold"),
        f": predicted quality {plan.quality:.3f}{bound}, p95 {duration(plan.p95_ms)}{cost}",
    )


def _stages(status: CascadeStatus, plan: PlanSummary) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("Stage", "Ready", "GPUs", "Pool", "Shape", "Reach", "Threshold"):
        table.add_column(header, justify="right" if header in ("Ready", "GPUs", "Reach") else "left")
    running = {stage.name: stage for stage in status.stages or ()}
    for stage in plan.stages:
        seen = running.get(stage.name)
        shape = f"TP{stage.tensor_parallel} PP{stage.pipeline_parallel}" if stage.tensor_parallel else "–"
        table.add_row(
            stage.name,
            f"{seen.ready}/{seen.desired}" if seen else "–",
            str(stage.gpus),
            stage.pool or "–",
            shape,
            percent(stage.reach),
            "–" if not stage.gpus else "every answer" if stage.threshold is None else f"≥ {stage.threshold:.3f}",
        )
    return table
