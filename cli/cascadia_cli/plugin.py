"""`kubectl cascadia`: a cascade's state, its plan, and the approval of a proposed one."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from cascadia_cli.options import PlanFormat, ResultFormat

__all__ = ["plugin"]

plugin = typer.Typer(
    name="kubectl-cascadia",
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Namespace; the context's where not given.")]
Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig.")]
Kubeconfig = Annotated[str | None, typer.Option("--kubeconfig", metavar="FILE", help="The kubeconfig.")]


@plugin.callback()
def kubectl_cascadia() -> None:
    """Look at cascades in a cluster, and approve their plans."""


@plugin.command()
def status(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the CascadeDeployment.")],
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Annotated[ResultFormat, typer.Option("--output", "-o", help="How to print it.")] = ResultFormat.table,
) -> None:
    """Show a cascade: its conditions with reasons, its stages, the plan in force, the last re-plan.

    Example:
        kubectl cascadia status chat -n serving
    """
    from cascadia_api.names import KIND
    from cascadia_cli.cluster_objects import Cluster
    from cascadia_cli.plan_table import print_view
    from cascadia_cli.status_view import status_view

    cascade = Cluster(namespace=namespace, context=context, kubeconfig=kubeconfig).get(KIND, name)
    if output is ResultFormat.json:
        sys.stdout.write(json.dumps(cascade.get("status") or {}, indent=2, ensure_ascii=False) + "\n")
    else:
        print_view(lambda _: status_view(cascade))


@plugin.command()
def plan(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the CascadeDeployment.")],
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    proposed: Annotated[bool, typer.Option("--proposed", help="The proposed plan, not the one in force.")] = False,
    output: Annotated[PlanFormat, typer.Option("--output", "-o", help="How to print it.")] = PlanFormat.table,
) -> None:
    """Show the whole plan of a cascade, as `cascadia plan` prints it.

    Examples:
        kubectl cascadia plan chat
        kubectl cascadia plan chat --proposed -o json
    """
    from cascadia_api.errors import InputError
    from cascadia_api.load import parse_cascade
    from cascadia_api.names import KIND, PLAN_KIND
    from cascadia_api.plan import CascadePlan
    from cascadia_cli.cluster_objects import Cluster
    from cascadia_cli.plan_table import plan_view, print_view
    from cascadia_cli.planning import print_document

    cluster = Cluster(namespace=namespace, context=context, kubeconfig=kubeconfig)
    found = cluster.get(KIND, name)
    state = found.get("status") or {}
    held_by = state.get("proposedPlan") if proposed else (state.get("plan") or {}).get("name")
    if not held_by:
        raise InputError(
            f"{name} has no {'proposed plan' if proposed else 'plan yet'}: see `kubectl cascadia status {name}`"
        )
    whole = CascadePlan.model_validate(cluster.get(PLAN_KIND, held_by)).spec.plan
    if output is PlanFormat.table:
        cascade = parse_cascade(found)
        print_view(lambda width: plan_view(whole, cascade, width=width))
    else:
        print_document(whole.for_json(), output.value)


@plugin.command()
def approve(
    name: Annotated[str, typer.Argument(metavar="PLAN", help="Name of the proposed CascadePlan.")],
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Approve a proposed plan. Today's operator proposes none: it plans again when the manifest changes, and at once.

    Example:
        kubectl cascadia approve chat-0123456789ab
    """
    from cascadia_api.errors import InputError
    from cascadia_api.names import PLAN_KIND
    from cascadia_cli.cluster_objects import Cluster

    cluster = Cluster(namespace=namespace, context=context, kubeconfig=kubeconfig)
    phase = (cluster.get(PLAN_KIND, name).get("status") or {}).get("phase")
    if phase != "Proposed":
        raise InputError(f"{name} is {phase or 'not proposed'}: only a proposed plan can be approved")
    sys.stdout.write(f"{name} approved by {cluster.approve(name)}\n")
