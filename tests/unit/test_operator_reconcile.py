"""The reconcile as a whole, on a cluster in memory, with plans that a test hands out."""

import pytest

from cascadia_operator.manifests.plan_object import plan_object
from cascadia_operator.manifests.policy import read_policy
from tests.support.memory_cluster import MemoryCluster
from tests.support.operator_cases import LARGE, MEDIUM, SMALL, cascade, cascade_document, plan
from tests.support.operator_in_memory import (
    FIRST,
    KEY,
    MODELS,
    SECOND,
    HandedOutPlans,
    Operator,
    Stubborn,
    cluster_with_chat,
)


@pytest.fixture
def cluster() -> MemoryCluster:
    return cluster_with_chat()


async def test_from_manifest_to_ready(cluster: MemoryCluster) -> None:
    operator = Operator(cluster, HandedOutPlans(FIRST))
    await operator.reconcile()
    assert operator.condition("Reconciling") == ("True", "Planning")
    assert operator.condition("Ready") == ("False", "Planning")
    await operator.reconcile()
    assert await operator.reconcile() is not None
    assert len(operator.replicas()) == 4
    assert operator.condition("Transitioning")[0] == "True"
    await operator.settle()
    assert operator.condition("Ready") == ("True", "Serving")
    assert operator.condition("Planned") == ("True", "Optimal")
    assert operator.condition("Transitioning") == ("False", "Done")
    assert operator.condition("Reconciling") == ("", "")
    assert operator.condition("Stalled") == ("", "")
    assert operator.condition("QualityTargetMet")[0] == "Unknown"
    status = operator.status
    assert status["observedGeneration"] == 1
    assert status["endpoint"] == "http://chat.serving.svc:8080/v1"
    assert status["stages"] == [
        {"name": "small", "desired": 2, "updated": 2, "ready": 2},
        {"name": "medium", "desired": 1, "updated": 1, "ready": 1},
        {"name": "large", "desired": 1, "updated": 1, "ready": 1},
    ]
    assert status["display"]["stages"] == "3/3"
    assert status["display"]["gpus"] == "14/32"
    policy = read_policy(cluster.objects["ConfigMap", "serving", "chat-policy"])
    assert policy is not None
    assert {e.replica for s in policy.stages for e in s.endpoints} == set(operator.replicas())
    reasons = [event["reason"] for event in cluster.kinds("Event")]
    assert reasons == ["PlanComputed", "TransitionStarted", "TransitionCompleted"]
    assert all(
        o["metadata"]["ownerReferences"][0]["uid"] == "2f1c0a52-0000-4000-8000-000000000001"
        for (kind, _, _), o in cluster.objects.items()
        if kind not in ("CascadeDeployment", "Node", "Pod", "Event")
    )


async def test_a_restart_plans_nothing_again_and_writes_nothing(cluster: MemoryCluster) -> None:
    operator = Operator(cluster, HandedOutPlans(FIRST))
    await operator.settle()
    operator.restart()
    cluster.writes.clear()
    await operator.reconcile()
    await operator.reconcile()
    assert cluster.writes == []
    assert len(operator.plans.jobs) == 1


async def test_a_changed_manifest_moves_only_what_differs(cluster: MemoryCluster) -> None:
    operator = Operator(cluster, HandedOutPlans(FIRST, SECOND))
    await operator.settle()
    before = operator.replicas()
    cluster.put(cascade_document(MODELS, objective={"minQuality": "0.84"}))
    await operator.reconcile()
    assert operator.condition("Ready") == ("False", "Planning")
    await operator.settle()
    after = operator.replicas()
    assert operator.condition("Ready") == ("True", "Serving")
    assert {n: u for n, u in before.items() if "-medium-" not in n}.items() <= after.items()
    assert len(after) == 5
    assert [n for n in after if "-medium-" in n] != [n for n in before if "-medium-" in n]
    assert operator.status["lastReplan"]["trigger"] == "SpecChanged"


async def test_replicas_may_stay_where_only_the_floor_is_another(cluster: MemoryCluster) -> None:
    planning = {"corrections": {"configMapRef": {"name": "learnt"}}}
    learnt = {"kind": "ConfigMap", "metadata": {"name": "learnt", "namespace": "serving"}}
    cluster.put(learnt | {"data": {"live.json": "{}"}})
    cluster.put(cascade_document(MODELS, planning=planning))
    operator = Operator(cluster, HandedOutPlans(FIRST, SECOND, FIRST))
    await operator.settle()
    cluster.put(cascade_document(MODELS, planning=planning, objective={"minQuality": "0.84"}))
    await operator.settle()
    cluster.put(learnt | {"data": {"live.json": "{ }"}})
    await operator.settle()
    first, floor, corrections = operator.plans.jobs
    assert first.in_force is None
    assert floor.in_force is not None
    assert floor.in_force["planId"] == FIRST.plan_id
    assert corrections.in_force is None


async def test_a_change_taken_back_finds_its_old_plan(cluster: MemoryCluster) -> None:
    operator = Operator(cluster, HandedOutPlans(FIRST, SECOND))
    await operator.settle()
    cluster.put(cascade_document(MODELS, objective={"minQuality": "0.84"}))
    await operator.settle()
    cluster.put(cascade_document(MODELS))
    await operator.settle()
    assert operator.status["plan"]["id"] == FIRST.plan_id
    assert len(operator.plans.jobs) == 2
    assert operator.condition("Ready") == ("True", "Serving")


async def test_a_changed_engine_replaces_its_replicas_one_after_the_other(cluster: MemoryCluster) -> None:
    operator = Operator(cluster, HandedOutPlans(FIRST))
    await operator.settle()
    before = operator.replicas()
    medium = MEDIUM | {"engine": {"extraArgs": ["--context-length", "8192"]}}
    cluster.put(cascade_document([SMALL, medium, LARGE]))
    served: list[int] = []

    def look() -> None:
        policy = read_policy(cluster.objects["ConfigMap", "serving", "chat-policy"])
        assert policy is not None
        served.append(min(len(stage.endpoints) for stage in policy.stages))

    await operator.settle(between=look)
    after = operator.replicas()
    assert len(operator.plans.jobs) == 1  # an engine argument changes no plan
    assert min(served) == 1  # GPUs are free: the new one comes before the old one goes
    assert set(before) - set(after) == {n for n in before if "-medium-" in n}
    assert set(before) & set(after) == {n for n in before if "-medium-" not in n}
    (statefulset,) = [s for s in cluster.kinds("StatefulSet") if "-medium-" in s["metadata"]["name"]]
    assert "8192" in statefulset["spec"]["template"]["spec"]["containers"][0]["command"]


async def test_nothing_is_deleted_before_every_router_knows(cluster: MemoryCluster) -> None:
    routers = Stubborn()
    routers.taken = 1000
    operator = Operator(cluster, HandedOutPlans(FIRST, SECOND), routers)
    await operator.settle()
    routers.taken = read_policy(cluster.objects["ConfigMap", "serving", "chat-policy"]).policy_revision  # type: ignore[union-attr]
    before = operator.replicas()
    cluster.put(cascade_document(MODELS, objective={"minQuality": "0.84"}))
    for _ in range(4):
        await operator.reconcile()
    assert operator.replicas() == before
    transitioning = next(c for c in operator.status["conditions"] if c["type"] == "Transitioning")
    assert "policy revision" in transitioning["message"]
    routers.taken = 1000
    await operator.settle()
    assert operator.condition("Ready") == ("True", "Serving")


async def test_suspend_releases_all_and_resuming_plans_nothing(cluster: MemoryCluster) -> None:
    operator = Operator(cluster, HandedOutPlans(FIRST))
    await operator.settle()
    cluster.put(cascade_document(MODELS, suspend=True))
    await operator.settle()
    assert operator.replicas() == {}
    assert operator.condition("Ready") == ("False", "Suspended")
    assert operator.condition("Reconciling") == ("", "")
    assert operator.status["display"]["gpus"] == "0/32"
    assert len(cluster.kinds("CascadePlan")) == 1
    cluster.put(cascade_document(MODELS))
    await operator.settle()
    assert operator.condition("Ready") == ("True", "Serving")
    assert len(operator.plans.jobs) == 1


async def test_paused_touches_nothing_but_says_so(cluster: MemoryCluster) -> None:
    operator = Operator(cluster, HandedOutPlans(FIRST, SECOND))
    await operator.settle()
    before = operator.replicas()
    cluster.put(cascade_document(MODELS, objective={"minQuality": "0.84"}, paused=True))
    cluster.writes.clear()
    for _ in range(3):
        await operator.reconcile()
    assert {write.split()[0] for write in cluster.writes} <= {"status", "create"}
    assert operator.replicas() == before
    assert operator.condition("Ready") == ("False", "Paused")
    assert operator.status["observedGeneration"] == 2
    cluster.put(cascade_document(MODELS, objective={"minQuality": "0.84"}))
    await operator.settle()
    assert operator.condition("Ready") == ("True", "Serving")


async def test_a_pinned_plan_is_applied_and_no_other(cluster: MemoryCluster) -> None:
    operator = Operator(cluster, HandedOutPlans(FIRST))
    await operator.settle()
    from_git = plan_object(cascade(cascade_document(MODELS, uid=None)), SECOND, inputs="", trigger="Manual")
    from_git["metadata"] = {"name": "reviewed", "namespace": "serving"}
    cluster.put(cascade_document(MODELS, planRef={"name": "reviewed"}))
    await operator.settle()
    assert operator.condition("Stalled") == ("True", "PlanNotFound")
    assert operator.status["plan"]["id"] == FIRST.plan_id
    cluster.put(from_git)
    await operator.settle()
    assert operator.status["plan"]["name"] == "reviewed"
    assert operator.condition("Ready") == ("True", "Serving")
    assert len(operator.replicas()) == 5


async def test_services_of_a_removed_stage_go_with_its_last_replica(cluster: MemoryCluster) -> None:
    less = plan({"small": [(1, 1, 2)], "large": [(8, 1, 1)]})
    operator = Operator(cluster, HandedOutPlans(FIRST, less))
    await operator.settle()
    cluster.put(cascade_document([SMALL, LARGE]))
    await operator.settle()
    assert operator.condition("Ready") == ("True", "Serving")
    assert [s["metadata"]["name"] for s in cluster.kinds("Service")] == [
        *("chat", "chat-large-peers", "chat-large-stage", "chat-small-peers", "chat-small-stage")
    ]
    assert not [name for name in operator.replicas() if "-medium-" in name]


async def test_replicas_that_check_no_keys_are_replaced_once_keys_are_asked_for(cluster: MemoryCluster) -> None:
    operator = Operator(cluster, HandedOutPlans(FIRST))
    await operator.settle()
    before = set(operator.replicas())
    cluster.put({"kind": "Secret", "metadata": {"name": "keys", "namespace": "serving"}})
    cluster.put(cascade_document(MODELS, routing={"apiKeysSecretRef": {"name": "keys"}}))
    await operator.settle()
    assert operator.condition("Ready") == ("True", "Serving")
    assert not before & set(operator.replicas())
    for replica in cluster.kinds("StatefulSet"):
        pod = replica["spec"]["template"]
        assert {"name": "api-keys", "secret": {"secretName": "keys"}} in pod["spec"]["volumes"]
        assert '"apiKeys":["/etc/cascadia/keys"]' in pod["metadata"]["annotations"]["cascadia.dev/router-leader"]


async def test_the_last_ten_plans_are_kept_and_the_one_in_force(cluster: MemoryCluster) -> None:
    operator = Operator(cluster, HandedOutPlans(FIRST))
    await operator.settle()
    for variant in range(14):
        cluster.advance(1)
        made = plan({"small": [(1, 1, 2)], "medium": [(4, 1, 1)], "large": [(8, 1, 1)]}, variant=variant + 1)
        cluster.put(plan_object(cascade(cascade_document(MODELS)), made, inputs=f"other-{variant}", trigger="Drift"))
    await operator.settle()
    names = [p["metadata"]["name"] for p in cluster.kinds("CascadePlan")]
    assert len(names) == 11
    assert operator.status["plan"]["name"] in names
    assert operator.status["plan"]["id"] == FIRST.plan_id


async def test_a_deleted_cascade_is_forgotten(cluster: MemoryCluster) -> None:
    operator = Operator(cluster, HandedOutPlans(FIRST))
    await operator.settle()
    cluster.objects.pop(("CascadeDeployment", *KEY))
    assert await operator.reconcile() == float("inf")


async def test_planning_is_told_the_gpus_that_are_really_free(cluster: MemoryCluster) -> None:
    cluster.put(
        {
            "kind": "Pod",
            "metadata": {"name": "other", "namespace": "elsewhere"},
            "spec": {"nodeName": "gpu-0", "containers": [{"resources": {"requests": {"nvidia.com/gpu": "6"}}}]},
        }
    )
    operator = Operator(cluster, HandedOutPlans(FIRST))
    await operator.reconcile()
    assert operator.plans.jobs[0].available_gpus == {"h100": 26}
