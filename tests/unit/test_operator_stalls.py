"""What stops the reconcile: named with its numbers, nothing that serves is touched, and mended it goes on."""

import pytest

from cascadia_operator.cluster import ClusterError
from cascadia_operator.decide.plan_choice import PlanFailure, Trouble
from cascadia_operator.manifests.plan_object import plan_object
from cascadia_operator.manifests.policy import read_policy
from tests.support.memory_cluster import MemoryCluster
from tests.support.operator_cases import LARGE, MEDIUM, POOL, SMALL, cascade, cascade_document, plan
from tests.support.operator_in_memory import (
    FIRST,
    KEY,
    MODELS,
    SECOND,
    HandedOutPlans,
    Operator,
    cluster_with_chat,
    nodes,
)


@pytest.fixture
def cluster() -> MemoryCluster:
    return cluster_with_chat()


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


async def test_a_calibration_set_that_is_missing_is_named(cluster: MemoryCluster) -> None:
    cluster.put(cascade_document(MODELS, calibration={"configMapRef": {"name": "set"}}))
    operator = Operator(cluster, HandedOutPlans(FIRST))
    await operator.settle()
    assert operator.condition("Stalled") == ("True", "CalibrationNotFound")
    cluster.put({"kind": "ConfigMap", "metadata": {"name": "set", "namespace": "serving"}, "data": {"a.jsonl": "{}\n"}})
    await operator.settle()
    assert operator.condition("Ready") == ("True", "Serving")
    assert operator.plans.jobs[0].calibration == ("{}",)


async def test_corrections_of_step_times_are_read_and_missing_ones_named(cluster: MemoryCluster) -> None:
    cluster.put(cascade_document(MODELS, planning={"corrections": {"configMapRef": {"name": "learnt"}}}))
    operator = Operator(cluster, HandedOutPlans(FIRST))
    await operator.settle()
    assert operator.condition("Stalled") == ("True", "CorrectionsNotFound")
    config_map = {"kind": "ConfigMap", "metadata": {"name": "learnt", "namespace": "serving"}, "data": {"x": "{}"}}
    cluster.put(config_map)
    await operator.settle()
    assert operator.condition("Stalled") == ("True", "CorrectionsNotFound")
    cluster.put(config_map | {"data": {"live.json": '{"a": 1}'}})
    await operator.settle()
    assert operator.condition("Ready") == ("True", "Serving")
    assert operator.plans.jobs[0].corrections == '{"a": 1}'


async def test_a_scorers_secret_that_is_missing_is_named(cluster: MemoryCluster) -> None:
    judge = {
        "url": "https://judge.example/v1",
        "model": "m",
        "apiKeySecretRef": {"name": "judge", "key": "key"},
        "caSecretRef": {"name": "judge", "key": "ca.crt"},
    }
    cluster.put(cascade_document(MODELS, routing={"scorer": {"type": "Judge", "judge": judge}}))
    operator = Operator(cluster, HandedOutPlans(FIRST))
    await operator.settle()
    assert operator.condition("Stalled") == ("True", "SecretNotFound")
    stalled = next(c for c in operator.status["conditions"] if c["type"] == "Stalled")
    assert stalled["message"] == "spec.routing.scorer names Secret judge, which is not there: create it"
    cluster.put({"kind": "Secret", "metadata": {"name": "judge", "namespace": "serving"}})
    await operator.reconcile()
    assert operator.condition("Stalled") == ("", "")
