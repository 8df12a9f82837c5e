"""The operator is killed, its pods crash: it ends where it would have ended."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from kubernetes import client

from cascadia_api.cascade import CascadeDeployment
from cascadia_api.names import (
    GROUP,
    REPLICA_LABEL,
    STAGE_LABEL,
)
from cascadia_api.plan import CascadePlan
from cascadia_operator.manifests.rendering import rendered
from cascadia_operator.settings import Images
from tests.integration.conftest import GpuNodes
from tests.support.control_plane import crash, recover
from tests.support.operator_cascades import Cascades, example, shapes
from tests.support.operator_cases import plan
from tests.support.operator_process import OperatorUnderTest


def _kill_soon_after(
    moment: Callable[[], Any], cascades: Cascades, operator: OperatorUnderTest, jitter: random.Random
) -> None:
    operator.start()
    cascades.wait("the moment to kill at", moment)
    time.sleep(jitter.uniform(0, 0.3))
    operator.kill()


@pytest.mark.timeout(300)
def test_killed_at_ten_moments_it_ends_where_it_would_have_ended(
    gpu_nodes: GpuNodes, cascades: Cascades, operator: OperatorUnderTest
) -> None:
    gpu_nodes.add("gpu-2")
    gpu_nodes.add("gpu-3")
    chat = example("chat.yaml")
    del chat["spec"]["calibration"]
    jitter = random.Random(20261121)
    cascades.apply(chat)
    first: list[Callable[[], Any]] = [
        lambda: "looking after" in operator.log(),
        lambda: cascades.condition("chat", "Planned"),
        cascades.plans,
        lambda: cascades.replicas("chat"),
        lambda: cascades.pods("chat"),
        lambda: cascades.condition("chat", "Transitioning").get("reason") == "Done",
    ]
    for moment in first:
        _kill_soon_after(moment, cascades, operator, jitter)
    before = set(cascades.replicas("chat"))
    # A plan that shares some replicas at most, and whatever the planner chose, not those of its largest stage.
    chosen = max(cascades.plan_in_force("chat")["spec"]["plan"]["stages"], key=lambda stage: stage["gpus"])
    taken = {group["tensorParallel"] for group in chosen["replicas"]}
    reviewed: dict[str, list[tuple[int, int, int]]] = {
        "small": [(1, 1, 3)],
        "medium": [(2, 1, 2), (8, 1, 1)],
        "large": [(8, 1, 2)],
    }
    reviewed[chosen["name"]] = [(4, 1, 2)] if 8 in taken else [(8, 1, 1)]
    other = plan(reviewed)
    cascades.store_plan("reviewed", other)
    chat["spec"]["planRef"] = {"name": "reviewed"}
    cascades.apply(chat)
    second: list[Callable[[], Any]] = [
        lambda: cascades.plan_in_force("chat")["metadata"]["name"] == "reviewed",
        lambda: set(cascades.replicas("chat")) - before,
        lambda: len(set(cascades.replicas("chat")) - before) >= 4,
        lambda: before - set(cascades.replicas("chat")),
    ]
    for moment in second:
        _kill_soon_after(moment, cascades, operator, jitter)
    operator.start()
    found = cascades.wait_ready("chat")
    stored = cascades.plan_in_force("chat")
    manifest = CascadeDeployment.model_validate({k: v for k, v in found.items() if k != "status"})
    wanted = rendered(manifest, CascadePlan.model_validate(stored).spec.plan, Images())
    replicas = cascades.replicas("chat")
    # As many of each kind as an undisturbed roll-out makes, no duplicate, no orphan.
    expected: Counter[tuple[str, str, str]] = Counter(
        (
            m["metadata"]["labels"][STAGE_LABEL],
            m["metadata"]["labels"][f"{GROUP}/tensor-parallel"],
            m["metadata"]["labels"][f"{GROUP}/pipeline-parallel"],
        )
        for m in wanted
        if m["kind"] == "StatefulSet"
    )
    assert shapes(replicas) == expected
    assert {pod.metadata.labels[REPLICA_LABEL] for pod in cascades.pods("chat")} == set(replicas)
    others = {m["metadata"]["name"] for m in wanted if m["kind"] != "StatefulSet"}
    plans = {p["metadata"]["name"] for p in cascades.plans()}
    assert len(plans) == 2
    pods = {pod.metadata.name for pod in cascades.pods("chat")}
    assert set(cascades.leftovers()) == others | set(replicas) | pods | plans | {"chat-peers"}


def test_a_crash_and_its_end(
    gpu_nodes: GpuNodes, cascades: Cascades, operator: OperatorUnderTest, api_client: client.ApiClient
) -> None:
    operator.start()
    cascades.apply(example("pair.yaml"))
    cascades.wait_ready("pair")
    before = {n: s.metadata.uid for n, s in cascades.replicas("pair").items()}
    victim = next(p.metadata.name for p in cascades.pods("pair") if "-large-" in p.metadata.name)
    crash(api_client, cascades.namespace, victim)
    cascades.wait("pair not to be Ready", lambda: cascades.condition("pair", "Ready").get("status") == "False")
    recover(api_client, cascades.namespace, victim)
    cascades.wait_ready("pair")
    assert {n: s.metadata.uid for n, s in cascades.replicas("pair").items()} == before
