"""Settings of a manifest's engines that change what a plan says: chunk sizes, and prefix-cache hits by model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cascadia_api.clock import ScaledClock
from cascadia_api.engine_args import chunked_prefill_size
from cascadia_api.errors import InputError
from cascadia_local.engine_commands import SimulationSettings
from cascadia_local.engines import engine_starter
from cascadia_local.simulated_engine.config import decode_config
from cascadia_local.simulated_engine.difficulty import default_abilities
from cascadia_operator.manifests.plan_object import inputs_digest, placement_digest
from cascadia_solver.batcher import Batcher
from cascadia_solver.catalogue.gpus import gpu_facts
from cascadia_solver.catalogue.models import model_facts
from cascadia_solver.engine_settings import WHOLE_PROMPTS_TOKENS, EngineSettings, settings_of
from cascadia_solver.inputs import PlanningInputs
from cascadia_solver.live_correction import LiveCorrections, LiveSource
from cascadia_solver.measured_tables import MeasuredTables
from cascadia_solver.planner import plan_cascade
from cascadia_solver.prediction import Prediction, predict
from cascadia_solver.roofline import Roofline, Shape
from cascadia_solver.transition import DesiredReplica
from tests.support.planning import cascade, probit_table
from tests.unit.test_solver_perf_sources import TruthAsTables

H100 = gpu_facts("H100-SXM-80GB")
L8 = model_facts("meta-llama/Llama-3.1-8B-Instruct")
ONE = Shape(1, 1)


def predicted(chunk: int | None) -> Prediction:
    return predict(L8, H100, ONE, "bf16", 6000, 200, rate=2.0, chunk_tokens=chunk)


def inputs(small: Mapping[str, Any], **workload: int) -> PlanningInputs:
    manifest = cascade(
        models=("small", "medium"),
        gpus=16,
        rate="4",
        objective={"minQuality": "0.75"},
        model_fields={"small": {"minReplicas": 1, **small}, "medium": {"minReplicas": 1}},
        workload=dict(workload),
    )
    return PlanningInputs(manifest, probit_table(600, 7, models=("small", "medium"), accuracies=(0.72, 0.86)))


def arguments(*extra: str) -> dict[str, Any]:
    return {"engine": {"extraArgs": list(extra)}}


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ((), None),
        (("--chunked-prefill-size", "4096"), 4096),
        (("--chunked-prefill-size=2048",), 2048),
        (("--chunked", "4096", "--mem-fraction-static", "0.8"), 4096),
        (("--chunked-prefill-size", "4096", "--chu=-1"), -1),
        (("--chat-template", "chatml", "--ch=7"), None),
        (("--schedule-policy", "fcfs"), None),
    ],
)
def test_the_chunk_size_is_read_as_sglangs_parser_reads_it(given: tuple[str, ...], size: int | None) -> None:
    assert chunked_prefill_size(given) == size


@pytest.mark.parametrize("given", [("--chunked-prefill-size",), ("--chunked-prefill-size", "8k"), ("--chunked=",)])
def test_a_chunk_size_that_is_no_number_is_refused_where_it_stands(given: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"spec.models\[0\].engine.extraArgs: --chunked-prefill-size is '.*': give a"):
        plan_cascade(inputs(arguments(*given)))


def test_prompts_in_one_piece_are_limited_by_what_a_step_takes() -> None:
    spec = inputs(arguments("--chunked-prefill-size", "-1")).cascade.spec
    assert settings_of(spec, spec.models[0]) == EngineSettings(0, WHOLE_PROMPTS_TOKENS)
    assert settings_of(spec, spec.models[1]) == EngineSettings()


def test_smaller_chunks_leave_more_cache_and_take_more_steps() -> None:
    made = [predicted(chunk) for chunk in (1024, 2048, 8192, 16384)]
    default = predicted(None)
    assert default.ttft == made[2].ttft
    assert default.kv_capacity_tokens == made[2].kv_capacity_tokens
    assert made[2].extrapolates == ("prompts in chunks of 8192 tokens",)
    room = [each.kv_capacity_tokens for each in made]
    # SGLang sets memory aside for the activations of a chunk, 1.5 MiB a token, but 10 GiB at least.
    assert room[0] == room[1] > room[2] > room[3]
    assert (room[2] - room[3]) * 2 * 8 * 128 * 2 * 32 == pytest.approx(8192 * 1.5 * 2**20, rel=1e-3)
    medians = [each.ttft.p50_ms for each in made if each.ttft is not None]
    assert medians[0] > medians[1] > medians[2]


@pytest.mark.parametrize("chunk", [0, -1])
def test_predictions_want_a_positive_chunk(chunk: int) -> None:
    with pytest.raises(InputError, match=f"chunked-prefill-size: must be at least 1 token, not {chunk}"):
        predicted(chunk)


def test_every_source_knows_the_chunk_size() -> None:
    truth = Roofline().step_model(L8, H100, ONE, "bf16")
    measured = MeasuredTables(open_tables=lambda *_: TruthAsTables(truth))
    for source in (Roofline(), measured, LiveSource(measured, LiveCorrections(), "sglang")):
        plain, short = (source.step_model(L8, H100, ONE, "bf16", chunk_tokens=size) for size in (None, 1024))
        assert (plain.chunk_tokens, short.chunk_tokens) == (8192.0, 1024.0)
        assert short.kv_capacity_tokens > plain.kv_capacity_tokens
        assert source.memory_use(L8, H100, ONE, "bf16", chunk_tokens=1024).kv_capacity_tokens == (
            short.kv_capacity_tokens
        )
        assert Batcher(short).submit("a", 0.0, 3000, 10) is None


def test_plans_take_each_models_own_settings() -> None:
    plain, set_up = inputs({}), inputs(arguments("--chunked-prefill-size", "512"))
    steps = [
        [source.step_model(L8, H100, ONE, "bf16").chunk_tokens for source in each.sources] for each in (plain, set_up)
    ]
    assert steps == [[8192.0, 8192.0], [512.0, 8192.0]]
    before, after = plan_cascade(plain), plan_cascade(set_up)
    assert before.plan_id != after.plan_id
    assert "small: prompts in chunks of 512 tokens" in after.latency.extrapolates
    assert before.latency.time_to_first_token_p95_ms < after.latency.time_to_first_token_p95_ms


def test_a_models_own_hits_go_before_the_workloads() -> None:
    both = inputs({"prefixCacheHitPercent": 0}, prefixCacheHitPercent=40)
    own = inputs({"prefixCacheHitPercent": 70})
    shares = [[source.step_model(L8, H100, ONE, "bf16").prefix_hit for source in each.sources] for each in (both, own)]
    assert shares == [[0.0, 0.4], [0.7, 0.0]]
    plain, with_hits = plan_cascade(inputs({})), plan_cascade(own)
    assert with_hits.plan_id != plain.plan_id
    assert with_hits.latency.time_to_first_token_p95_ms < plain.latency.time_to_first_token_p95_ms
    assert [said for said in with_hits.latency.extrapolates if "prefix cache" in said] == [
        "small: 70 % of prompt tokens from the prefix cache, the same share of every prompt"
    ]


@pytest.mark.parametrize(
    "change",
    [
        arguments("--chunked-prefill-size=512"),
        arguments("--chunked-prefill-size=many"),
        {"prefixCacheHitPercent": 70},
        {"configJson": "{}"},
    ],
    ids=["chunks", "wrong chunks", "hits", "configuration"],
)
def test_the_operator_plans_again_when_they_change(change: dict[str, Any]) -> None:
    before, after = inputs({}).cascade, inputs(change).cascade
    assert inputs_digest(before, "") != inputs_digest(after, "")
    assert placement_digest(before) != placement_digest(after)
    other = inputs(arguments("--schedule-policy", "fcfs")).cascade
    assert inputs_digest(before, "") == inputs_digest(other, "")


def test_simulated_engines_are_set_up_as_planned(tmp_path: Path) -> None:
    manifest = inputs({"prefixCacheHitPercent": 70} | arguments("--chunked-prefill-size=512")).cascade
    settings = SimulationSettings(
        abilities={ability.name: ability for ability in default_abilities(["small", "medium"])},
        clock=ScaledClock(1.0, 0.0),
    )
    command = engine_starter(manifest, settings, kind="simulated")
    steps = []
    for stage in ("small", "medium"):
        command(DesiredReplica(stage, "h100", 4, 1, 1.0), "127.0.0.1:8101", tmp_path / stage)
        steps.append(decode_config((tmp_path / stage).read_bytes()).step_model)
    assert [step.chunk_tokens for step in steps] == [512.0, 8192.0]
    assert [step.prefix_hit for step in steps] == [0.7, 0.0]
