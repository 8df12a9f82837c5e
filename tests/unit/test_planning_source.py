"""Where step times come from as a manifest says it: read, refused, planned with by operator, plan and up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cascadia_api.cascade import Corrections, Planning
from cascadia_api.errors import InputError
from cascadia_api.load import load_manifest
from cascadia_cli import running
from cascadia_cli.main import main
from cascadia_cli.step_times import planned_cost_source
from cascadia_local.session import Options
from cascadia_operator.manifests.plan_object import inputs_digest, placement_digest
from cascadia_operator.planning import PlanningJob, plan_job
from cascadia_solver import sources
from cascadia_solver.catalogue.gpus import gpu_facts
from cascadia_solver.catalogue.models import model_facts
from cascadia_solver.inputs import PlanningInputs
from cascadia_solver.live_correction import CorrectionKey, LiveCorrections, LiveSource
from cascadia_solver.measured_tables import MeasuredTables
from cascadia_solver.roofline import Roofline, Shape
from cascadia_solver.sources import parse_corrections, source_of

PAIR = Path(__file__).parents[2] / "examples" / "pair.yaml"
L8, H100 = model_facts("meta-llama/Llama-3.1-8B-Instruct"), gpu_facts("H100-SXM-80GB")
CHAT_CORRECTIONS = {"configMapRef": {"name": "learnt"}}


def learnt(times: float, *versions: str) -> str:
    corrections = LiveCorrections()
    for version in versions or ("0.5.23",):
        for tensor in (1, 2, 4, 8):
            for _ in range(60):
                key = CorrectionKey(L8.name, H100.name, str(Shape(tensor, 1)), f"sglang {version}")
                corrections = corrections.observed(key, "decode", times, 1.0)
    return json.dumps(corrections.to_json())


def document(**planning: Any) -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load(PAIR.read_text())
    made["spec"] |= {"planning": planning} if planning else {}
    return made


def manifest_file(folder: Path, planning: dict[str, Any], data: dict[str, str] | None = None) -> Path:
    documents = [document(**planning)]
    if data is not None:
        documents.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "learnt"}, "data": data})
    file = folder / "pair.yaml"
    file.write_text(yaml.safe_dump_all(documents))
    return file


def job(learnt: str = "", **planning: Any) -> PlanningJob:
    return PlanningJob(document(**planning), (), {}, 600.0, corrections=learnt)


def test_a_manifest_chooses_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    corrections = parse_corrections(learnt(1.4))
    measured = Planning(cost_source="Measured", engine_version="0.5.9")
    assert source_of(None) == source_of(Planning(cost_source="Roofline")) == Roofline()
    assert source_of(Planning(), corrections) == LiveSource(Roofline(), corrections, "sglang 0.5.23")
    monkeypatch.setattr(sources, "find_spec", lambda _: object())
    assert source_of(measured) == MeasuredTables(version="0.5.9")
    monkeypatch.setattr(sources, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"spec.planning.costSource: Measured needs aiconfigurator-core where plans"):
        source_of(measured)
    # What a flag says instead is not the manifest's to answer for.
    assert source_of(measured, kind="roofline") == Roofline()


def test_corrections_of_several_versions_need_the_engines_version() -> None:
    both = parse_corrections(learnt(1.4, "0.5.9", "0.5.23"))
    reference = Corrections.model_validate(CHAT_CORRECTIONS)
    with pytest.raises(InputError, match=r"spec.planning.engineVersion: .* name one of sglang:0.5.23, sglang:0.5.9"):
        source_of(Planning(corrections=reference), both)
    chosen = source_of(Planning(corrections=reference, engine_version="0.5.9"), both)
    assert chosen == LiveSource(Roofline(), both, "sglang 0.5.9")


@pytest.mark.parametrize(
    ("planning", "words"),
    [
        ({"engineVersion": "0.5.23"}, "spec.planning.engineVersion: engineVersion says whose tables or corrections"),
        ({"costSource": "measured"}, "spec.planning.costSource"),
        ({"costSource": "Measured", "engineVersion": "latest"}, "spec.planning.engineVersion"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(tmp_path: Path, planning: dict[str, Any], words: str) -> None:
    file = manifest_file(tmp_path, planning)
    with pytest.raises(InputError, match=words):
        load_manifest(file.read_text(), str(file))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "does not hold the ConfigMap learnt: add it to the file, or give its file with --live"),
        ({"a.txt": "{}"}, "needs exactly one key that ends in .json, the file of corrections: it has none"),
        ({"a.json": "{}", "b.json": "{}"}, "it has a.json, b.json"),
        ({"live.json": "{"}, "not JSON: line 1, column 2"),
        ({"live.json": "[]"}, "schemaVersion: must be 1"),
    ],
)
def test_corrections_that_cannot_be_used_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: dict[str, str] | None, words: str
) -> None:
    file = manifest_file(tmp_path, {"corrections": CHAT_CORRECTIONS}, data)
    assert main(["plan", str(file)]) == 2
    said = capsys.readouterr().err
    assert f"{file}: spec.planning.corrections" in said
    assert words in said


def test_plan_and_up_take_what_the_manifest_says_and_flags_go_before_it(tmp_path: Path) -> None:
    text = learnt(1.4)
    manifest = load_manifest(
        manifest_file(tmp_path, {"corrections": CHAT_CORRECTIONS}, {"live.json": text}).read_text(), "pair.yaml"
    )
    said = planned_cost_source(manifest)
    assert said == LiveSource(Roofline(), parse_corrections(text), "sglang 0.5.23")
    assert planned_cost_source(manifest, engine="vllm") == LiveSource(
        Roofline(engine="vllm"), parse_corrections(text), "vllm"
    )
    other = tmp_path / "live.json"
    other.write_text(learnt(2.0))
    flagged = planned_cost_source(manifest, live=str(other))
    assert isinstance(flagged, LiveSource)
    assert flagged.corrections == parse_corrections(other.read_text())
    # Simulated engines have the step times that the manifest chooses; what the run learns comes on top.
    options = Options(base=said, corrections=LiveCorrections())
    assert options.cost == LiveSource(said, LiveCorrections(), "sglang simulated")
    assert Options(base=said).cost is said


def test_the_example_plans_with_its_own_corrections() -> None:
    manifest = load_manifest((PAIR.parent / "engines.yaml").read_text(), "engines.yaml")
    inputs = PlanningInputs(manifest.cascade, cost=planned_cost_source(manifest))
    small, large = inputs.sources
    made, uncorrected = (source.step_model(L8, H100, Shape(1, 1), "bf16") for source in (small, Roofline()))
    assert 1.02 < made.weight_seconds / uncorrected.weight_seconds < 1.09
    assert (made.prefix_hit, made.chunk_tokens) == (0.8, 2048.0)
    other = model_facts("meta-llama/Llama-3.1-70B-Instruct")
    plain = Roofline().step_model(other, H100, Shape(4, 1), "bf16")
    assert large.step_model(other, H100, Shape(4, 1), "bf16") == plain._replace(prefix_hit=0.5)


def test_up_runs_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = manifest_file(tmp_path, {"corrections": CHAT_CORRECTIONS}, {"live.json": learnt(1.4)})
    taken: list[Options] = []

    def up(*_: Any, options: Options, **__: Any) -> int:
        taken.append(options)
        return 0

    monkeypatch.setattr("cascadia_local.main.up", up)
    flags: dict[str, Any] = dict.fromkeys(
        ("calibration", "trace", "limit", "model_file", "port", "api_keys", "secrets", "live")
    )
    assert running.run_up(str(file), leave=False, engine="simulated", time_scale=1.0, keep=False, **flags) == 0
    assert taken[0].base == planned_cost_source(load_manifest(file.read_text(), str(file)))


def test_the_operator_plans_with_corrections(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, slower = plan_job(job()), plan_job(job(learnt(1.6), corrections=CHAT_CORRECTIONS))
    assert plain.plan is not None
    assert slower.plan is not None
    assert "live correction of roofline" in slower.plan["latency"]["source"]
    assert slower.plan["planId"] != plain.plan["planId"]
    monkeypatch.setattr(sources, "find_spec", lambda _: None)
    refused = plan_job(job(costSource="Measured"))
    assert refused.failure is not None
    assert refused.failure.final
    assert refused.failure.trouble.reason == "InvalidSpec"
    assert "spec.planning.costSource: Measured needs" in refused.failure.trouble.message


def test_the_operator_plans_again_when_it_changes() -> None:
    def digests(planning: dict[str, Any], learnt: str = "") -> tuple[str, str]:
        cascade = load_manifest(yaml.safe_dump(document(**planning)), "pair.yaml").cascade
        return inputs_digest(cascade, "", learnt), placement_digest(cascade, learnt)

    variants = [
        digests({}),
        digests({"costSource": "Measured"}),
        digests({"costSource": "Measured", "engineVersion": "0.5.9"}),
        digests({"corrections": CHAT_CORRECTIONS}, "a"),
        digests({"corrections": CHAT_CORRECTIONS}, "b"),
    ]
    for k in range(2):
        assert len({variant[k] for variant in variants}) == len(variants)
