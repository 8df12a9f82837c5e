"""What a calibration set says: how good each stage is, how well its score tells, whether the set is large enough."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from cascadia_api.errors import InputError
from cascadia_cli.figures import percent

if TYPE_CHECKING:
    from rich.table import Table

    from cascadia_api.cascade import CascadeDeploymentSpec
    from cascadia_cli.calibrating.record import JudgedRow
    from cascadia_solver.calibration_summary import TargetSummary

__all__ = ["set_summary", "stage_table", "target_words"]

_MOST_NEEDED = 1_000_000
"""A larger set than this is not worth naming: the mean is at the floor."""
_LEAST_BIAS_ROWS = 20


def set_summary(spec: CascadeDeploymentSpec, rows: Sequence[JudgedRow]) -> dict[str, Any]:
    """The summary as JSON.

    Args:
        spec: The manifest's.
        rows: At least one, complete for the manifest's models.
    """
    from cascadia_solver.calibration_summary import mean_of, score_auroc

    scorer = spec.routing.scorer_id
    stages = []
    for model in spec.models:
        answers = [row.answers[model.name] for row in rows]
        quality = np.array([answer.quality for answer in answers])
        scores = np.array([answer.scores[scorer] for answer in answers])
        mean = mean_of(quality)
        stages.append(
            {
                "name": model.name,
                "quality": {"mean": mean.value, "standardError": mean.standard_error},
                "auroc": score_auroc(scores, quality),
                "meanScore": float(scores.mean()),
                "meanOutputTokens": float(np.mean([answer.output_tokens for answer in answers])),
                "judgeBias": _judge_bias(model.name, rows),
            }
        )
    return {
        "schemaVersion": 1,
        "requests": len(rows),
        "judge": rows[0].judge,
        "scorer": scorer,
        "stages": stages,
        "target": _target(spec, rows),
    }


def target_words(target: Mapping[str, Any], requests: int) -> str:
    """One sentence on whether the set is large enough."""
    if "refused" in target:
        return f"planning refuses this set as it is: {target['refused']}"
    floor = f"minQuality {target['minQuality']:g} at confidence {target['confidence']:g}"
    bound = f"the best lower bound on the mean quality is {target['lowerBound']:.3f} (mean {target['mean']:.3f})"
    if target["enough"]:
        return f"large enough for {floor}: {bound}"
    needed = target["requestsNeeded"]
    if needed is None and target["inDoubt"]:
        return (
            f"too small to tell for {floor}: {bound}, within its error of the floor; {4 * requests:,} requests would "
            f"halve the error, it has {requests:,}"
        )
    if needed is None:
        return f"no set is large enough for {floor}: {bound}; add a better model or scorer, or lower minQuality"
    if needed > _MOST_NEEDED:
        return f"no set of a size that can be made is large enough for {floor}: {bound}, which is too near the floor"
    return f"too small for {floor}: {bound}; about {needed:,} requests would do, it has {requests:,}"


def stage_table(summary: Mapping[str, Any]) -> Table:
    """The stages as a table for a terminal: means with their standard errors."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    biased = any(stage["judgeBias"] for stage in summary["stages"])
    table.add_column("Stage")
    for header in ("Quality", "AUROC", "Score", "Tokens", *(["Judge bias", "Agrees"] if biased else [])):
        table.add_column(header, justify="right", no_wrap=True)
    for stage in summary["stages"]:
        cells = [
            _plus_minus(stage["quality"]),
            "–" if stage["auroc"] is None else f"{stage['auroc']:.3f}",
            f"{stage['meanScore']:.3f}",
            f"{stage['meanOutputTokens']:,.0f}",
        ]
        if biased:
            bias = stage["judgeBias"]
            cells += [_plus_minus(bias, "+"), percent(bias["agreement"])] if bias else ["–", "–"]
        table.add_row(stage["name"], *cells)
    return table


def _judge_bias(stage: str, rows: Sequence[JudgedRow]) -> dict[str, float | None] | None:
    """How far the judge is from the references on the prompts that have them; None for too few of those."""
    from cascadia_solver.calibration_summary import mean_of

    pairs = [(row.answers[stage].quality, row.reference[stage]) for row in rows if row.reference]
    if len(pairs) < _LEAST_BIAS_ROWS:
        return None
    judged, right = np.array(pairs).T
    bias = mean_of(judged - right)
    return {
        "prompts": len(pairs),
        "mean": bias.value,
        "standardError": bias.standard_error,
        "agreement": float(((judged >= 0.5) == (right >= 0.5)).mean()),
    }


def _target(spec: CascadeDeploymentSpec, rows: Sequence[JudgedRow]) -> dict[str, Any]:
    from cascadia_solver.calibration import parse_calibration
    from cascadia_solver.calibration_summary import target_summary

    objective = spec.objective
    names = [model.name for model in spec.models]
    try:
        table, _ = parse_calibration(
            (msgspec.json.encode(row) for row in rows), models=names, scorer=spec.routing.scorer_id
        )
        found: TargetSummary = target_summary(spec, table)
    except InputError as error:
        return {
            "minQuality": float(objective.min_quality),
            "confidence": float(objective.confidence),
            "refused": str(error),
        }
    return {
        "minQuality": found.floor,
        "confidence": found.confidence,
        "mean": found.mean,
        "lowerBound": found.bound,
        "enough": found.enough,
        "requestsNeeded": None if found.enough else found.needed,
        "inDoubt": not found.enough and found.in_doubt,
    }


def _plus_minus(figure: Mapping[str, float | None], sign: str = "") -> str:
    """``0.842 ± 0.011``."""
    mean, error = figure["mean"], figure["standardError"]
    spread = "" if error is None or not math.isfinite(error) else f" ± {error:.3f}"
    return f"{mean:{sign}.3f}{spread}"
