"""The decisions, as tables: each row is a world and what has to be decided in it."""

import dataclasses
from datetime import timedelta
from typing import Any

import pytest

from cascadia_operator.apply import contains
from cascadia_operator.capacity import available_gpus, free_by_node, snapshot_of
from cascadia_operator.cluster import Object
from cascadia_operator.decide.plan_choice import PlanFailure, Trouble, choose_plan, plan_in_force
from cascadia_operator.decide.progress import progress_of
from cascadia_operator.decide.pruning import plans_to_prune
from cascadia_operator.decide.replicas import named_starts, observed_replicas
from cascadia_operator.decide.steps import step_towards, suspension_step
from cascadia_operator.manifests.policy import router_policy
from cascadia_operator.manifests.rendering import rendered
from cascadia_operator.report.conditions import stamped
from cascadia_operator.report.events import happenings
from cascadia_operator.settings import Images
from cascadia_operator.world import CalibrationData, CorrectionsData
from cascadia_solver.transition import DesiredReplica, ReplicaState
from tests.support.operator_cases import LARGE, POOL, SMALL, cascade, cascade_document, plan
from tests.support.operator_worlds import NOW, PLAN, stored, world

ONE = PLAN
KEYS = {"apiKeysSecretRef": {"name": "k", "key": "k"}}
CURRENT = world().inputs
SHAPES = {"small": [(1, 1, 1)], "large": [(4, 1, 1)]}
TWO = plan({"small": [(2, 1, 1)], "large": [(8, 1, 1)]})
FAILURE = PlanFailure(Trouble("QualityOutOfReach", "no"), final=True)


@pytest.mark.parametrize(
    ("changes", "failure", "plan_name", "current", "trigger", "trouble"),
    [
        ({}, None, None, False, "Created", None),
        ({"plans": [stored(inputs=CURRENT, name="a")]}, None, "a", True, "", None),
        ({"plans": [stored(name="a")]}, None, "a", False, "SpecChanged", None),
        ({"plans": [stored(name="a"), stored(TWO, name="b", inputs=CURRENT)]}, None, "b", True, "", None),
        ({"plans": [stored(name="a")]}, FAILURE, "a", False, "", "QualityOutOfReach"),
        ({}, FAILURE, None, False, "", "QualityOutOfReach"),
        # A failure for inputs that have a plan (a restart lost it, or it was found later) does not matter.
        ({"plans": [stored(inputs=CURRENT, name="a")]}, FAILURE, "a", True, "", None),
        ({"plans": [stored(name="a")], "spec": {"paused": True}}, None, "a", False, "", None),
        ({"spec": {"suspend": True}}, None, None, False, "", None),
        ({"calibration": CalibrationData(problem="gone")}, None, None, False, "", "CalibrationNotFound"),
        ({"corrections": CorrectionsData(problem="gone")}, None, None, False, "", "CorrectionsNotFound"),
        ({"spec": {"planRef": {"name": "x"}}, "plans": [stored(name="a")]}, None, "a", False, "", "PlanNotFound"),
        ({"spec": {"planRef": {"name": "x"}}, "pinned": stored(TWO, name="x")}, None, "x", True, "", None),
        (
            {"spec": {"planRef": {"name": "x"}}, "pinned": stored(plan(SHAPES, scorer="logprob-min"), name="x")},
            *(None, None, False, "", "PlanMismatch"),
        ),
        (
            {"spec": {"planRef": {"name": "x"}}, "pinned": stored(plan({"tiny": [(1, 1, 1)]}), name="x")},
            *(None, None, False, "", "PlanMismatch"),
        ),
    ],
)
def test_which_plan(
    changes: dict[str, Any],
    failure: PlanFailure | None,
    plan_name: str | None,
    current: bool,
    trigger: str,
    trouble: str | None,
) -> None:
    choice = choose_plan(world(**changes), failure)
    assert (choice.stored.name if choice.stored else None) == plan_name
    assert (choice.current, choice.trigger) == (current, trigger)
    assert (choice.trouble.reason if choice.trouble else None) == trouble


def test_the_trigger_says_whether_manifest_or_calibration_changed() -> None:
    changed = choose_plan(world(plans=[stored()], status={"observedGeneration": 0}), None)
    assert "generation 1" in changed.trigger_message
    calibrated = choose_plan(world(plans=[stored()], status={"observedGeneration": 1}), None)
    assert "calibration" in calibrated.trigger_message


def test_the_plan_in_force_is_found_by_status_then_policy_then_age() -> None:
    plans = [stored(name="a"), stored(TWO, name="b", minutes=1)]
    policy = router_policy(world().cascade, ONE, thresholds={"small": 0.8, "large": None}, endpoints=[], revision=3)
    found = [
        plan_in_force(world(plans=plans, status={"plan": {"name": "a"}})),
        plan_in_force(world(plans=plans, policy=policy)),
        plan_in_force(world(plans=plans)),
        plan_in_force(world(status={"plan": {"name": "pruned"}})),
    ]
    assert [f.name if f else None for f in found] == ["a", "a", "b", None]


def running(of: Any = ONE, *, ready: bool = True, spec: dict[str, Any] | None = None) -> dict[str, Any]:
    """StatefulSets, pods and policy of a plan in force, as fields of a world."""
    owner = cascade(cascade_document([SMALL, LARGE], **(spec or {})))
    manifests = rendered(owner, of, Images())
    statefulsets: list[Object] = [
        m | {"metadata": m["metadata"] | {"creationTimestamp": "2026-01-01T00:00:00Z"}}
        for m in manifests
        if m["kind"] == "StatefulSet"
    ]
    policy = router_policy(
        owner,
        of,
        thresholds={s.name: s.threshold for s in of.live_stages},
        endpoints=[(s["metadata"]["labels"]["cascadia.dev/stage"], s["metadata"]["name"], 1.0) for s in statefulsets],
        revision=1,
    )
    return {"statefulsets": statefulsets, "pods": [pod(s, ready=ready) for s in statefulsets], "policy": policy}


def pod(statefulset: Object, *, ready: bool) -> Object:
    template = statefulset["spec"]["template"]
    condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": "2026-01-01T00:05:00Z"}
    return {
        "metadata": {
            "name": f"{statefulset['metadata']['name']}-0",
            "labels": template["metadata"]["labels"] | {"apps.kubernetes.io/pod-index": "0"},
        },
        "spec": template["spec"] | {"nodeName": "gpu-0"},
        "status": {"conditions": [condition]},
    }


def test_replicas_are_observed_by_their_pods() -> None:
    fields = running()
    states = [r.state for r in observed_replicas(world(**fields), settled=True)]
    assert states == [ReplicaState.Ready] * 3
    assert {r.node_group for r in observed_replicas(world(**fields), settled=True)} == {"gpu-0"}
    fields["pods"][0]["status"]["conditions"][0]["status"] = "False"
    fields["pods"][1]["metadata"]["deletionTimestamp"] = "2026-01-01T00:06:00Z"
    fields["statefulsets"][2]["metadata"]["deletionTimestamp"] = "2026-01-01T00:06:00Z"
    states = [r.state for r in observed_replicas(world(**fields), settled=True)]
    assert states == [ReplicaState.Starting, ReplicaState.Starting, ReplicaState.Draining]


def test_pods_of_a_deleted_statefulset_hold_their_gpus() -> None:
    fields = running()
    gone = fields["statefulsets"].pop()
    (draining,) = [r for r in observed_replicas(world(**fields), settled=True) if r.state is ReplicaState.Draining]
    assert (draining.name, draining.gpus) == (gone["metadata"]["name"], 8)


def test_names_of_those_on_their_way_out_are_not_used_again() -> None:
    now = world(**running())
    taken = [s["metadata"]["name"] for s in now.statefulsets]
    wanted = [DesiredReplica("small", "h100", 1, 1, 0.5)] * 2
    names = [start.name for start in named_starts(now, wanted, taken)]
    assert len(set(names) | set(taken)) == len(taken) + 2
    assert named_starts(now, [DesiredReplica("gone", "h100", 1, 1, 1.0)], taken) == []


def test_nothing_to_do_is_done() -> None:
    choice = choose_plan(world(plans=[stored(inputs=CURRENT)]), None)
    step, _, _ = step_towards(world(plans=[stored(inputs=CURRENT)], **running()), choice)
    assert step is not None
    assert step.done
    assert (step.start, step.drain, step.delete) == ((), (), ())


def test_suspension_takes_replicas_out_of_the_policy_first() -> None:
    fields = running()
    routed = observed_replicas(world(**fields), settled=True)
    first = suspension_step(ONE, routed)
    assert (len(first.drain), first.delete, first.routed, first.done) == (3, (), (), False)
    unrouted = observed_replicas(world(**fields | {"policy": None}), settled=True)
    second = suspension_step(ONE, unrouted)
    assert (second.drain, len(second.delete), second.done) == ((), 3, False)
    assert suspension_step(ONE, []).done


@pytest.mark.parametrize(("minutes", "reason"), [(0, None), (34, None), (36, "ProgressDeadlineExceeded")])
def test_progress_counts_from_the_last_pod_that_became_ready(minutes: int, reason: str | None) -> None:
    fields = running()
    fields["pods"][0]["status"]["conditions"][0]["status"] = "False"
    now = world(plans=[stored(inputs=CURRENT)], now=NOW + timedelta(minutes=minutes), **fields)
    choice = choose_plan(now, None)
    step, _, _ = step_towards(now, choice)
    assert step is not None
    assert choice.stored is not None
    progress = progress_of(now, choice.stored, step)
    # Ready at 00:05, deadline 1800 s.
    assert progress.deadline == NOW + timedelta(minutes=35)
    assert (progress.trouble.reason if progress.trouble else None) == reason


def test_shortage_is_told_before_the_deadline_too() -> None:
    now = world(plans=[stored(inputs=CURRENT)], available={"h100": 8}, now=NOW)
    choice = choose_plan(now, None)
    step, _, _ = step_towards(now, choice)
    assert choice.stored is not None
    assert step is not None
    progress = progress_of(now, choice.stored, step)
    assert progress.trouble is None
    assert progress.shortage == "2 GPUs of pool h100 are missing: the plan needs 10, 8 are there"


def test_plans_that_still_matter_are_never_pruned() -> None:
    plans = [
        stored(plan({"small": [(1, 1, 1)], "large": [(8, 1, 1)]}, variant=i), f"p{i}", minutes=i) for i in range(14)
    ]
    policy = router_policy(
        world().cascade, plans[1].plan, thresholds={"small": 0.8, "large": None}, endpoints=[], revision=1
    )
    now = world(plans=plans, policy=policy, pinned=plans[2])
    assert [s.name for s in plans_to_prune(now, plans[0])] == ["p3"]


def node(name: str, gpus: int = 8, **spec: Any) -> Object:
    labels = spec.pop("labels", {})
    ready = spec.pop("ready", "True")
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": spec,
        "status": {"allocatable": {"nvidia.com/gpu": str(gpus)}, "conditions": [{"type": "Ready", "status": ready}]},
    }


def gpu_pod(node_name: str | None, gpus: int, *, labels: dict[str, str] | None = None, namespace: str = "x") -> Object:
    return {
        "metadata": {"name": "p", "namespace": namespace, "labels": labels or {}},
        "spec": {
            "nodeName": node_name,
            "containers": [{"resources": {"requests": {"nvidia.com/gpu": str(gpus), "cpu": "4"}}}],
        },
    }


OWN = {"cascadia.dev/cascade": "chat"}
TAINT = {"key": "gpu", "value": "yes", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("pool", "nodes", "pods", "available"),
    [
        ({}, [node("a"), node("b")], [], 16),
        ({"maxGpus": 4}, [node("a")], [], 4),
        ({}, [node("a")], [gpu_pod("a", 3)], 5),
        ({}, [node("a")], [gpu_pod("a", 3, labels=OWN, namespace="serving")], 8),
        ({}, [node("a")], [gpu_pod("a", 3, labels=OWN, namespace="elsewhere")], 5),
        ({}, [node("a")], [gpu_pod(None, 3)], 5),
        ({}, [node("a")], [gpu_pod("a", 20)], 0),
        ({}, [node("a", unschedulable=True), node("b")], [], 8),
        ({}, [node("a", unschedulable=True)], [gpu_pod("a", 3, labels=OWN, namespace="serving")], 3),
        ({}, [node("a", ready="Unknown")], [], 0),
        ({"nodeSelector": {"k": "v"}}, [node("a"), node("b", labels={"k": "v"})], [], 8),
        ({}, [node("a", taints=[TAINT])], [], 0),
        ({"tolerations": [{"key": "gpu", "operator": "Exists"}]}, [node("a", taints=[TAINT])], [], 8),
        ({"tolerations": [{"key": "gpu", "value": "no"}]}, [node("a", taints=[TAINT])], [], 0),
        ({"tolerations": [{"key": "gpu", "value": "yes", "effect": "NoExecute"}]}, [node("a", taints=[TAINT])], [], 0),
        ({"resourceName": "example.com/gpu"}, [node("a")], [], 0),
    ],
)
def test_available_gpus(pool: dict[str, Any], nodes: list[Object], pods: list[Object], available: int) -> None:
    owner = cascade(cascade_document([SMALL, LARGE], pools=[POOL | pool]))
    assert available_gpus(owner, snapshot_of(nodes, pods)) == {"h100": available}


def test_free_gpus_are_known_by_node() -> None:
    owner = cascade(cascade_document([SMALL, LARGE]))
    nodes = [node("a"), node("b"), node("c", unschedulable=True), node("d", gpus=4), node("e", ready="False")]
    own = {"labels": OWN, "namespace": "serving"}
    pods = [
        gpu_pod("a", 3), gpu_pod("a", 2, **own), gpu_pod("b", 8), gpu_pod("c", 2, **own), gpu_pod("c", 4),
        gpu_pod(None, 1), gpu_pod("elsewhere", 1),
    ]  # fmt: skip
    assert free_by_node(owner, snapshot_of(nodes, pods)) == {"h100": (5, 4, 2)}
    assert free_by_node(owner, None) == {}


def test_without_a_look_at_nodes_the_ceiling_counts() -> None:
    assert available_gpus(cascade(cascade_document([SMALL, LARGE])), None) == {"h100": 32}


@pytest.mark.parametrize(
    ("live", "wanted", "holds"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ({"a": [{"x": 1, "y": 2}]}, {"a": [{"x": 1}]}, True),
        ({"a": [1, 2]}, {"a": [1]}, False),
        ({}, {"a": "", "b": {}, "c": [], "d": False}, True),
        ({}, {"a": "x"}, False),
        ({"a": None}, {"a": {"b": 1}}, False),
    ],
)
def test_whether_a_live_object_has_what_is_wanted(live: Any, wanted: Any, holds: bool) -> None:
    assert contains(live, wanted) == holds


def test_a_condition_keeps_its_time_while_its_status_stays() -> None:
    before = stamped([("Ready", "False", "A", "")], [], 1, NOW)
    later = NOW + timedelta(hours=1)
    same = stamped([("Ready", "False", "B", "x")], before, 2, later)
    other = stamped([("Ready", "True", "B", "x")], same, 2, later)
    assert [c["lastTransitionTime"] for c in (*before, *same, *other)] == [
        "2026-01-01T00:00:00Z",
        "2026-01-01T00:00:00Z",
        "2026-01-01T01:00:00Z",
    ]


def test_no_news_is_no_event() -> None:
    status = {"conditions": stamped([("Stalled", "True", "A", "m"), ("Transitioning", "True", "B", "m")], [], 1, NOW)}
    assert happenings(status, status) == []
    assert [h.reason for h in happenings({}, status)] == ["TransitionStarted", "Stalled"]


def test_a_world_is_not_changed_by_decisions() -> None:
    now = world(plans=[stored(inputs=CURRENT)], **running())
    before = dataclasses.asdict(now)["statefulsets"]
    step_towards(now, choose_plan(now, None))
    assert now.statefulsets == before
