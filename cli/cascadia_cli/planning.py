"""`cascadia plan` and `cascadia render`: from the files given to a plan, and what is made of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cascadia_api.cascade import CascadeDeployment
from cascadia_api.errors import InputError, Problem
from cascadia_api.load import Manifest
from cascadia_cli.calibration_file import read_calibration
from cascadia_cli.failures import say
from cascadia_cli.files import read_manifest, read_plan, read_trace
from cascadia_cli.step_times import planned_cost_source

if TYPE_CHECKING:
    from collections.abc import Callable

    from cascadia_api.plan import Plan
    from cascadia_solver.milp import SolverName
    from cascadia_solver.planner import PlanningInputs

__all__ = ["print_document", "print_manifests", "print_plan", "with_gpus"]

_MOST_GPUS = 4096
_DEADLINE_SECONDS = 600.0
"""A plan takes a second; the first one compiles the planner's kernels, which takes minutes on a busy machine."""


def print_plan(
    file: str,
    *,
    calibration: str | None,
    trace: str | None,
    gpus: Sequence[str],
    free: Sequence[str],
    solver: SolverName,
    frontier: bool,
    explained: bool,
    plot: str | None,
    cost: tuple[str | None, str | None, str | None],
    output: str,
) -> None:
    """Plan and print: a table, or the plan as a document; `cost` are the flags of `planned_cost_source`.

    Raises:
        InputError: A file or flag is wrong.
        InfeasibleError: No plan does what the manifest asks for.
    """
    if plot is not None:
        from cascadia_cli.plot import check_format

        check_format(plot)
    manifest = read_manifest(file)
    cascade = with_gpus(manifest.cascade, gpus)
    inputs = _inputs(manifest, file, cascade, calibration=calibration, trace=trace, cost=cost)
    inputs = replace(inputs, free_by_node=_free_gpus(cascade, free))
    plan = _plan(inputs, file, solver)
    explanation: list[str] = []
    if explained:
        from cascadia_solver.explain import explain

        with _progress("explaining") as progress:
            explanation = explain(plan, inputs, progress)
    if output == "table":
        from cascadia_cli.plan_table import plan_view, print_view

        print_view(lambda width: plan_view(plan, cascade, frontier=frontier, explanation=explanation, width=width))
    else:
        document = plan.for_json() | ({"explanation": explanation} if explained else {})
        print_document(document, output)
    if plot is not None:
        from cascadia_cli.plot import write_plot

        write_plot(plan, cascade, plot, explanation)
        say(f"drew {plot}")


def print_manifests(
    file: str,
    *,
    plan_file: str | None,
    calibration: str | None,
    engine_image: str | None,
    router_image: str | None,
) -> None:
    """Print every manifest of a cascade with its plan in force.

    Raises:
        InputError: A file or flag is wrong.
        InfeasibleError: No plan does what the manifest asks for.
    """
    import yaml

    from cascadia_operator.manifests.naming import peer_secret_name
    from cascadia_operator.manifests.rendering import rendered
    from cascadia_operator.manifests.router_config import PEER_SECRET_KEY
    from cascadia_operator.settings import DEFAULT_ENGINE_IMAGE, DEFAULT_ROUTER_IMAGE, Images

    manifest = read_manifest(file)
    cascade = manifest.cascade
    if plan_file is not None:
        plan = read_plan(plan_file, cascade)
    else:
        plan = _plan(_inputs(manifest, file, cascade, calibration=calibration, trace=None), file)
    images = Images(engine=engine_image or DEFAULT_ENGINE_IMAGE, router=router_image or DEFAULT_ROUTER_IMAGE)
    secret = peer_secret_name(cascade.metadata.name)
    sys.stdout.write(
        f"# {plan.cascade}, plan {plan.plan_id}. The routers also need the Secret {secret}, which is not for Git:\n"
        f"#   kubectl create secret generic {secret} --from-literal={PEER_SECRET_KEY}=$(openssl rand -hex 32)\n"
    )
    sys.stdout.write(
        yaml.safe_dump_all(rendered(cascade, plan, images), sort_keys=False, explicit_start=True, width=120)
    )


def _inputs(
    manifest: Manifest,
    file: str,
    cascade: CascadeDeployment,
    *,
    calibration: str | None,
    trace: str | None,
    cost: tuple[str | None, str | None, str | None] = (None, None, None),
) -> PlanningInputs:
    """What the planner is given; notes about it go to standard error.

    Raises:
        InputError: A file is wrong.
    """
    from cascadia_solver.planner import PlanningInputs

    table, notes = read_calibration(manifest, file, calibration)
    traffic = None
    if trace is not None:
        traffic, more = read_trace(trace)
        notes += more
    say(*(f"note: {note}" for note in notes))
    kind, engine, live = cost
    try:
        source = planned_cost_source(manifest, kind=kind, engine=engine, live=live)
    except InputError as error:
        of_manifest = error.problems[0].field.startswith("spec.") and error.source is None
        raise error.within(file) if of_manifest else error from None
    return PlanningInputs(cascade=cascade, calibration=table, trace=traffic, cost=source)


def with_gpus(cascade: CascadeDeployment, flags: Sequence[str]) -> CascadeDeployment:
    """The cascade with other GPU ceilings: ``N`` for its only pool, or ``POOL=N``.

    Raises:
        InputError: A flag is neither, or names a pool that there is not.
    """
    if not flags:
        return cascade
    pools = cascade.spec.gpus.pools
    ceilings: dict[str, int] = {}
    for flag in flags:
        name, number = _of_pool(cascade, "--gpus", flag)
        if not number.isascii() or not number.isdigit() or not 1 <= int(number) <= _MOST_GPUS:
            raise InputError(Problem("--gpus", f"{number!r} is not a number of GPUs from 1 to {_MOST_GPUS}"))
        ceilings[name] = int(number)
    changed = [pool.model_copy(update={"max_gpus": ceilings.get(pool.name, pool.max_gpus)}) for pool in pools]
    gpus = cascade.spec.gpus.model_copy(update={"pools": changed})
    return cascade.model_copy(update={"spec": cascade.spec.model_copy(update={"gpus": gpus})})


def _of_pool(cascade: CascadeDeployment, option: str, flag: str) -> tuple[str, str]:
    """Pool and value of ``POOL=VALUE``, or of ``VALUE`` where there is one pool."""
    names = [pool.name for pool in cascade.spec.gpus.pools]
    name, _, value = flag.rpartition("=")
    if not name and len(names) == 1:
        name = names[0]
    if name not in names:
        what = f"pool {name!r} is not in the manifest" if name else "the manifest has several pools"
        raise InputError(Problem(option, f"{what}: write POOL=N with a pool of {', '.join(names)}"))
    return name, value


def _free_gpus(cascade: CascadeDeployment, flags: Sequence[str]) -> dict[str, list[int]]:
    """Free GPUs of each node, by pool: ``8,8,4`` for the only pool, or ``POOL=8,8,4``.

    Raises:
        InputError: A flag is neither, or names a pool that there is not.
    """
    free: dict[str, list[int]] = {}
    for flag in flags:
        name, value = _of_pool(cascade, "--free", flag)
        numbers = value.split(",")
        if not all(n.isascii() and n.isdigit() and int(n) <= _MOST_GPUS for n in numbers):
            raise InputError(Problem("--free", f"{value!r} is not a list of numbers of GPUs, one a node, as 8,8,4"))
        free[name] = [int(n) for n in numbers]
    return free


def _plan(inputs: PlanningInputs, file: str, solver: SolverName = "CBC") -> Plan:
    from cascadia_solver.planner import plan_cascade

    try:
        with _progress() as progress:
            return plan_cascade(inputs, deadline_seconds=_DEADLINE_SECONDS, progress=progress, solver=solver)
    except InputError as error:
        raise error if error.source else error.within(file) from None


@contextmanager
def _progress(doing: str = "planning") -> Iterator[Callable[[str, float], None]]:
    """Show on a terminal's standard error how far that is which is being done; nothing in a pipe."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    bar = Progress(
        TextColumn(f"{doing}: {{task.description}}"), BarColumn(), console=console, transient=True,
        disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task("reading", total=1.0)
        yield lambda what, share: bar.update(task, description=what, completed=share)


def print_document(document: Mapping[str, Any], output: str) -> None:
    """Print a document as ``json`` or ``yaml``."""
    if output == "json":
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    else:
        import yaml

        sys.stdout.write(yaml.safe_dump(dict(document), sort_keys=False, width=120, allow_unicode=True))
