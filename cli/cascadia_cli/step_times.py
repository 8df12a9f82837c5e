"""From a manifest and the flags ``--engine``, ``--cost-source`` and ``--live`` to a cost source."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cascadia_api.errors import InputError, Problem
from cascadia_cli.files import read_json

if TYPE_CHECKING:
    from cascadia_api.load import Manifest
    from cascadia_solver.live_correction import LiveCorrections
    from cascadia_solver.roofline import CostSource
    from cascadia_solver.sources import EngineVersion

__all__ = ["planned_cost_source", "read_corrections", "read_cost_source"]


def read_cost_source(kind: str, engine: str, live: str | None) -> CostSource:
    """The cost source that the flags ask for.

    Raises:
        InputError: A flag or file is wrong; names it.
    """
    from cascadia_solver.sources import cost_source

    chosen = _engine(engine)
    corrections = None if live is None else read_corrections(live)
    try:
        return cost_source(kind, chosen, corrections)
    except InputError as error:
        raise InputError([Problem("--engine", problem.message) for problem in error.problems]) from None


def planned_cost_source(
    manifest: Manifest, *, kind: str | None = None, engine: str | None = None, live: str | None = None
) -> CostSource:
    """The cost source that a manifest asks for; each flag goes before what it says.

    Args:
        manifest: The manifest.
        kind: ``roofline`` or ``measured``.
        engine: ``ENGINE[:VERSION]``.
        live: File of corrections.

    Raises:
        InputError: A flag, a file or the manifest is wrong; names it.
    """
    from cascadia_solver.sources import parse_corrections, source_of

    planning = manifest.cascade.spec.planning
    corrections = None
    if live is not None:
        corrections = read_corrections(live)
    elif manifest.corrections is not None:
        corrections = parse_corrections(manifest.corrections)
    elif planning is not None and planning.corrections is not None:
        name = planning.corrections.config_map_ref.name
        raise InputError(
            Problem(
                "spec.planning.corrections",
                f"the manifest's file does not hold the ConfigMap {name}: add it to the file, or give its file with "
                "--live FILE",
            )
        )
    chosen = None if engine is None else _engine(engine)
    try:
        return source_of(planning, corrections, kind=kind, engine=chosen)
    except InputError as error:
        named = [Problem("--engine", p.message) if p.field == "engine" else p for p in error.problems]
        raise InputError(named) from None


def _engine(text: str) -> EngineVersion:
    from cascadia_solver.sources import engine_version

    try:
        return engine_version(text)
    except InputError as error:
        raise InputError(Problem("--engine", str(error))) from None


def read_corrections(path: str) -> LiveCorrections:
    """Corrections that were learnt from running engines.

    Raises:
        InputError: It cannot be read, or is something else.
    """
    from cascadia_solver.live_correction import LiveCorrections

    try:
        return LiveCorrections.from_json(read_json(path))
    except InputError as error:
        raise error if error.source else error.within(path) from None
