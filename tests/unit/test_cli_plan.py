"""`cascadia plan` and `render` over the real planner."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cascadia_api.plan import Plan
from cascadia_cli.main import main
from tests.support.manifests import cascade_manifest

ROOT = Path(__file__).parents[2]
PAIR = str(ROOT / "examples" / "pair.yaml")

_plans: dict[str, Any] = {}


@pytest.fixture
def planned(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The plan of the smallest example as `-o json` prints it; made once."""
    if not _plans:
        assert main(["plan", PAIR, "-o", "json"]) == 0
        _plans.update(json.loads(capsys.readouterr().out))
    return dict(_plans)


def test_json_holds_the_contract(planned: dict[str, Any]) -> None:
    """The fields that scripts may rely on, by name."""
    assert planned["schemaVersion"] == 1
    assert planned["planId"].startswith("p-")
    assert len(planned["thresholds"]) == len(planned["stages"]) == 2
    assert planned["ladder"]
    assert planned["quality"].keys() >= {"mean", "lowerBound", "source"}
    assert planned["latency"].keys() >= {"p50Ms", "p95Ms", "p99Ms"}
    assert "costPerHour" in planned
    assert Plan.model_validate(planned | {"costPerHour": 9 * 2.49}).for_json()["costPerHour"] == 22.41
    for stage in planned["stages"]:
        assert stage.keys() >= {"name", "reach", "gpus", "pool", "replicas", "p95Ms"}
        for replica in stage["replicas"]:
            assert replica.keys() >= {"tensorParallel", "pipelineParallel", "count", "weight"}
    assert planned["frontier"]
    assert planned["solver"].keys() >= {"status", "gap", "elapsedMs"}
    assert Plan.model_validate(planned).gpus <= 8


def test_yaml_table_and_plot_tell_of_the_same_plan(
    planned: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "plan.svg"
    assert main(["plan", PAIR, "--plot", str(picture), "-o", "yaml"]) == 0
    out, err = capsys.readouterr()
    document = yaml.safe_load(out)
    document["solver"]["elapsedMs"] = planned["solver"]["elapsedMs"]
    assert document == planned
    assert f"drew {picture}" in err
    assert picture.stat().st_size > 10_000
    page = tmp_path / "plan.html"
    assert main(["plan", PAIR, "--explain", "--frontier", "--plot", str(page)]) == 0
    out, err = capsys.readouterr()
    text = page.read_text()
    assert text.count("<svg") == 1
    assert "The quality floor of 0.8 binds: at 0.79, " in text
    err = err.replace(f"drew {page}\n", "")
    assert planned["planId"] in out
    assert "Why" in out
    assert "Frontier" in out
    assert err == "", "nothing but results where all is well"


def test_free_gpus_of_nodes_are_kept_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", PAIR, "--free", "4,2,1", "-o", "json"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert sum(stage["gpus"] for stage in stages) <= 7
    assert main(["plan", PAIR, "--free", "2,2,1"]) == 3
    assert "would do by number, but the free GPUs lie scattered over nodes" in capsys.readouterr().err
    for wrong, said in (("2,x", "'2,x' is not a list of numbers"), ("b200=2", "pool 'b200' is not in the manifest")):
        assert main(["plan", PAIR, "--free", wrong]) == 2
        assert said in capsys.readouterr().err


def test_a_trace_takes_the_place_of_the_workload(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [{"timestampMs": 500 * k, "inputTokens": 400 + k % 7, "outputTokens": 90 + k % 5} for k in range(400)]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"timestampMs": 1}\n')
    assert main(["plan", PAIR, "--trace", str(trace), "-o", "json"]) == 0
    out, err = capsys.readouterr()
    demand = json.loads(out)["demand"]
    assert demand["source"] == "Trace"
    assert demand["requestsPerSecond"] == pytest.approx(2, rel=0.01)
    assert demand["inputTokensMean"] == pytest.approx(403, rel=0.01)
    assert "note: 1 row was skipped in the trace: line 401" in err


def test_the_calibration_set_is_found_beside_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The ConfigMap's name and `.jsonl`; a set that lacks the scorer is refused by its own name."""
    manifest = tmp_path / "chat.yaml"
    manifest.write_text(yaml.safe_dump(cascade_manifest(calibration={"configMapRef": {"name": "worth"}})))
    (tmp_path / "worth.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "id": str(k),
                    "inputTokens": 9,
                    "answers": {
                        m: {"scores": {"judge": 0.5}, "quality": 1, "outputTokens": 9} for m in ("small", "large")
                    },
                }
            )
            + "\n"
            for k in range(60)
        )
    )
    assert main(["plan", str(manifest)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{tmp_path / 'worth.jsonl'}: " in err
    assert "judge" in err


def test_without_the_config_map_it_says_what_stands_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tmp_path / "chat.yaml"
    manifest.write_text(yaml.safe_dump(cascade_manifest(calibration={"configMapRef": {"name": "worth"}})))
    assert main(["plan", str(manifest), "-o", "json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["quality"]["source"] == "Prior"
    assert "holds the ConfigMap worth: published accuracies stand in" in err
    assert "--calibration FILE" in err


def test_too_few_gpus_are_infeasible_with_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = cascade_manifest()
    document["spec"]["workload"]["requestsPerSecond"] = "200"
    manifest = tmp_path / "chat.yaml"
    manifest.write_text(yaml.safe_dump(document))
    assert main(["plan", str(manifest), "-o", "json"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "cascadia: no plan is feasible (InsufficientGPUs): " in err
    assert "  GPUs of pool h100: needed " in err
    assert "available 8\n" in err
    assert "  nearest feasible: " in err


def test_render_of_a_stored_plan(planned: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = tmp_path / "plan.json"
    stored.write_text(json.dumps(planned))
    assert main(["render", PAIR, "--plan", str(stored), "--engine-image", "registry.local/sglang:1"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    manifests = list(yaml.safe_load_all(out))
    statefulsets = [m for m in manifests if m["kind"] == "StatefulSet"]
    count = sum(replica["count"] for stage in planned["stages"] for replica in stage["replicas"])
    assert len(statefulsets) == count
    assert "registry.local/sglang:1" in out
    assert "kubectl create secret generic" in out
    assert all(m["kind"] != "Secret" for m in manifests)


def test_render_refuses_a_plan_of_another_scorer(
    planned: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = tmp_path / "plan.json"
    stored.write_text(json.dumps(planned | {"scorer": "logprob-min"}))
    assert main(["render", PAIR, "--plan", str(stored)]) == 2
    assert "its thresholds are for scores of logprob-min" in capsys.readouterr().err


def test_render_refuses_another_cascades_plan(
    planned: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = tmp_path / "plan.json"
    stored.write_text(json.dumps(planned | {"cascade": "other"}))
    assert main(["render", PAIR, "--plan", str(stored)]) == 2
    assert f"{stored}: is a plan of other (small, large), not of pair (small, large)" in capsys.readouterr().err
