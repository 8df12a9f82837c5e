"""The manifests, as golden files, and what must hold of every one of them."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_api.cascade import CascadeDeployment
from cascadia_api.names import CASCADE_NAME_MAX, MODEL_NAME_MAX, REPLAN_ANNOTATION
from cascadia_api.plan import Plan
from cascadia_api.policy import AccessLogPolicy, ShadowPolicy, StreamingPolicy, TracingPolicy
from cascadia_operator.manifests.naming import (
    entry_service_name,
    peer_secret_name,
    peers_service_name,
    plan_object_name,
    policy_name,
    router_account_name,
    stage_service_name,
)
from cascadia_operator.manifests.plan_object import inputs_digest, placement_digest, plan_object
from cascadia_operator.manifests.policy import read_policy, revised, router_policy
from cascadia_operator.manifests.rendering import as_yaml, peer_secret, rendered
from cascadia_operator.manifests.replica import ReplicaIdentity, replica_identity, statefulset_name
from cascadia_operator.settings import Images
from cascadia_solver.packing import replica_nodes
from tests.support.operator_cases import LARGE, MEDIUM, POOL, SMALL, cascade, cascade_document, plan

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
IMAGES = Images(engine="sglang:test", router="cascadia:test")


def single_node() -> tuple[CascadeDeployment, Plan]:
    return (
        cascade(cascade_document([SMALL, MEDIUM, LARGE])),
        plan({"small": [(1, 1, 2)], "medium": [(4, 1, 1), (2, 1, 1)], "large": [(8, 1, 1)]}),
    )


def multi_node() -> tuple[CascadeDeployment, Plan]:
    return cascade(cascade_document([SMALL, LARGE])), plan({"small": [(1, 1, 1)], "large": [(8, 2, 1)]})


def volume_and_tokens() -> tuple[CascadeDeployment, Plan]:
    gated = {
        "name": "small",
        "source": {
            "huggingFace": {
                "repo": "meta-llama/Llama-3.1-8B-Instruct",
                "revision": "v1",
                "tokenSecretRef": {"name": "hf", "key": "token"},
            }
        },
        "engine": {
            "image": "sglang:mine",
            "extraArgs": ["--mem-fraction-static", "0.85"],
            "env": [
                {"name": "NCCL_DEBUG", "value": "INFO"},
                {"name": "HF_HOME", "value": "/scratch"},
                {"name": "S3_KEY", "secretKeyRef": {"name": "s3", "key": "id"}},
            ],
        },
    }
    mounted = {
        "name": "large",
        "source": {
            "pvc": {"claimName": "weights", "path": "/llama/70b", "architecture": "meta-llama/Llama-3.1-70B-Instruct"}
        },
    }
    pool = POOL | {
        "resourceName": "example.com/gpu",
        "nodeSelector": {"pool": "h100"},
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    }
    template = {
        "labels": {"team": "chat", "cascadia.dev/cascade": "stolen"},
        "annotations": {"prometheus.io/scrape": "true"},
        "serviceAccountName": "serving",
        "priorityClassName": "high",
        "schedulerName": "gang",
        "imagePullSecrets": [{"name": "registry"}],
    }
    document = cascade_document(
        [gated, mounted],
        pools=[pool],
        podTemplate=template,
        routing={
            "requestTimeoutSeconds": 120,
            "maxEscalations": 1,
            "pinStages": False,
            "apiKeysSecretRef": {"name": "chat-keys", "key": "team"},
            "tls": {"secretRef": {"name": "chat-tls"}},
            "rateLimits": {
                "default": {"requestsPerMinute": 600},
                "keys": [{"key": "team", "tokensPerMinute": 100000}],
            },
            "limits": {"bodyBytes": 1048576, "bufferedBytes": 33554432},
            "scorer": JUDGED,
        },
    )
    return cascade(document), plan({"small": [(1, 1, 1)], "large": [(4, 1, 1)]}, scorer="checked")


JUDGED = {
    "type": "Composite",
    "id": "checked",
    "combine": "All",
    "parts": [
        {"type": "Validator", "validator": {"toolCalls": True}},
        {
            "type": "Judge",
            "deadlineMs": 4000,
            "calibration": [{"score": "1", "worth": "0.9"}, {"score": "0", "worth": "0.1"}],
            "judge": {
                "url": "https://judge.example.com/v1",
                "model": "referee",
                "prompt": "{question} {answer}",
                "apiKeySecretRef": {"name": "judge", "key": "token"},
                "caSecretRef": {"name": "company-ca", "key": "ca.crt"},
            },
        },
    ],
}


CASES = {"single-node": single_node, "multi-node": multi_node, "volume-and-tokens": volume_and_tokens}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    owner, its_plan = CASES[name]()
    text = as_yaml(rendered(owner, its_plan, IMAGES))
    file = GOLDEN / f"operator-{name}.yaml"
    if os.environ.get("CASCADIA_UPDATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text(), f"{file.name} differs: check it, then run again with CASCADIA_UPDATE_GOLDEN=1"


def statefulsets(name: str) -> list[dict[str, Any]]:
    return [m for m in rendered(*CASES[name](), IMAGES) if m["kind"] == "StatefulSet"]


def containers(statefulset: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    pod = statefulset["spec"]["template"]["spec"]
    return pod["containers"][0], pod["initContainers"][0]


def test_one_statefulset_a_replica_with_its_share_of_gpus_in_each_pod() -> None:
    shapes = sorted(
        (s["spec"]["replicas"], containers(s)[0]["resources"]["limits"]["nvidia.com/gpu"])
        for s in statefulsets("single-node")
    )
    assert shapes == [(1, "1"), (1, "1"), (1, "2"), (1, "4"), (1, "8")]
    large = next(s for s in statefulsets("multi-node") if s["spec"]["replicas"] == 2)
    assert containers(large)[0]["resources"]["limits"] == {"nvidia.com/gpu": "8"}


def test_ranks_meet_at_the_leader() -> None:
    large = next(s for s in statefulsets("multi-node") if s["spec"]["replicas"] == 2)
    command = containers(large)[0]["command"]
    name = large["metadata"]["name"]
    assert command[command.index("--dist-init-addr") + 1] == f"{name}-0.chat-large-peers.serving.svc:5000"
    assert command[command.index("--node-rank") + 1] == "$(CASCADIA_POD_INDEX)"


@pytest.mark.parametrize("name", CASES)
def test_every_probe_and_the_drain_go_to_the_router(name: str) -> None:
    for statefulset in statefulsets(name):
        engine, router = containers(statefulset)
        probes = [engine[p] for p in ("startupProbe", "livenessProbe", "readinessProbe")]
        assert [p["httpGet"]["port"] for p in probes] == [8082] * 3
        assert engine["lifecycle"]["preStop"]["httpGet"]["path"] == "/drain"
        assert router["restartPolicy"] == "Always"
        assert router["startupProbe"]["httpGet"]["path"] == "/healthz"


def test_grace_covers_the_longest_request() -> None:
    for statefulset in statefulsets("volume-and-tokens"):
        assert statefulset["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 15 + 120 + 25


def test_the_engine_gets_no_api_token_and_the_operators_labels_win() -> None:
    for statefulset in statefulsets("volume-and-tokens"):
        engine, router = containers(statefulset)
        assert "api-access" not in [m["name"] for m in engine["volumeMounts"]]
        assert "api-access" in [m["name"] for m in router["volumeMounts"]]
        labels = statefulset["spec"]["template"]["metadata"]["labels"]
        assert labels["cascadia.dev/cascade"] == "chat"
        assert labels["team"] == "chat"


def test_the_users_environment_replaces_the_operators() -> None:
    small = next(s for s in statefulsets("volume-and-tokens") if "-small-" in s["metadata"]["name"])
    env = containers(small)[0]["env"]
    assert [e["value"] for e in env if e["name"] == "HF_HOME"] == ["/scratch"]
    assert len({e["name"] for e in env}) == len(env)


def test_rendered_manifests_have_no_secret_and_the_secret_is_random() -> None:
    owner, its_plan = single_node()
    assert not [m for m in rendered(owner, its_plan, IMAGES) if m["kind"] == "Secret"]
    assert peer_secret(owner)["stringData"] != peer_secret(owner)["stringData"]


names = st.from_regex(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", fullmatch=True)


@settings(max_examples=60, deadline=None)
@given(
    cascade_name=names.filter(lambda n: len(n) <= CASCADE_NAME_MAX),
    stage=names.filter(lambda n: len(n) <= MODEL_NAME_MAX),
    tp=st.integers(1, 64),
    pp=st.integers(1, 16),
    ordinal=st.integers(0, 1000),
)
def test_names_fit(cascade_name: str, stage: str, tp: int, pp: int, ordinal: int) -> None:
    replica = statefulset_name(cascade_name, ReplicaIdentity(stage, "pool", tp, pp, "0" * 8), ordinal)
    assert len(replica) <= 52
    # The controller-revision-hash label holds the name and ten more characters.
    assert len(replica) + 11 <= 63
    for name in (
        entry_service_name(cascade_name),
        peers_service_name(cascade_name, stage),
        stage_service_name(cascade_name, stage),
        policy_name(cascade_name),
        peer_secret_name(cascade_name),
        router_account_name(cascade_name),
        plan_object_name(cascade_name, "p-0123456789ab"),
    ):
        assert len(name) <= 63


def test_longest_names_are_allowed_for() -> None:
    identity = ReplicaIdentity("m" * MODEL_NAME_MAX, "pool", 8, 2, "0" * 8)
    assert len(statefulset_name("c" * CASCADE_NAME_MAX, identity, 0)) == 46


def test_interchangeable_replicas_have_different_names() -> None:
    identity = ReplicaIdentity("small", "h100", 1, 1, "0" * 8)
    assert len({statefulset_name("chat", identity, ordinal) for ordinal in range(64)}) == 64


@pytest.mark.parametrize(
    ("tp", "pp", "per_node", "nodes"),
    [(1, 1, 8, 1), (8, 1, 8, 1), (8, 2, 8, 2), (4, 3, 8, 3), (16, 1, 8, 2), (4, 2, 8, 1), (8, 4, 4, 8), (2, 2, 1, 4)],
)
def test_nodes_of_a_replica(tp: int, pp: int, per_node: int, nodes: int) -> None:
    assert replica_nodes(tp, pp, per_node) == nodes


@given(tp=st.sampled_from([1, 2, 4, 8, 16]), pp=st.integers(1, 8), per_node=st.sampled_from([1, 2, 4, 8]))
def test_nodes_divide_the_replica(tp: int, pp: int, per_node: int) -> None:
    nodes = replica_nodes(tp, pp, per_node)
    assert tp * pp % nodes == 0
    assert tp * pp // nodes <= per_node


@pytest.mark.parametrize(
    ("change", "restarts"),
    [
        ({"engine": {"extraArgs": ["--context-length", "8192"]}}, True),
        ({"precision": "fp8"}, True),
        ({"precision": "bf16"}, False),  # the default, said aloud
        ({"minReplicas": 2}, False),
    ],
)
def test_only_what_the_engine_runs_with_makes_another_replica(change: dict[str, Any], restarts: bool) -> None:
    before = replica_identity(cascade(cascade_document([SMALL, LARGE])), "small", "h100", 1, 1)
    after = replica_identity(cascade(cascade_document([SMALL | change, LARGE])), "small", "h100", 1, 1)
    assert (before != after) == restarts


@pytest.mark.parametrize(
    ("spec", "replans"),
    [
        ({"objective": {"minQuality": "0.86"}}, True),
        ({"paused": True}, False),
        ({"rollout": {"strategy": "Recreate"}}, False),
        ({"podTemplate": {"labels": {"a": "b"}}}, False),
    ],
)
def test_only_what_planning_reads_makes_another_plan(spec: dict[str, Any], replans: bool) -> None:
    before = inputs_digest(cascade(cascade_document([SMALL, LARGE])), "")
    after = inputs_digest(cascade(cascade_document([SMALL, LARGE], **spec)), "")
    assert (before != after) == replans
    assert before != inputs_digest(cascade(cascade_document([SMALL, LARGE])), "calibrated")


def test_another_plan_may_be_asked_for() -> None:
    document = cascade_document([SMALL, LARGE])
    asked = document | {"metadata": document["metadata"] | {"annotations": {REPLAN_ANNOTATION: "1", "other": "x"}}}
    other = document | {"metadata": document["metadata"] | {"annotations": {"other": "y"}}}
    digests = [(inputs_digest(cascade(each), ""), placement_digest(cascade(each))) for each in (document, asked, other)]
    assert digests[0] == digests[2]
    # All is planned anew: neither digest is the plan's before.
    assert not {*digests[0]} & {*digests[1]}


def test_a_plan_survives_its_object() -> None:
    owner, its_plan = single_node()
    document = plan_object(owner, its_plan, inputs="abc", trigger="Created")
    stored = Plan.model_validate(document["spec"]["plan"])
    assert stored.for_kubernetes() == document["spec"]["plan"]
    assert [s.name for s in stored.live_stages] == ["small", "medium", "large"]
    assert stored.thresholds == its_plan.thresholds


def test_scores_stay_those_of_the_thresholds_until_a_plan_for_the_new_scorer() -> None:
    owner, its_plan = single_node()
    thresholds = {stage.name: stage.threshold for stage in its_plan.live_stages}
    first = router_policy(owner, its_plan, thresholds=thresholds, endpoints=[], revision=1)
    document = cascade_document([SMALL, MEDIUM, LARGE], routing={"scorer": {"type": "LogProb", "statistic": "Minimum"}})
    changed = router_policy(cascade(document), its_plan, thresholds=thresholds, endpoints=[], revision=2, live=first)
    assert changed.scorer == first.scorer
    replanned = its_plan.model_copy(update={"scorer": "logprob-min"})
    after = router_policy(cascade(document), replanned, thresholds=thresholds, endpoints=[], revision=3, live=changed)
    assert (after.scorer.id, after.scorer.statistic) == ("logprob-min", "Minimum")


def test_a_scorers_secrets_are_part_of_a_replica() -> None:
    """A pod that was started without them could not ask the scorer."""

    def identity(scorer: dict[str, Any]) -> Any:
        return replica_identity(
            cascade(cascade_document([SMALL, LARGE], routing={"scorer": scorer})), "small", "h100", 1, 1
        )

    plain = identity({"type": "LogProb"})
    assert identity(JUDGED) != plain
    assert identity({"type": "Judge", "judge": {"url": "http://judge/v1", "model": "m"}}) == plain


def test_the_collectors_secrets_are_mounted_and_a_cascade_serves_without_them() -> None:
    tracing = {
        "endpoint": "https://otel.example.com",
        "headersSecretRef": {"name": "otel", "key": "headers"},
        "caSecretRef": {"name": "company-ca", "key": "ca.crt"},
    }
    routing = {"scorer": JUDGED, "tracing": tracing}
    owner, its_plan = cascade(cascade_document([SMALL, LARGE], routing=routing)), plan({"small": [(1, 1, 1)]})
    for one in (m for m in rendered(owner, its_plan, IMAGES) if m["kind"] == "StatefulSet"):
        (volume,) = [v for v in one["spec"]["template"]["spec"]["volumes"] if v["name"] == "scorer-secrets"]
        mounted = [
            (item["path"], source["secret"].get("optional", False))
            for source in volume["projected"]["sources"]
            for item in source["secret"]["items"]
        ]
        assert mounted == [("judge.token", False), ("company-ca.ca.crt", False), ("otel.headers", True)]
    bare = cascade(cascade_document([SMALL, LARGE], routing={"scorer": JUDGED}))
    assert replica_identity(owner, "small", "h100", 1, 1) != replica_identity(bare, "small", "h100", 1, 1)
    policy = router_policy(owner, its_plan, thresholds={"small": None}, endpoints=[], revision=1)
    assert policy.tracing == TracingPolicy(
        endpoint="https://otel.example.com", headers="otel.headers", ca="company-ca.ca.crt"
    )


def test_policy_revision_grows_only_with_a_change() -> None:
    owner, its_plan = single_node()
    thresholds = {stage.name: stage.threshold for stage in its_plan.live_stages}
    endpoints = [("small", "chat-small-1", 1.0)]
    first = revised(router_policy(owner, its_plan, thresholds=thresholds, endpoints=endpoints, revision=1), None, 0)
    again = revised(router_policy(owner, its_plan, thresholds=thresholds, endpoints=endpoints, revision=1), first, 0)
    emptied = revised(router_policy(owner, its_plan, thresholds=thresholds, endpoints=[], revision=1), again, 0)
    assert [first.policy_revision, again.policy_revision, emptied.policy_revision] == [1, 1, 2]
    # A policy that was deleted starts above the revision that routers may still hold.
    assert revised(emptied, None, 7).policy_revision == 8


def test_how_streams_are_held_and_compared_is_the_manifests() -> None:
    document = cascade_document([SMALL, LARGE])
    document["spec"]["routing"] = {
        "streaming": {"mode": "Gate", "gateTokens": 64, "keepAliveSeconds": 5},
        "shadowSampling": {"percent": "0.5", "maxConcurrent": 3},
        "accessLog": {"percent": "25"},
        "tracing": {"endpoint": "http://otel.observability:4318", "percent": "5"},
    }
    its_plan = plan({"small": [(1, 1, 1)], "large": [(8, 1, 1)]})
    policy = router_policy(
        cascade(document), its_plan, thresholds={"small": 0.8, "large": None}, endpoints=[], revision=1
    )
    assert policy.streaming == StreamingPolicy(mode="Gate", gate_tokens=64, keep_alive_seconds=5.0)
    assert policy.shadow == ShadowPolicy(share=0.005, max_concurrent=3)
    assert policy.access_log == AccessLogPolicy(share=0.25)
    assert policy.tracing == TracingPolicy(endpoint="http://otel.observability:4318", share=0.05)


def test_the_policy_names_every_replica_by_its_leader() -> None:
    owner, its_plan = single_node()
    config_map = next(m for m in rendered(owner, its_plan, IMAGES) if m["kind"] == "ConfigMap")
    policy = read_policy(config_map)
    assert policy is not None
    assert [len(stage.endpoints) for stage in policy.stages] == [2, 2, 1]
    hosts = {s["metadata"]["name"]: s["spec"]["serviceName"] for s in statefulsets("single-node")}
    for stage in policy.stages:
        for endpoint in stage.endpoints:
            assert endpoint.address == f"{endpoint.replica}-0.{hosts[endpoint.replica]}.serving.svc:8081"
        assert stage.context_window == 131072


def test_an_unreadable_policy_is_no_policy() -> None:
    assert read_policy(None) is None
    assert read_policy({"data": {"policy.json": "{"}}) is None
    assert read_policy({"data": {"policy.json": '{"cascade": 1}'}}) is None
