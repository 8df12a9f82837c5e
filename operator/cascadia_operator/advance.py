"""Carries out one step: policy first, then, once every ready router enforces it, starts and deletions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from cascadia_api.plan import Plan
from cascadia_api.policy import RouterPolicy
from cascadia_operator.acknowledgement import Acknowledgement
from cascadia_operator.apply import apply_if_changed
from cascadia_operator.cluster import AlreadyExistsError, Cluster
from cascadia_operator.decide.replicas import current_identity, named_starts, ready_leaders
from cascadia_operator.manifests.naming import policy_name
from cascadia_operator.manifests.policy import policy_config_map, revised, router_policy
from cascadia_operator.manifests.rendering import foundation, peer_secret
from cascadia_operator.manifests.statefulset import statefulset
from cascadia_operator.settings import Images
from cascadia_operator.world import World
from cascadia_solver.transition import ObservedReplica, ReplicaState, Step

__all__ = ["Advance", "advance", "clear_leftovers", "lay_foundation"]

log = logging.getLogger("cascadia.operator.advance")


@dataclass(frozen=True, slots=True)
class Advance:
    """What came of a step.

    Attributes:
        policy_revision: Revision of the policy now in the cluster.
        policy_changed: Whether it was written just now.
        lacking: Pods of ready routers that do not enforce it yet: starts and deletions wait for them.
    """

    policy_revision: int
    policy_changed: bool
    lacking: tuple[str, ...]


async def lay_foundation(cluster: Cluster, world: World) -> None:
    """Apply what replicas stand on: the routers' account and the Services."""
    for manifest in foundation(world.cascade):
        await apply_if_changed(cluster, manifest, world.children.get((manifest["kind"], manifest["metadata"]["name"])))


async def clear_leftovers(cluster: Cluster, world: World) -> None:
    """Delete the Services of stages that the manifest no longer has, once no replica is left of them."""
    wanted = {manifest["metadata"]["name"] for manifest in foundation(world.cascade)}
    for kind, name in world.children:
        if kind == "Service" and name not in wanted:
            await cluster.delete(kind, world.key.namespace, name)


async def advance(
    cluster: Cluster,
    acknowledgement: Acknowledgement,
    images: Images,
    world: World,
    step: Step,
    policy_plan: Plan,
    observed: Sequence[ObservedReplica],
) -> Advance:
    """Carry out a step as far as it may go now.

    Args:
        cluster: Where.
        acknowledgement: How routers are asked for the revision that they enforce.
        images: Default images of new replicas.
        world: What the step was decided on.
        step: What may be done.
        policy_plan: The plan whose thresholds the step puts in force.
        observed: The replicas that exist.
    """
    policy = await _put_in_force(cluster, world, step, policy_plan, observed)
    if step.start or any(replica.state is not ReplicaState.Ready for replica in observed):
        # Pods cannot start without it, and it is never read: creating it is the only way to know.
        try:
            await cluster.create(peer_secret(world.cascade))
        except AlreadyExistsError:
            log.debug("the peers' secret of %s is there", world.key)
    await _refresh_templates(cluster, world, step, images)
    lacking = await acknowledgement.lacking(policy.policy_revision, ready_leaders(world.pods))
    if not lacking:
        for start in named_starts(world, step.start, [replica.name for replica in observed]):
            log.info("starting replica %s of %s", start.name, world.key)
            await apply_if_changed(cluster, statefulset(world.cascade, start.identity, start.name, images), None)
        for name in step.delete:
            if any(s["metadata"]["name"] == name for s in world.statefulsets):
                log.info("deleting replica %s of %s", name, world.key)
                await cluster.delete("StatefulSet", world.key.namespace, name)
    return Advance(policy.policy_revision, policy != world.policy, tuple(lacking))


async def _put_in_force(
    cluster: Cluster, world: World, step: Step, policy_plan: Plan, observed: Sequence[ObservedReplica]
) -> RouterPolicy:
    stages = {replica.name: replica.stage for replica in observed}
    wanted = router_policy(
        world.cascade,
        policy_plan,
        thresholds=dict(zip(step.stages, step.thresholds, strict=True)),
        endpoints=[(stages[name], name, weight) for name, weight in zip(step.routed, step.weights, strict=True)],
        revision=1,
        live=world.policy,
    )
    least = int((world.status.get("plan") or {}).get("policyRevision") or 0)
    policy = revised(wanted, world.policy, least)
    live = world.children.get(("ConfigMap", policy_name(world.cascade.metadata.name)))
    await apply_if_changed(cluster, policy_config_map(world.cascade, policy), live)
    return policy


async def _refresh_templates(cluster: Cluster, world: World, step: Step, images: Images) -> None:
    """Bring the StatefulSets of replicas that stay up to date: their pods take it at their next start.

    Replicas that run an outdated engine, or are on their way out, keep the template that they have.
    """
    for live in world.statefulsets:
        name = live["metadata"]["name"]
        identity = current_identity(world.cascade, live)
        if identity is not None and name not in step.drain and name not in step.delete:
            await apply_if_changed(cluster, statefulset(world.cascade, identity, name, images), live)
