"""What the status says of the engines' own metrics: whether they can be had, and what they have taught."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from datetime import timedelta
from itertools import product
from typing import Any

from cascadia_api.errors import InputError
from cascadia_api.names import REPLAN_ANNOTATION
from cascadia_api.status import LearntCorrection
from cascadia_operator.decide.replicas import ready_leaders
from cascadia_operator.learning.learnt import Lesson
from cascadia_operator.report.findings import Findings
from cascadia_solver.catalogue.manifest import gpu_of, model_of
from cascadia_solver.replica_memory import Shape

__all__ = ["metrics_available", "stated_corrections"]

_MOVED = 0.05
"""Share by which a figure has to move before the status says another: it changes with every window."""
_NOTICED = 0.2
"""Share by which decoding has to differ from what the plan in force was made with before that is said."""
_QUIET = timedelta(hours=6)
_MOST_STATED = 32
_NAMED = 3


def metrics_available(findings: Findings) -> tuple[str, str, str, str]:
    """The condition ``MetricsAvailable``: type, status, reason and message."""
    status, reason, message = _metrics(findings)
    return "MetricsAvailable", status, reason, message


def _metrics(findings: Findings) -> tuple[str, str, str]:
    learning, learnt = findings.learning, findings.world.learnt
    if not learning.asks:
        return "Unknown", "NotCollected", "this operator does not ask for the engines' metrics: its flags say so"
    if learning.problem:
        return "Unknown", "NotKept", f"nothing is learnt from the engines' metrics: {learning.problem}"
    ready = {pod["metadata"]["name"] for pod in ready_leaders(findings.world.pods)}
    told = [pod for pod in learnt.told if pod in ready]
    silent = {pod: why for pod, why in learnt.silent.items() if pod in ready}
    if not told and not silent:
        return "Unknown", "NotReadYet", "no engine has been ready for long enough to look at its metrics"
    named = "; ".join(f"{pod}: {why}" for pod, why in sorted(silent.items())[:_NAMED])
    if not told:
        kept = "; what was learnt stays" if learning.lessons else ""
        return "False", "EnginesSilent", f"no engine's metrics can be read{kept}: {named}"
    parts = [f"metrics of {len(told)} engines are read"]
    if silent:
        parts.append(f"of {len(silent)} they cannot be: {named}")
    latest = max((lesson.at for lesson in learnt.lessons.values()), default=None)
    if latest is None:
        parts.append("nothing is learnt yet: the engines have had too little work, or too much")
    elif findings.world.now - latest > _QUIET:
        parts.append("for more than 6 hours the engines have had too little work to learn from, or too much")
    differing = [each for each in stated_corrections(findings) if _differs(each)]
    parts += [
        f"{each.model} on {each.shape} of {each.gpu} decodes {each.decode:g} times as long as the cost model says, the "
        f"plan in force was made with {each.planned_with:g}"
        for each in differing[:_NAMED]
    ]
    if differing:
        parts.append(f"to plan again with that, give the annotation {REPLAN_ANNOTATION} another value")
    return "True", "EnginesDiffer" if differing else "Collected", "; ".join(parts)


def stated_corrections(findings: Findings) -> list[LearntCorrection]:
    """What the next plan is made with; figures stay as the status has them until they have moved."""
    before = findings.world.status.get("corrections") or ()
    planned = _planned(findings)
    return [_stated(lesson, before, planned) for lesson in findings.learning.lessons[:_MOST_STATED]]


def _planned(findings: Findings) -> dict[tuple[str, str, str], float]:
    """The factors of decoding that the plan to go for was made with, of each kind of its replicas; empty if unknown."""
    stored, spec = findings.choice.stored, findings.world.cascade.spec
    if stored is None or stored.corrections is None or not findings.learning.lessons:
        return {}
    factors = {key[:3]: factor for key, factor in stored.corrections.items()}
    found: dict[tuple[str, str, str], float] = {}
    for stage in stored.plan.live_stages:
        for model, pool in product(spec.models, spec.gpus.pools):
            if (model.name, pool.name) != (stage.name, stage.pool):
                continue
            with contextlib.suppress(InputError):  # nothing is learnt of a model or GPU that is not known
                named = model_of(model).name, gpu_of(pool).name
                shapes = [Shape(group.tensor_parallel, group.pipeline_parallel) for group in stage.replicas]
                found |= {(*named, str(shape)): factors.get((*named, str(shape)), 1.0) for shape in shapes}
    return found


def _stated(
    lesson: Lesson, before: Iterable[Mapping[str, Any]], planned: Mapping[tuple[str, str, str], float]
) -> LearntCorrection:
    model, gpu, shape, version = lesson.key
    mine = {"model": model, "gpu": gpu, "shape": shape, "engineVersion": version}
    old: Mapping[str, Any] = next((each for each in before if mine.items() <= each.items()), {})
    prefill = _standing(old.get("prefill"), lesson.correction.factor("prefill"))
    decode = _standing(old.get("decode"), lesson.correction.factor("decode"))
    return LearntCorrection(
        model=model,
        gpu=gpu,
        shape=shape,
        engine_version=version,
        prefill=prefill,
        decode=decode,
        planned_with=planned.get((model, gpu, shape)),
    )


def _differs(stated: LearntCorrection) -> bool:
    planned = stated.planned_with
    return planned is not None and abs(math.log(stated.decode / planned)) > math.log1p(_NOTICED)


def _standing(old: Any, factor: float) -> float:
    if old is not None and abs(math.log(factor / float(old))) <= math.log1p(_MOVED):
        return float(old)
    return round(factor, 2)
