"""From the flags ``--engine``, ``--cost-source`` and ``--live`` to a cost source."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cascadia_api.errors import InputError, Problem
from cascadia_cli.files import read_json

if TYPE_CHECKING:
    from cascadia_solver.live_correction import LiveCorrections
    from cascadia_solver.roofline import CostSource

__all__ = ["read_corrections", "read_cost_source"]


def read_cost_source(kind: str, engine: str, live: str | None) -> CostSource:
    """The cost source that the flags ask for.

    Raises:
        InputError: A flag or file is wrong; names it.
    """
    from cascadia_solver.sources import cost_source, engine_version

    try:
        chosen = engine_version(engine)
    except InputError as error:
        raise InputError(Problem("--engine", str(error))) from None
    corrections = None if live is None else read_corrections(live)
    try:
        return cost_source(kind, chosen, corrections)
    except InputError as error:
        raise InputError([Problem("--engine", problem.message) for problem in error.problems]) from None


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
