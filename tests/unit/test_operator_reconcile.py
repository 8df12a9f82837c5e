"""The reconcile as a whole, on a cluster in memory, with plans that a test hands out."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cascadia_api.plan import Plan
from cascadia_operator.acknowledgement import TakenForGranted
from cascadia_operator.capacity import CapacitySource
from cascadia_operator.cluster import ClusterError, Object
from cascadia_operator.decide.plan_choice import PlanFailure, Trouble
from cascadia_operator.manifests.plan_object import plan_object
from cascadia_operator.manifests.policy import read_policy
from cascadia_operator.planning import Planner, PlanningJob, PlanningOutcome
from cascadia_operator.reconcile import Reconciler
from cascadia_operator.settings import Images
from cascadia_operator.world import Key
from tests.support.memory_cluster import MemoryCluster
from tests.support.operator_cases import LARGE, MEDIUM, POOL, SMALL, cascade, cascade_document, plan

KEY: Key = ("serving", "chat")
FIRST = plan({"small": [(1, 1, 2)], "medium": [(4, 1, 1)], "large": [(8, 1, 1)]})
SECOND = plan({"small": [(1, 1, 3)], "medium": [(2, 1, 1)], "large": [(8, 1, 1)]})


class HandedOutPlans:
    """Planning that answers at once with what the test has laid ready."""

    def __init__(self, *outcomes: Plan | PlanFailure) -> None:
        self.outcomes = list(outcomes)
        self.jobs: list[PlanningJob] = []

    async def run(self, job: PlanningJob) -> PlanningOutcome:
        self.jobs.append(job)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Plan):
            return PlanningOutcome(plan=outcome.for_json())
        return PlanningOutcome(failure=outcome, result="infeasible")


class Stubborn:
    """Routers that take no policy until they are told to."""

    def __init__(self) -> None:
        self.taken = 0

    async def lacking(self, revision: int, leaders: list[Object]) -> list[str]:
        return [pod["metadata"]["name"] for pod in leaders] if revision > self.taken else []


class Operator:
    """A reconciler with its planner, on a cluster; `restart` forgets all that it remembers."""

    def __init__(self, cluster: MemoryCluster, plans: HandedOutPlans, acknowledgement: Any = None) -> None:
        self.cluster, self.plans = cluster, plans
        self.acknowledgement = acknowledgement or TakenForGranted()
        self.restart()

    def restart(self) -> None:
        self.planned = asyncio.Event()
        self.planner = Planner(self.plans, 10.0, lambda _: self.planned.set())
        self.reconciler = Reconciler(
            self.cluster,
            self.planner,
            self.acknowledgement,
            Images(),
            CapacitySource(self.cluster, lifetime_seconds=0),
            self.cluster.clock,
        )

    async def reconcile(self) -> float | None:
        again = await self.reconciler.reconcile(KEY)
        await asyncio.sleep(0)  # lets the planning task answer
        return again

    async def settle(self, *, passes: int = 30, between: Callable[[], None] | None = None) -> None:
        """Reconcile while pods become ready and go, until nothing is written any more."""
        for _ in range(passes):
            self.cluster.writes.clear()
            await self.reconcile()
            if between is not None:
                between()
            self.cluster.finish_deletions()
            self.cluster.run_pods()
            self.cluster.advance(1)
            await self.reconcile()
            if not self.cluster.writes:
                return
        raise AssertionError(f"still writing: {self.cluster.writes}")

    @property
    def status(self) -> dict[str, Any]:
        found = self.cluster.objects["CascadeDeployment", *KEY]
        return found.get("status", {})

    def condition(self, kind: str) -> tuple[str, str]:
        found = next((c for c in self.status.get("conditions", ()) if c["type"] == kind), None)
        return (found["status"], found["reason"]) if found else ("", "")

    def replicas(self) -> dict[str, str]:
        return {s["metadata"]["name"]: s["metadata"]["uid"] for s in self.cluster.kinds("StatefulSet")}


def nodes(cluster: MemoryCluster, count: int, gpus: int = 8) -> None:
    for index in range(count):
        cluster.put(
            {
                "kind": "Node",
                "metadata": {"name": f"gpu-{index}"},
                "status": {
                    "allocatable": {"nvidia.com/gpu": str(gpus), "cpu": "96"},
                    "conditions": [{"type": "Ready", "status": "True"}],
                },
            }
        )


MODELS = [SMALL, MEDIUM, LARGE]


@pytest.fixture
def cluster() -> MemoryCluster:
    made = MemoryCluster()
    nodes(made, 4)
    made.put(cascade_document(MODELS))
    return made


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


async def test_infeasible_is_stalled_with_the_numbers_and_the_running_plan_stays(cluster: MemoryCluster) -> None:
    failure = PlanFailure(Trouble("InsufficientGPUs", "GPUs of pool h100: needs 16, has 8"), final=True)
    operator = Operator(cluster, HandedOutPlans(FIRST, failure))
    await operator.settle()
    before = operator.replicas()
    cluster.put(cascade_document(MODELS, objective={"minQuality": "0.99"}))
    await operator.settle()
    assert operator.condition("Stalled") == ("True", "InsufficientGPUs")
    assert operator.condition("Ready") == ("False", "InsufficientGPUs")
    assert operator.condition("Reconciling") == ("", "")
    assert operator.status["lastReplan"]["decision"] == "Rejected"
    assert "needs 16, has 8" in operator.status["lastReplan"]["reason"]
    assert operator.status["display"]["reason"] == "InsufficientGPUs"
    assert operator.status["plan"]["id"] == FIRST.plan_id
    assert operator.replicas() == before
    # The same inputs are not tried again and again …
    await operator.reconcile()
    assert len(operator.plans.jobs) == 2
    # … but other GPUs are a reason to.
    nodes(cluster, 3)
    cluster.objects.pop(("Node", "", "gpu-3"))
    operator.plans.outcomes.append(SECOND)
    await operator.settle()
    assert operator.condition("Ready") == ("True", "Serving")
    assert operator.condition("Stalled") == ("", "")


async def test_old_replicas_keep_their_engine_while_the_new_manifest_has_no_plan(cluster: MemoryCluster) -> None:
    failure = PlanFailure(Trouble("ModelFitsNowhere", "needs more memory"), final=True)
    operator = Operator(cluster, HandedOutPlans(FIRST, failure))
    await operator.settle()
    before = operator.replicas()
    cluster.put(cascade_document([SMALL, MEDIUM | {"precision": "fp16"}, LARGE]))
    await operator.settle()
    assert operator.condition("Stalled") == ("True", "ModelFitsNowhere")
    assert operator.replicas() == before


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


async def test_missing_gpus_stall_after_the_deadline_with_their_number(cluster: MemoryCluster) -> None:
    operator = Operator(cluster, HandedOutPlans(FIRST))
    for _ in range(3):
        await operator.reconcile()
    (large,) = [n for n in operator.replicas() if "-large-" in n]
    cluster.run_pods()
    cluster.objects.pop(("Pod", "serving", f"{large}-0"))
    cluster.leave_unschedulable(large)
    await operator.reconcile()
    assert operator.condition("Reconciling") == ("True", "Transitioning")
    cluster.advance(1801)
    await operator.reconcile()
    assert operator.condition("Stalled") == ("True", "InsufficientGPUs")
    stalled = next(c for c in operator.status["conditions"] if c["type"] == "Stalled")
    assert "8 GPUs of pool h100 are missing" in stalled["message"]
    assert [e["reason"] for e in cluster.kinds("Event")][-1] == "Stalled"
    cluster.run_pods()
    await operator.settle()
    assert operator.condition("Ready") == ("True", "Serving")
    assert [e["reason"] for e in cluster.kinds("Event")][-2:] == ["Resumed", "TransitionCompleted"]


async def test_a_crash_loop_stalls_with_what_the_kubelet_says(cluster: MemoryCluster) -> None:
    operator = Operator(cluster, HandedOutPlans(FIRST))
    await operator.settle()
    (large,) = [n for n in operator.replicas() if "-large-" in n]
    cluster.run_pods(ready=False, only=large)
    cluster.objects["Pod", "serving", f"{large}-0"]["status"]["containerStatuses"] = [
        {
            "name": "engine",
            "restartCount": 7,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"reason": "OOMKilled"}},
        }
    ]
    await operator.reconcile()
    assert operator.condition("Ready") == ("False", "Transitioning")
    policy = read_policy(cluster.objects["ConfigMap", "serving", "chat-policy"])
    assert policy is not None
    assert policy.stages[-1].endpoints == []
    cluster.advance(4000)
    await operator.reconcile()
    stalled = next(c for c in operator.status["conditions"] if c["type"] == "Stalled")
    assert stalled["reason"] == "ProgressDeadlineExceeded"
    assert "OOMKilled" in stalled["message"]
    assert "CrashLoopBackOff (7 restarts" in stalled["message"]


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


async def test_a_pinned_plan_of_other_models_is_refused(cluster: MemoryCluster) -> None:
    other = plan_object(
        cascade(cascade_document([SMALL, LARGE])),
        plan({"small": [(1, 1, 1)], "large": [(8, 1, 1)]}),
        inputs="",
        trigger="Manual",
    )
    cluster.put(other | {"metadata": {"name": "other", "namespace": "serving"}})
    cluster.put(cascade_document(MODELS, planRef={"name": "other"}))
    operator = Operator(cluster, HandedOutPlans())
    await operator.settle()
    assert operator.condition("Stalled") == ("True", "PlanMismatch")
    assert operator.replicas() == {}


async def test_a_stored_but_invalid_manifest_changes_nothing(cluster: MemoryCluster) -> None:
    operator = Operator(cluster, HandedOutPlans(FIRST))
    await operator.settle()
    before = operator.replicas()
    cluster.put(cascade_document(MODELS, objective={"minQuality": "1.5"}))
    cluster.writes.clear()
    await operator.reconcile()
    assert operator.condition("Stalled") == ("True", "InvalidSpec")
    stalled = next(c for c in operator.status["conditions"] if c["type"] == "Stalled")
    assert "spec.objective.minQuality" in stalled["message"]
    assert operator.replicas() == before
    assert operator.status["plan"]["id"] == FIRST.plan_id


async def test_a_stranger_of_the_same_name_is_left_alone(cluster: MemoryCluster) -> None:
    cluster.put({"kind": "Service", "metadata": {"name": "chat", "namespace": "serving"}, "spec": {"mine": True}})
    operator = Operator(cluster, HandedOutPlans(FIRST))
    for _ in range(3):
        await operator.reconcile()
    assert operator.condition("Stalled") == ("True", "NameTaken")
    assert cluster.objects["Service", "serving", "chat"]["spec"] == {"mine": True}
    assert operator.replicas() == {}


async def test_what_a_deleted_cascade_left_is_waited_for(cluster: MemoryCluster) -> None:
    operator = Operator(cluster, HandedOutPlans(FIRST))
    await operator.settle()
    for kind in ("StatefulSet", "Pod", "ConfigMap"):
        for left in cluster.kinds(kind):
            del cluster.objects[kind, "serving", left["metadata"]["name"]]
    del cluster.objects["CascadeDeployment", *KEY]
    cluster.put(cascade_document(MODELS, uid="another"))
    operator.plans.outcomes.append(FIRST)
    operator.restart()
    with pytest.raises(ClusterError, match="garbage collector"):
        await operator.reconcile()
    for kind in ("Service", "ServiceAccount", "Role", "RoleBinding", "Secret"):
        for left in cluster.kinds(kind):
            del cluster.objects[kind, "serving", left["metadata"]["name"]]
    with pytest.raises(ClusterError, match="CascadePlan"):
        await operator.settle()
    for left in cluster.kinds("CascadePlan"):
        del cluster.objects["CascadePlan", "serving", left["metadata"]["name"]]
    await operator.settle()
    assert operator.condition("Ready") == ("True", "Serving")


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


async def test_a_secret_that_is_missing_is_named(cluster: MemoryCluster) -> None:
    cluster.put(
        cascade_document(
            MODELS, routing={"apiKeysSecretRef": {"name": "keys"}, "tls": {"secretRef": {"name": "certificate"}}}
        )
    )
    operator = Operator(cluster, HandedOutPlans(FIRST))
    await operator.settle()
    assert operator.condition("Stalled") == ("True", "SecretNotFound")
    told = str(operator.status["conditions"])
    assert "spec.routing.apiKeysSecretRef names Secret keys" in told
    assert "spec.routing.tls.secretRef names Secret certificate" in told
    assert operator.replicas() == {}
    cluster.put({"kind": "Secret", "metadata": {"name": "certificate", "namespace": "serving"}})
    await operator.settle()
    assert operator.condition("Stalled") == ("True", "SecretNotFound")
    cluster.put({"kind": "Secret", "metadata": {"name": "keys", "namespace": "serving"}})
    await operator.settle()
    assert operator.condition("Ready") == ("True", "Serving")
    assert operator.status["endpoint"] == "https://chat.serving.svc:8080/v1"


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


async def test_a_calibration_set_that_is_missing_is_named(cluster: MemoryCluster) -> None:
    cluster.put(cascade_document(MODELS, calibration={"configMapRef": {"name": "set"}}))
    operator = Operator(cluster, HandedOutPlans(FIRST))
    await operator.settle()
    assert operator.condition("Stalled") == ("True", "CalibrationNotFound")
    cluster.put({"kind": "ConfigMap", "metadata": {"name": "set", "namespace": "serving"}, "data": {"a.jsonl": "{}\n"}})
    await operator.settle()
    assert operator.condition("Ready") == ("True", "Serving")
    assert operator.plans.jobs[0].calibration == ("{}",)


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


async def test_starts_never_exceed_the_gpus_that_are_there() -> None:
    cluster = MemoryCluster()
    nodes(cluster, 1)
    cluster.put(cascade_document(MODELS, pools=[POOL | {"maxGpus": 32}]))
    operator = Operator(cluster, HandedOutPlans(FIRST))
    for _ in range(6):
        await operator.reconcile()
        cluster.run_pods()
    held = sum(
        int(s["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
        for s in cluster.kinds("StatefulSet")
    )
    assert 0 < held <= 8
    cluster.advance(2000)
    await operator.reconcile()
    assert operator.condition("Stalled") == ("True", "InsufficientGPUs")
    stalled = next(c for c in operator.status["conditions"] if c["type"] == "Stalled")
    assert "6 GPUs of pool h100 are missing: the plan needs 14, 8 are there" in stalled["message"]
