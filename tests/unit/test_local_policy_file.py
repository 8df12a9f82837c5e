from pathlib import Path
from typing import Any

import msgspec
import pytest

from cascadia_api.load import load_manifest
from cascadia_api.policy import (
    AccessLogPolicy,
    Endpoint,
    RouterConfig,
    ShadowPolicy,
    StreamingPolicy,
    TracingPolicy,
    decode_policy,
    encode_policy,
)
from cascadia_local.abilities import abilities_of
from cascadia_local.demo_calibration import EXAMPLE_ABILITIES, example_rows
from cascadia_local.engines import one_replica_a_stage
from cascadia_local.llamacpp_engine import LlamaCppConfig
from cascadia_local.plan_words import plan_words
from cascadia_local.policy_file import PolicyFile, build_policy
from cascadia_local.simulated_engine.recorded import encode_rows
from cascadia_operator.manifests.policy import router_policy
from cascadia_solver.inputs import PlanningInputs
from cascadia_solver.planner import plan_cascade
from cascadia_solver.transition import ObservedReplica, ReplicaState, next_step
from tests.support.embedded import MANIFEST, pair, plan_of
from tests.support.planning import cascade, probit_table

PLAN = plan_of([(1, 2)], [(4, 1)], threshold=0.8)
EXAMPLES = Path(__file__).parents[2] / "examples"


def replica(name: str, stage: str, gpus: int, state: ReplicaState = ReplicaState.Ready) -> ObservedReplica:
    return ObservedReplica(name, stage, "h100", gpus, 1, state)


def test_the_policy_lists_ready_replicas_of_each_stage_with_their_weights() -> None:
    world = [replica("s1", "small", 1), replica("s2", "small", 1, ReplicaState.Starting), replica("l1", "large", 4)]
    step = next_step(PLAN, world, capacity={"h100": 8}, strategy="InPlace")
    addresses = {r.name: (r.stage, f"127.0.0.1:{9000 + n}") for n, r in enumerate(world)}
    policy = build_policy(pair(), PLAN, step, addresses, 3)
    small, large = policy.stages
    assert [(e.replica, e.address, e.weight) for e in small.endpoints] == [("s1", "127.0.0.1:9000", 0.5)]
    assert [e.replica for e in large.endpoints] == ["l1"]
    assert (small.threshold, large.threshold) == (0.8, None)
    assert small.served_model_name == "meta-llama/Llama-3.1-8B-Instruct"
    assert small.context_window == 131_072
    assert "tools" in small.capabilities
    assert (policy.policy_revision, policy.plan_id, policy.request_timeout_seconds) == (3, PLAN.plan_id, 600)
    assert policy.pin_stages


def test_the_load_weights_of_unlike_replicas_get_from_the_planner_to_the_routers() -> None:
    one = cascade(models=("medium",), gpus=12, rate="9", objective={"minQuality": "0.5"})
    plan = plan_cascade(PlanningInputs(one, probit_table(400, 7, accuracies=(0.9,), models=("medium",))))
    planned = {group.tensor_parallel: group.weight for group in plan.stages[0].replicas}
    assert planned.keys() == {4, 8}
    assert planned[8] > 2 * planned[4] > 0
    world = [replica("wide", "medium", 8), replica("narrow", "medium", 4)]
    step = next_step(plan, world, capacity={"h100": 12}, strategy="InPlace")
    (stage,) = build_policy(one, plan, step, {r.name: ("medium", "127.0.0.1:1") for r in world}, 1).stages
    weights = {e.replica: e.weight for e in stage.endpoints}
    assert weights == pytest.approx({"wide": planned[8], "narrow": planned[4]})
    endpoints = [("medium", name, weight) for name, weight in zip(step.routed, step.weights, strict=True)]
    operators = router_policy(one, plan, thresholds={"medium": None}, endpoints=endpoints, revision=1)
    assert [e.weight for e in operators.stages[0].endpoints] == list(step.weights)


def test_how_streams_are_held_is_the_manifests() -> None:
    step = next_step(PLAN, [], capacity={"h100": 8}, strategy="InPlace")
    assert build_policy(pair(), PLAN, step, {}, 1).streaming == StreamingPolicy()
    gated = MANIFEST + "  routing: {streaming: {mode: Gate, gateTokens: 64, keepAliveSeconds: 5}, "
    gated += 'shadowSampling: {percent: "0.5"}, accessLog: {}, tracing: {endpoint: "http://127.0.0.1:4318", '
    gated += "headersSecretRef: {name: otel, key: headers}}}\n"
    cascade = load_manifest(gated, "gated.yaml").cascade
    policy = build_policy(cascade, PLAN, step, {}, 1)
    assert policy.streaming == StreamingPolicy(mode="Gate", gate_tokens=64, keep_alive_seconds=5.0)
    assert cascade.spec.routing.scorer_id == "logprob-mean@64"
    assert policy.shadow == ShadowPolicy(share=0.005, max_concurrent=2)
    assert policy.access_log == AccessLogPolicy(share=1.0)
    assert policy.tracing == TracingPolicy(endpoint="http://127.0.0.1:4318", share=1.0, headers="otel.headers")
    with pytest.raises(msgspec.ValidationError, match="gateTokens"):
        decode_policy(encode_policy(policy).replace(b'"Gate"', b'"Buffer"'))


def test_the_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    file = PolicyFile(tmp_path / "policy.json")
    assert file.revision == 0
    step = next_step(PLAN, [], capacity={"h100": 8}, strategy="InPlace")
    for revision in (1, 2):
        policy = build_policy(pair(), PLAN, step, {}, revision)
        file.write(policy)
        assert decode_policy(file.path.read_bytes()) == policy
        assert file.revision == revision
    assert [path.name for path in tmp_path.iterdir()] == ["policy.json"]


def test_real_engines_get_one_replica_a_stage() -> None:
    cut = one_replica_a_stage(PLAN)
    assert [[(g.count, g.weight) for g in stage.replicas] for stage in cut.stages] == [[(1, 1.0)], [(1, 1.0)]]
    assert cut.gpus == 5
    assert "small 1×TP1 ≥ 0.800 > large 1×TP4; 5 GPUs" in plan_words(cut)


def test_the_examples_calibration_set_is_what_the_package_writes() -> None:
    committed = (EXAMPLES / "chat-calibration.jsonl").read_bytes()
    assert committed == encode_rows(example_rows()), (
        "python -m cascadia_local.demo_calibration > examples/chat-calibration.jsonl"
    )
    assert len(committed) < 1_000_000, "a ConfigMap holds a mebibyte"


def test_abilities_are_read_off_a_calibration_set() -> None:
    from cascadia_solver.calibration import parse_calibration

    names = [ability.name for ability in EXAMPLE_ABILITIES]
    lines = (EXAMPLES / "chat-calibration.jsonl").read_bytes().splitlines()
    table, _ = parse_calibration(lines, models=names, scorer="logprob-mean")
    for told, read in zip(EXAMPLE_ABILITIES, abilities_of(names, table), strict=True):
        assert read.ability == pytest.approx(told.ability, abs=0.15)
        assert read.auroc == pytest.approx(told.auroc, abs=0.03)
        assert read.verbosity == pytest.approx(told.verbosity, abs=0.05)
    assert [a.name for a in abilities_of(names, None)] == names


@pytest.mark.parametrize(
    ("document", "read", "field"),
    [
        ({"admin": "127.0.0.1:70000"}, RouterConfig, "admin"),
        ({"admin": "127.0.0.1:1", "engine": "engine:65536"}, RouterConfig, "engine"),
        ({"replica": "small-1", "address": "[::1]:99999"}, Endpoint, "address"),
        ({"listen": "h:65536", "servedModelName": "small", "stage": "small"}, LlamaCppConfig, "listen"),
    ],
)
def test_ports_that_no_machine_has_are_refused(document: dict[str, str], read: Any, field: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=f"{field}: .*: a port is at most 65535"):
        msgspec.convert(document, type=read)
    assert msgspec.convert(document | {field: "h:65535"}, type=read)


def test_one_wrong_port_is_found_in_a_whole_policy() -> None:
    step = next_step(PLAN, [replica("s1", "small", 1)], capacity={"h100": 8}, strategy="InPlace")
    policy = encode_policy(build_policy(pair(), PLAN, step, {"s1": ("small", "127.0.0.1:8081")}, 1))
    assert decode_policy(policy).stages[0].endpoints[0].address == "127.0.0.1:8081"
    with pytest.raises(msgspec.ValidationError, match=r"address: .*:98081: a port is at most 65535"):
        decode_policy(policy.replace(b":8081", b":98081"))
