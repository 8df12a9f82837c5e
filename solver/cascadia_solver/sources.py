"""Which cost source to plan or predict with: its kind, whose engine, and what running ones have taught."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib.util import find_spec
from typing import NamedTuple

from cascadia_api.cascade import Planning
from cascadia_api.errors import InputError, Problem
from cascadia_solver.catalogue.gpus import GpuFacts
from cascadia_solver.catalogue.models import ModelFacts
from cascadia_solver.factors import DEFAULT_ENGINE, ENGINES
from cascadia_solver.live_correction import LiveCorrections, LiveSource
from cascadia_solver.measured_tables import MeasuredTables
from cascadia_solver.roofline import CostSource, Roofline, Shape

__all__ = [
    "KINDS",
    "Certainty",
    "EngineVersion",
    "certainty",
    "cost_source",
    "engine_version",
    "parse_corrections",
    "source_of",
    "with_learnt",
]

KINDS = ("roofline", "measured")


class EngineVersion(NamedTuple):
    """An engine.

    Attributes:
        engine: One of `ENGINES`.
        version: Its version; empty where it does not matter.
    """

    engine: str = DEFAULT_ENGINE
    version: str = ""

    def __str__(self) -> str:
        return f"{self.engine} {self.version}".rstrip()


def engine_version(text: str) -> EngineVersion:
    """Read ``ENGINE`` or ``ENGINE:VERSION``.

    Raises:
        InputError: Names the engines there are.
    """
    engine, colon, version = text.partition(":")
    if engine not in ENGINES or (colon and not version):
        raise InputError(f"{text!r} is no engine: use {', '.join(ENGINES)}, with or without a version: sglang:0.5.9")
    return EngineVersion(engine, version)


def cost_source(
    kind: str = KINDS[0], engine: EngineVersion | None = None, corrections: LiveCorrections | None = None
) -> CostSource:
    """The source of that kind, corrected by what was learnt.

    Args:
        kind: ``roofline`` or ``measured``.
        engine: Whose step times; SGLang's by default. Corrections are of one version: the only one learnt,
            where none is named.
        corrections: What running engines have taught; None for none.

    Raises:
        InputError: The kind is unknown, or corrections are of several versions and none is named.
    """
    if kind not in KINDS:
        raise InputError(Problem("costSource", f"{kind!r} is unknown; use {' or '.join(KINDS)}"))
    engine = engine or EngineVersion()
    base: CostSource = MeasuredTables(engine=engine.engine, version=engine.version)
    if kind == "roofline":
        base = Roofline(engine=engine.engine)
    if corrections is None:
        return base
    learnt = sorted({key.engine_version for key in corrections.by_key})
    chosen = str(engine)
    if not engine.version:
        of_engine = [name for name in learnt if name.split(" ", 1)[0] == engine.engine]
        if len(of_engine) > 1:
            versions = ", ".join(name.replace(" ", ":", 1) for name in of_engine)
            raise InputError(Problem("engine", f"the live corrections are of several versions: name one of {versions}"))
        chosen = of_engine[0] if of_engine else chosen
    return LiveSource(base, corrections, chosen)


def source_of(
    planning: Planning | None,
    corrections: LiveCorrections | None = None,
    *,
    kind: str | None = None,
    engine: EngineVersion | None = None,
) -> CostSource:
    """The source that a manifest asks for.

    Args:
        planning: ``spec.planning`` of the manifest.
        corrections: What its corrections hold, or others; None for none.
        kind: ``roofline`` or ``measured``, in place of the manifest's.
        engine: In place of the manifest's.

    Raises:
        InputError: The manifest asks for measured tables and they are not installed, or its corrections are of
            several versions and it names none.
    """
    if planning is None:
        return cost_source(kind or KINDS[0], engine, corrections)
    asked = kind or ("measured" if planning.cost_source == "Measured" else KINDS[0])
    if asked == "measured" and kind is None and find_spec("aiconfigurator_core") is None:
        raise InputError(
            Problem(
                "spec.planning.costSource",
                "Measured needs aiconfigurator-core where plans are made: install the optional extra "
                "(pip install 'cascadia[measured]'; for the operator, an image that has it), or use Roofline",
            )
        )
    try:
        return cost_source(asked, engine or EngineVersion(version=planning.engine_version or ""), corrections)
    except InputError as error:
        if engine is not None:
            raise
        raise InputError(
            [Problem("spec.planning.engineVersion", problem.message) for problem in error.problems]
        ) from None


def with_learnt(source: CostSource, learnt: LiveCorrections) -> CostSource:
    """The source, corrected by what running engines have taught where it is not corrected already.

    Args:
        source: Corrections of its own go first, replica by replica.
        learnt: Of the engines that are planned for, whatever versions they are of; all are used.
    """
    if not learnt.by_key:
        return source
    base, given, version = source, LiveCorrections(), ", ".join(sorted({key.engine_version for key in learnt.by_key}))
    if isinstance(source, LiveSource):
        base, given, version = source.base, source.corrections, source.engine_version
    more = {key._replace(engine_version=version): known for key, known in learnt.by_key.items()}
    return LiveSource(base, LiveCorrections(dict(sorted({**more, **given.by_key}.items()))), version)


def parse_corrections(text: str) -> LiveCorrections:
    """Read what a manifest's corrections hold.

    Raises:
        InputError: It is no file of corrections; names the manifest's field and what is wrong.
    """
    try:
        return LiveCorrections.from_json(json.loads(text))
    except json.JSONDecodeError as error:
        problem = f"not JSON: line {error.lineno}, column {error.colno}: {error.msg}"
        raise InputError(Problem("spec.planning.corrections", problem)) from None
    except InputError as error:
        raise error.below("spec.planning.corrections") from None


class Certainty(NamedTuple):
    """How far some predictions can be trusted.

    Attributes:
        uncertainty_percent: Expected (median) error of end-to-end latencies of the least certain, percent.
        extrapolates: In what they differ from all that the source was measured on.
    """

    uncertainty_percent: float
    extrapolates: tuple[str, ...]


def certainty(replicas: Iterable[tuple[CostSource, str, ModelFacts, GpuFacts, Shape]]) -> Certainty:
    """What sources say of several replicas.

    Args:
        replicas: Source, stage, model, GPU and shape of each, at least one.
    """
    worst, said = 0.0, dict[str, None]()
    for source, stage, model, gpu, shape in replicas:
        worst = max(worst, source.uncertainty_percent(model, gpu, shape))
        said |= dict.fromkeys(f"{stage}: {what}" for what in source.extrapolations(model, gpu, shape))
    return Certainty(worst, tuple(said))
