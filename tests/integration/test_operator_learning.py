"""The operator learns from real routers and simulated engines, on a real control plane."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from kubernetes import client

from cascadia_operator.manifests.plan_object import CORRECTIONS_ANNOTATION
from cascadia_solver.catalogue.gpus import gpu_facts
from cascadia_solver.catalogue.models import model_facts
from cascadia_solver.live_correction import CorrectionKey, LiveCorrections, scaled
from cascadia_solver.roofline import Shape, step_model
from tests.integration.conftest import GpuNodes
from tests.support.loopback_pods import LoopbackPods, Traffic
from tests.support.operator_cascades import Cascades, example
from tests.support.operator_cases import plan
from tests.support.operator_process import OperatorUnderTest, its_own_rights

L8, H100 = model_facts("meta-llama/Llama-3.1-8B-Instruct"), gpu_facts("H100-SXM-80GB")
OF_SMALL = CorrectionKey(L8.name, H100.name, "TP1xPP1", "sglang 0.5.23")
TIMES = 2.0
"""So many times longer than predicted the small model's engine takes."""
ASKING = ("--router-acknowledgement", "http", "--engine-look-seconds", "2")
LONG_S = 180.0


@pytest.fixture
def pods(cascades: Cascades, api_client: client.ApiClient, tmp_path: Path) -> Iterator[LoopbackPods]:
    made = LoopbackPods(cascades, api_client, tmp_path)
    yield made
    made.stop()


@pytest.fixture
def asking(
    operator: OperatorUnderTest, cascades: Cascades, api_client: client.ApiClient, tmp_path: Path
) -> Iterator[OperatorUnderTest]:
    """An operator that may ask routers, and has no more rights in the cluster than without."""
    with its_own_rights(operator, api_client, cascades.namespace, tmp_path):
        yield operator
        operator.stop()


@pytest.mark.timeout(600)
def test_a_slow_engine_is_learnt_of_kept_and_planned_with(
    gpu_nodes: GpuNodes,
    cascades: Cascades,
    asking: OperatorUnderTest,
    api_client: client.ApiClient,
    pods: LoopbackPods,
) -> None:
    core: Any = client.CoreV1Api(api_client)

    def windows() -> list[float]:
        """What is kept of the small model's decoding: logarithms of observed over predicted."""
        kept = core.list_namespaced_config_map(cascades.namespace, field_selector="metadata.name=pair-learnt").items
        if not kept:
            return []
        known = LiveCorrections.from_json(json.loads(kept[0].data["corrections.json"])).by_key.get(OF_SMALL)
        return list(known.decode) if known is not None else []

    def is_true(kind: str) -> bool:
        return bool(cascades.condition("pair", kind).get("status") == "True")

    cascades.store_plan("reviewed", plan({"small": [(1, 1, 1)], "large": [(4, 1, 1)]}, cascade="pair"))
    pair = example("pair.yaml")
    pair["spec"]["planRef"] = {"name": "reviewed"}
    asking.start(*ASKING)
    cascades.apply(pair)
    cascades.wait("both pods to have addresses", lambda: sum(bool(p.status.pod_ip) for p in cascades.pods("pair")) == 2)
    step = step_model(L8, H100, Shape(1, 1), "bf16")
    pods.start("pair", {"small": scaled(step, TIMES, TIMES), "large": step})
    cascades.wait("pair to be Ready", lambda: is_true("Ready"), LONG_S)

    with Traffic(pods.of("small").engine_url, rate=12.0, lengths=[(200, 20), (400, 30), (600, 40)]):
        cascades.wait("a correction to be believed", lambda: cascades.get("pair")["status"].get("corrections"), LONG_S)
        cascades.wait("metrics to be read", lambda: is_true("MetricsAvailable"), LONG_S)
        assert math.exp(median(windows())) == pytest.approx(TIMES, rel=0.25)
        [said] = cascades.get("pair")["status"]["corrections"]
        assert (said["model"], said["shape"], said["engineVersion"]) == (L8.name, "TP1xPP1", "sglang 0.5.23")
        assert 1.2 < float(said["decode"]) < TIMES * 1.25

        # Killed, and started again: it goes on from what is kept.
        asking.kill()
        before = windows()
        asking.start(*ASKING)
        cascades.wait("more to be learnt", lambda: len(windows()) > len(before), LONG_S)
        assert windows()[: len(before)] == before

    # An engine that is gone is named; what was learnt stays.
    pods.of("small").engine.ask_to_stop()
    gone = f"of 1 they cannot be: {pods.of('small').name}: its router says 503"
    cascades.wait(
        "the engine to be missed", lambda: gone in cascades.condition("pair", "MetricsAvailable")["message"], LONG_S
    )
    assert cascades.get("pair")["status"]["corrections"]

    # The next plan is made with it.
    del pair["spec"]["planRef"]
    cascades.apply(pair)
    made = cascades.wait(
        "a plan", lambda: [each for each in cascades.plans() if each["metadata"]["name"] != "reviewed"], LONG_S
    )
    assert "live correction of roofline" in made[0]["spec"]["plan"]["latency"]["source"]
    [[*key, factor]] = json.loads(made[0]["metadata"]["annotations"][CORRECTIONS_ANNOTATION])
    assert (CorrectionKey(*key), factor > 1.2) == (OF_SMALL, True)
    assert "Traceback" not in asking.log()

    # What was learnt goes with the cascade.
    cascades.delete("pair")
    cascades.wait("the ConfigMap to go", lambda: not windows(), LONG_S)
