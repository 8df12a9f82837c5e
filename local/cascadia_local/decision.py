"""Whether a new plan replaces the one in force: a pure function of figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cascadia_api.cascade import CascadeDeploymentSpec
from cascadia_api.plan import Plan
from cascadia_local.planning_messages import Expectation

__all__ = ["Decision", "decide"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What is done with a new plan.

    Attributes:
        verdict: As in `CascadeStatus.lastReplan.decision`.
        reason: Why, with the figures.
    """

    verdict: Literal["Applied", "Proposed", "Skipped"]
    reason: str


def decide(spec: CascadeDeploymentSpec, in_force: Plan, expected: Expectation, new: Plan) -> Decision:
    """Decide.

    Args:
        spec: The manifest's.
        in_force: The plan in force.
        expected: What it would do under the demand that the new plan is for.
        new: The new plan.
    """
    if (new.thresholds, _placement(new)) == (in_force.thresholds, _placement(in_force)):
        return Decision("Skipped", "the best plan for this traffic is the one in force")
    broken = _broken(spec, expected, new)
    reason = f"the plan in force would {' and '.join(broken)}" if broken else _better(spec, in_force, expected, new)
    if reason is None:
        percent = spec.replanning.min_improvement_percent
        figures = _figures(spec, in_force, expected, new)
        return Decision("Skipped", f"{figures}: less than minImprovementPercent {percent} better")
    return Decision("Applied" if spec.replanning.mode == "Automatic" else "Proposed", reason)


def _placement(plan: Plan) -> list[tuple[str, str | None, list[tuple[int, int, int]]]]:
    return [
        (stage.name, stage.pool, [(g.tensor_parallel, g.pipeline_parallel, g.count) for g in stage.replicas])
        for stage in plan.live_stages
    ]


def _broken(spec: CascadeDeploymentSpec, expected: Expectation, new: Plan) -> list[str]:
    """What the plan in force would do that it must not.

    Its quality under the new demand is as uncertain as the new plan's: both are read off the same
    calibration set with the same weights. Of the latency targets, those of end-to-end latency count.
    """
    found = []
    if expected.saturated:
        found.append(f"not carry the load of {', '.join(expected.saturated)}")
    for target in spec.objective.targets or ():
        figure = expected.end_to_end_ms[target.percentile]
        if target.metric == "EndToEnd" and figure > target.milliseconds:
            found.append(
                f"have a p{target.percentile} of {figure / 1000:.1f} s, above {target.milliseconds / 1000:g} s"
            )
    floor = float(spec.objective.min_quality)
    doubt = 0.0 if new.quality.lower_bound is None else new.quality.mean - new.quality.lower_bound
    if expected.quality - doubt < floor:
        bound = f" (its bound {expected.quality - doubt:.3f})" if doubt else ""
        found.append(f"have a quality of {expected.quality:.3f}{bound}, below minQuality {floor:g}")
    return found


def _better(spec: CascadeDeploymentSpec, in_force: Plan, expected: Expectation, new: Plan) -> str | None:
    old_figure, new_figure = _minimised(spec, in_force, expected, new)
    if new_figure <= old_figure * (1 - spec.replanning.min_improvement_percent / 100):
        return _figures(spec, in_force, expected, new)
    return None


def _minimised(spec: CascadeDeploymentSpec, in_force: Plan, expected: Expectation, new: Plan) -> tuple[float, float]:
    if spec.objective.minimize == "Cost":
        return in_force.cost_per_hour or 0.0, new.cost_per_hour or 0.0
    figures = {50: new.latency.p50_ms, 90: new.latency.p90_ms, 95: new.latency.p95_ms, 99: new.latency.p99_ms}
    percent = spec.objective.percentile
    return expected.end_to_end_ms[percent], figures[percent]


def _figures(spec: CascadeDeploymentSpec, in_force: Plan, expected: Expectation, new: Plan) -> str:
    old_figure, new_figure = _minimised(spec, in_force, expected, new)
    if spec.objective.minimize == "Cost":
        return f"cost {new_figure:.2f} an hour instead of {old_figure:.2f}"
    return f"p{spec.objective.percentile} {new_figure / 1000:.1f} s instead of {old_figure / 1000:.1f} s"
