"""What the commands print and draw, from plans that are given."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from cascadia_api.cascade import CascadeDeployment, LatencyTarget
from cascadia_api.crd import crds
from cascadia_api.load import load_manifest
from cascadia_api.plan import Plan, PlanAlternative
from cascadia_cli.figures import duration, money, percent
from cascadia_cli.main import main
from cascadia_cli.plan_table import plan_view, print_view
from cascadia_cli.planning import with_gpus
from cascadia_cli.plot import plan_figure, write_plot
from cascadia_cli.status_view import status_view
from tests.support.manifests import cascade_manifest
from tests.support.plans import example_plan

CHAT = Path(__file__).parents[2] / "examples" / "chat.yaml"


@pytest.fixture(scope="module")
def chat() -> CascadeDeployment:
    return load_manifest(CHAT.read_text(), str(CHAT)).cascade


def shown(plan: Plan, cascade: CascadeDeployment, capsys: pytest.CaptureFixture[str], **flags: Any) -> str:
    print_view(lambda width: plan_view(plan, cascade, width=width, **flags))
    return capsys.readouterr().out


def test_the_table_says_what_runs_where(chat: CascadeDeployment, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(example_plan(), chat, capsys)
    large = next(line for line in text.splitlines() if line.startswith(" large "))
    assert re.split(r"\s{2,}", large.strip()) == [
        "large", "20 %", "every answer", "2 × TP8 + 1 × TP4", "20", "█" * 20, "60 %", "7.3 s",
    ]  # fmt: skip
    assert "0.874, at least 0.851 with 95 % confidence (floor 0.86, 1,500 requests)" in text
    assert "p50 2.6 s  p90 7.8 s  p95 9.8 s  p99 15 s  (±10 %, roofline)" in text
    assert "32 of 32 H100-SXM-80GB in pool h100" in text
    assert "79.68 an hour" in text
    assert "an answer of small 211 (manifest)" in text
    assert "large alone" in text
    assert "! an example" in text
    assert "Frontier" not in text
    assert not any(line.endswith(" ") for line in text.splitlines())


def test_a_narrow_terminal_cuts_no_figure_of_the_frontier(chat: CascadeDeployment) -> None:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(plan_view(example_plan(), chat, frontier=True, width=80))
    rows = capture.get().partition("Frontier")[2].partition("Not chosen")[0]
    assert "GPUs of small, medium, large" in rows
    assert "…" not in rows
    for point in example_plan().frontier:
        assert "/".join(map(str, point.gpus)) in rows
        assert money(point.cost_per_hour) in rows


def test_frontier_and_explanation_on_request(chat: CascadeDeployment, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(example_plan(), chat, capsys, frontier=True, explanation=["the quality floor binds"])
    assert "• the quality floor binds" in text
    chosen = next(line for line in text.splitlines() if "►" in line)
    assert "4/8/20" in chosen
    assert "≥0.810  ≥0.770  all" in chosen


def test_a_plan_from_a_prior_claims_no_bound(chat: CascadeDeployment, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(example_plan(quality={"mean": 0.86, "source": "Prior"}), chat, capsys)
    assert "0.860 (floor 0.86); from published accuracies, so no bound is claimed" in text


def test_a_narrow_terminal_keeps_every_number(chat: CascadeDeployment, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    console = Console(width=100, file=None, force_terminal=False, color_system=None)
    console.print(plan_view(example_plan(), chat, width=100))
    large = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(" large "))
    for word in ("20 %", "every answer", "2 × TP8 + 1 × TP4", "60 %", "7.3 s"):
        assert word in large


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [(None, "–"), (3.14, "3.1 ms"), (640, "640 ms"), (9800, "9.8 s"), (150_000, "2.5 min")],
)
def test_durations(milliseconds: float | None, words: str) -> None:
    assert duration(milliseconds) == words


def test_shares_and_money() -> None:
    assert [percent(s) for s in (0, 0.004, 0.45, 1)] == ["0 %", "0.4 %", "45 %", "100 %"]
    assert [percent(s) for s in (1e-7, 0.0004, 0.994, 0.998, 0.999999)] == [
        "< 0.01 %", "0.04 %", "99 %", "99.8 %", "99.9999 %",
    ]  # fmt: skip
    assert percent(1 - 1e-12) == "100 %"  # a sum of shares
    assert [money(m) for m in (None, 79.68, 1234.5)] == ["–", "79.68", "1,234.50"]


def test_the_picture_names_the_stages_and_the_promise(chat: CascadeDeployment, tmp_path: Path) -> None:
    path = tmp_path / "plan.svg"
    write_plot(example_plan(), chat, str(path))
    words = " ".join(re.findall(r"<!-- (.*?) -->", path.read_text()))
    assert "chat: quality ≥ 0.851 (95 % sure), p95 9.8 s on 32 of 32 GPUs, 79.68 an hour" in words
    for word in ("small", "medium", "large", "this plan", "quality floor 0.86", "2 × TP8 + 1 × TP4"):
        assert word in words
    assert ET.fromstring(path.read_text()).tag.endswith("svg")


def test_the_picture_draws_the_target_on_its_axis(chat: CascadeDeployment) -> None:
    """Of several, the one of end-to-end p95: that is the axis."""
    wanted = [("EndToEnd", 95, 15000), ("EndToEnd", 50, 4000), ("TimeToFirstToken", 95, 2000)]
    targets = [LatencyTarget(metric=m, percentile=p, milliseconds=ms) for m, p, ms in wanted]  # type: ignore[arg-type]
    objective = chat.spec.objective.model_copy(update={"targets": targets})
    cascade = chat.model_copy(update={"spec": chat.spec.model_copy(update={"objective": objective})})
    above = plan_figure(example_plan(), cascade).axes[0]
    assert [words for text in above.texts if "target" in (words := text.get_text())] == ["p95 target 15 s"]
    assert above.get_xlim()[0] < 15 < above.get_xlim()[1]


def test_names_in_the_picture_cover_neither_each_other_nor_points(chat: CascadeDeployment) -> None:
    """Plans that lie close together: what is not chosen is just above and left of the plan, where its name would be."""
    plan = example_plan()
    x, y = plan.latency.p95_ms, plan.quality.lower_bound or 0
    near = [
        PlanAlternative(name=f"model {k} alone", p95_ms=x * (1 - 0.004 * k), quality_mean=y + 0.004 * k, reason="")
        for k in (1, 2, 3)
    ]
    figure = plan_figure(plan.model_copy(update={"alternatives": near}), chat)
    above = figure.axes[0]
    named = [text for text in above.texts if "alone" in text.get_text() or text.get_text() == "this plan"]
    assert len(named) == 4
    boxes = [text.get_window_extent() for text in named]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert all(above.bbox.contains(*corner) for box in boxes for corner in (box.min, box.max))
    dots = [above.transData.transform(dot) for of in above.collections for dot in np.asarray(of.get_offsets())]
    assert not any(box.contains(*dot) for box in boxes for dot in dots)


def test_the_targets_are_told_with_what_the_plan_makes_of_them(
    chat: CascadeDeployment, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = [("EndToEnd", 95, 15000), ("EndToEnd", 50, 4000), ("TimeToFirstToken", 95, 12000)]
    targets = [LatencyTarget(metric=m, percentile=p, milliseconds=ms) for m, p, ms in wanted]  # type: ignore[arg-type]
    objective = chat.spec.objective.model_copy(update={"targets": targets})
    cascade = chat.model_copy(update={"spec": chat.spec.model_copy(update={"objective": objective})})
    words = "end to end p95 9.8 s of 15 s; end to end p50 2.6 s of 4 s; first token p95 – of 12 s"
    assert plan_figure(example_plan(), cascade).axes[0].get_title(loc="left") == f"kept: {words}"
    assert re.search(rf"^Targets +{words}$", shown(example_plan(), cascade, capsys), re.MULTILINE)


def test_the_picture_as_png_without_prices_prior_or_dropped_stages(chat: CascadeDeployment, tmp_path: Path) -> None:
    plan = example_plan()
    stages = [s.model_dump(by_alias=True) for s in plan.stages]
    stages[1] |= {"gpus": 0, "pool": None, "replicas": [], "threshold": None, "utilization": None, "p95Ms": None}
    point = plan.frontier[0].model_dump(by_alias=True) | {"costPerHour": None, "qualityLowerBound": None}
    bare = example_plan(
        stages=stages, frontier=[point], costPerHour=None, quality={"mean": 0.86, "source": "Prior"}, alternatives=[]
    )
    path = tmp_path / "plan.png"
    write_plot(bare, chat, str(path))
    assert path.read_bytes().startswith(b"\x89PNG")


def test_validate_says_what_is_valid(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(CHAT)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{CHAT}: valid: chat: small → medium → large on up to 32 H100-SXM-80GB, quality at least 0.86\n"
    assert err == ""


def test_validate_knows_the_catalogue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = cascade_manifest()
    document["spec"]["models"][0]["source"]["huggingFace"]["repo"] = "meta-llama/Llama-3.1-9B"
    document["spec"]["models"][1]["source"] = {"pvc": {"claimName": "weights", "path": "llama"}}
    document["spec"]["gpus"]["pools"][0]["gpu"] = "H100"
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(document))
    assert main(["validate", str(path), "-o", "json"]) == 2
    out, err = capsys.readouterr()
    (result,) = json.loads(out)["results"]
    assert result["valid"] is False
    fields = [problem["field"] for problem in result["problems"]]
    assert fields == [
        "spec.models[0].source.huggingFace.repo",
        "spec.models[1].source.pvc.architecture",
        "spec.gpus.pools[0].gpu",
    ]
    assert [line.split(": ")[1] for line in err.splitlines()] == fields


def test_crd_prints_every_definition(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crd"]) == 0
    assert list(yaml.safe_load_all(capsys.readouterr().out)) == list(crds().values())


def test_predict_prints_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "predict --model meta-llama/Llama-3.1-8B-Instruct --gpu H100-SXM-80GB --tensor-parallel 1"
    assert main([*flags.split(), *["--input", "1155", "--output", "211", "--concurrency", "4", "-o", "json"]]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert err == ""
    assert document["fits"] is True
    assert document["kvCapacityTokens"] > 100_000
    for figure in ("ttft", "tpot", "e2e"):
        assert 0 < document[figure]["p50Ms"] <= document[figure]["p95Ms"]
    assert {"outputTokensPerSecond", "saturated", "source", "uncertaintyPercent"} <= document.keys()


def test_predict_says_what_overload_means(capsys: pytest.CaptureFixture[str]) -> None:
    """Arrivals that nobody holds back pile up; clients wait for each other."""
    flags = "predict --model meta-llama/Llama-3.1-8B-Instruct --gpu H100-SXM-80GB --tensor-parallel 1 --input 1024"
    assert main([*flags.split(), "--output", "8", "--concurrency", "1500"]) == 0
    closed = capsys.readouterr().out
    assert "not all of 1,500 clients fit in a batch: the others wait" in closed
    assert "grow" not in closed
    assert main([*flags.split(), "--output", "8", "--rate", "500"]) == 0
    assert "it cannot keep up: these latencies grow with time" in capsys.readouterr().out


def test_predict_says_its_source_and_what_it_extrapolates(capsys: pytest.CaptureFixture[str]) -> None:
    flags = (
        "predict --model openai/gpt-oss-20b --gpu H20-96GB --gpu-spec 96,4000,148,296,450 --tensor-parallel 2 "
        "--pipeline-parallel 2 --input 500 --output 100 --rate 1 --engine vllm:0.15.1"
    )
    assert main(flags.split()) == 0
    text = capsys.readouterr().out
    assert re.search(r"roofline \(vllm:0.15.1\), median error about \d+ % end to end\n", text)
    assert "extrapolated no measured engine on H20-96GB\nextrapolated no measured engine with pipeline" in text
    assert main([*flags.split(), "-o", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["source"], document["engine"], document["precision"]) == ("roofline", "vllm:0.15.1", "fp4")
    assert len(document["extrapolates"]) == 2
    assert document["uncertaintyPercent"] == round(document["uncertaintyPercent"], 1)
    for latency in ("ttft", "tpot", "e2e"):
        p50, p90, p95, p99 = (document[latency][f"p{p}Ms"] for p in (50, 90, 95, 99))
        assert 0 < p50 <= p90 <= p95 <= p99


def test_predict_of_a_model_that_does_not_fit_says_by_how_much(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "predict --model meta-llama/Llama-3.1-70B-Instruct --gpu H100-SXM-80GB --tensor-parallel 1"
    assert main([*flags.split(), *["--input", "1155", "--output", "211", "--rate", "1"]]) == 0
    assert "does not fit: 15" in capsys.readouterr().out


def test_gpu_flags_replace_ceilings(chat: CascadeDeployment) -> None:
    assert with_gpus(chat, ["64"]).spec.gpus.pools[0].max_gpus == 64
    assert with_gpus(chat, ["h100=16"]).spec.gpus.pools[0].max_gpus == 16
    assert with_gpus(chat, []) is chat
    assert chat.spec.gpus.pools[0].max_gpus == 32


def test_import_writes_a_calibration_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["dataset,id,model,correct,parsed,prompt_chars,output_chars"]
    rows += [f"gsm,q{i},{m},{int(i % 3 > 0)},1,460,920" for i in range(3) for m in ("tiny", "huge", "other")]
    source, target = tmp_path / "results.csv", tmp_path / "set.jsonl"
    source.write_text("\n".join(rows))
    flags = ["--input", str(source), "-o", str(target), "--model", "small=tiny", "--model", "large=huge"]
    assert main(["calibrate", "import", "zeroeval", *flags]) == 0
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["q0", "q1", "q2"]
    assert lines[0]["inputTokens"] == 100
    assert lines[0]["answers"].keys() == {"small", "large"}
    assert "wrote 3 requests answered by small, large" in capsys.readouterr().err


COMMANDS = (
    "plan",
    "validate",
    "render",
    "crd",
    "predict",
    "up",
    "demo",
    "router",
    "operator",
    "version",
    "calibrate run",
    "calibrate fit",
    "calibrate engine",
    "calibrate import",
)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in ("router", "operator")])
def test_every_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    examples = text.partition("Example")[2]
    # `calibrate FILE` is short for `calibrate run FILE`.
    assert re.search(rf"^ +cascadia {command.removesuffix(' run')}( |$)", examples, re.MULTILINE)


@pytest.mark.parametrize(("command", "extra"), [("plan", "highs"), ("plan", "measured"), ("predict", "measured")])
def test_help_names_optional_extras_whole(command: str, extra: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"'cascadia[{extra}]'" in re.sub(r"[\s│]+", "", capsys.readouterr().out)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(f"│ {command.split()[0]} " in text for command in COMMANDS)
    assert "--install-completion" not in text


def cluster_cascade() -> dict[str, Any]:
    """A CascadeDeployment as an API server returns it."""
    document = cascade_manifest()
    document["metadata"] |= {"namespace": "serving", "generation": 2, "uid": "1"}
    document["status"] = {
        "observedGeneration": 2,
        "endpoint": "http://chat.serving.svc:8080/v1",
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "StagesReady",
                "message": "2 of 2 stages",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
        ],
        "plan": {
            "name": "chat-0123456789ab",
            "id": "p-0123456789ab",
            "policyRevision": 3,
            "stages": [
                {
                    "name": "small",
                    "threshold": "0.81",
                    "reach": "1",
                    "gpus": 2,
                    "pool": "h100",
                    "tensorParallel": 1,
                    "pipelineParallel": 1,
                    "replicas": 2,
                },
                {
                    "name": "large",
                    "reach": "0.4",
                    "gpus": 4,
                    "pool": "h100",
                    "tensorParallel": 4,
                    "pipelineParallel": 1,
                    "replicas": 1,
                },
            ],
            "quality": "0.83",
            "qualityLowerBound": "0.81",
            "p95Ms": "9800",
            "solverGap": "0",
            "solverMs": "420",
        },
        "proposedPlan": "chat-ba9876543210",
        "stages": [
            {"name": "small", "desired": 2, "updated": 2, "ready": 1},
            {"name": "large", "desired": 1, "updated": 1, "ready": 1},
        ],
        "corrections": [
            {
                "model": "meta-llama/Llama-3.1-8B-Instruct",
                "gpu": "H100-SXM-80GB",
                "shape": "TP1xPP1",
                "engineVersion": "sglang 0.5.23",
                "prefill": "1.1",
                "decode": "1.32",
                "plannedWith": "1",
            }
        ],
        "lastReplan": {
            "time": "2026-01-01T00:00:00Z",
            "trigger": "Drift",
            "decision": "Proposed",
            "reason": "rate +30 %",
        },
    }
    return document


def test_status_shows_conditions_stages_and_the_proposal(capsys: pytest.CaptureFixture[str]) -> None:
    print_view(lambda _: status_view(cluster_cascade()))
    text = capsys.readouterr().out
    assert "chat in namespace serving" in text
    assert re.search(r"Ready\s+True\s+StagesReady\s+2 of 2 stages", text)
    assert "predicted quality 0.830 (at least 0.810), p95 9.8 s" in text
    assert re.search(r"small\s+1/2\s+2\s+h100\s+TP1 PP1\s+100 %\s+≥ 0.810", text)
    assert re.search(r"large\s+1/1\s+4\s+h100\s+TP4 PP1\s+40 %\s+every answer", text)
    assert "kubectl cascadia approve chat-ba9876543210" in text
    assert "prompts take 1.1 and decoding 1.32 times as long as the cost model says (planned with 1)" in " ".join(
        text.split()
    )
    assert "Drift, proposed: rate +30 %" in text


def test_status_before_the_operator_has_looked(capsys: pytest.CaptureFixture[str]) -> None:
    document = cluster_cascade()
    del document["status"]
    print_view(lambda _: status_view(document))
    assert "is the operator running?" in capsys.readouterr().out
