"""Live corrections in the embedded runtime and by command: a slowed engine is found, and planned with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cascadia_api.errors import CascadiaError, InputError, Problem
from cascadia_cli import learning
from cascadia_cli.main import main
from cascadia_local import engine_watch
from cascadia_local.corrections_file import learn_into
from cascadia_local.engine_watch import EngineWatch
from cascadia_local.events import EventLog
from cascadia_local.loopback_http import UnreachableError
from cascadia_local.session import Options
from cascadia_solver.catalogue.gpus import gpu_facts
from cascadia_solver.catalogue.models import model_facts
from cascadia_solver.engine_window import EngineCounters
from cascadia_solver.live_correction import CorrectionKey, LiveCorrections, LiveSource
from cascadia_solver.roofline import Roofline, Shape, step_model
from cascadia_solver.transition import DesiredReplica
from tests.support.embedded import pair
from tests.support.slowed_engine import SlowedEngine
from tests.unit.test_local_controller import AFTER, BEFORE, FakeClock, World, setup

L8, H100 = model_facts("meta-llama/Llama-3.1-8B-Instruct"), gpu_facts("H100-SXM-80GB")
STEP = step_model(L8, H100, Shape(), "bf16")
LOOK_S = 60.0


@dataclass
class Engines:
    """Replicas of the small model, by address; asked in place of HTTP."""

    clock: FakeClock
    by_address: dict[str, SlowedEngine] = field(default_factory=dict)

    @property
    def replicas(self) -> list[Any]:
        desired = DesiredReplica("small", "h100", 1, 1, 1.0)
        return [Fake(f"small-{address}", address, desired) for address in self.by_address]

    async def ask(self, address: str, path: str, *, deadline_s: float) -> tuple[int, bytes]:
        assert (path, deadline_s) == ("/metrics", 2.0)
        if address not in self.by_address:
            raise UnreachableError(address)
        return 200, self.by_address[address].text.encode()

    async def look(self, watch: EngineWatch, times: int = 1) -> None:
        for _ in range(times):
            for engine in self.by_address.values():
                engine.serve(LOOK_S)
            FakeClock.moment += LOOK_S
            await watch.look(self.replicas)


@dataclass(frozen=True)
class Fake:
    name: str
    engine_address: str
    desired: DesiredReplica


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    monkeypatch.setattr(FakeClock, "moment", 1000.0)
    made = Engines(FakeClock())
    monkeypatch.setattr(engine_watch, "ask", made.ask)
    return made


def simulated(times: float) -> SlowedEngine:
    return SlowedEngine(STEP, times)


async def test_slow_engines_are_found_kept_in_a_file_and_planned_with(engines: Engines, tmp_path: Path) -> None:
    file = tmp_path / "live.json"
    world = World(BEFORE, rate=10.0, new=AFTER)
    controller, events = setup(world, engines.clock, tmp_path)
    watch = EngineWatch(pair(), Roofline(), engines.clock, events, file=file)
    engines.by_address = {"a": simulated(1.5), "b": simulated(1.5)}
    assert watch.cost == Roofline()
    await engines.look(watch)  # the first reading
    assert watch.corrections.by_key == {}
    await engines.look(watch, 8)
    [(key, known)] = watch.corrections.by_key.items()
    assert (key.model, key.gpu, key.shape, len(known.decode)) == (L8.name, H100.name, "TP1xPP1", 16)
    # Sixteen windows are trusted by 80 %.
    assert known.factor("decode") == pytest.approx(1.5**0.8, rel=0.03)
    assert known.factor("prefill") == pytest.approx(1.5**0.8, rel=0.05)
    assert LiveCorrections.from_json(json.loads(file.read_text())) == watch.corrections
    # Traffic is as planned, but the engines are not: the controller plans again, with what was learnt.
    world.replicas = {replica.name: replica for replica in engines.replicas}  # type: ignore[attr-defined]
    controller._watch = watch
    await controller._look()
    await controller._look()
    [job] = world.jobs
    assert isinstance(job.inputs.cost, LiveSource)
    planned_with = job.inputs.cost.step_model(L8, H100, Shape(), "bf16")
    assert planned_with.weight_seconds == pytest.approx(STEP.weight_seconds * known.factor("decode"))
    assert any("decodes 1.3" in event.text and "planned with 1.00" in event.text for event in events.events)
    await controller._look()
    assert len(world.jobs) == 1  # once is enough


async def test_engines_as_predicted_set_nothing_off(engines: Engines, tmp_path: Path) -> None:
    _, events = setup(World(BEFORE), engines.clock, tmp_path)
    watch = EngineWatch(pair(), Roofline(), engines.clock, events)
    engines.by_address = {"a": simulated(1.0)}
    await engines.look(watch, 7)
    assert watch.surprise() == ""
    [known] = watch.corrections.by_key.values()
    assert known.factor("decode") == pytest.approx(1.0, abs=0.02)
    # An engine that is gone or restarted, or a file that cannot be written, does no harm.
    engines.by_address = {}
    await watch.look([Fake("x", "gone", DesiredReplica("small", "h100", 1, 1, 1.0))])  # type: ignore[list-item]
    lost = EngineWatch(pair(), Roofline(), engines.clock, events, file=tmp_path / "no" / "live.json")
    engines.by_address = {"a": simulated(1.0)}
    await engines.look(lost, 3)
    assert [event.text for event in events.events] == [
        f"{tmp_path}/no/live.json: what was learnt cannot be written: No such file or directory"
    ]


async def test_hits_of_the_prefix_cache_that_are_planned_with_are_not_learnt_again(
    engines: Engines, tmp_path: Path
) -> None:
    plain = pair()
    workload = plain.spec.workload.model_copy(update={"prefix_cache_hit_percent": 70})
    manifest = plain.model_copy(update={"spec": plain.spec.model_copy(update={"workload": workload})})
    watch = EngineWatch(manifest, Roofline(), engines.clock, EventLog(engines.clock, tmp_path / "events.jsonl"))
    engines.by_address = {"a": SlowedEngine(STEP._replace(prefix_hit=0.7), 1.0)}
    await engines.look(watch, 7)
    [known] = watch.corrections.by_key.values()
    assert known.factor("prefill") == pytest.approx(1.0, abs=0.1)
    assert known.factor("decode") == pytest.approx(1.0, abs=0.05)


def test_what_a_run_starts_with() -> None:
    assert Options().cost == Roofline()
    known = LiveCorrections()
    assert Options(corrections=known).cost == LiveSource(Roofline(), known, "sglang simulated")


COMMAND = (
    "calibrate engine --metrics http://a/metrics --metrics http://b/metrics --model meta-llama/Llama-3.1-8B-Instruct "
    "--gpu H100-SXM-80GB --tensor-parallel 1 --engine sglang:0.5.23 --live"
)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Two engines that are so many times slower than predicted, behind the command's HTTP."""
    from cascadia_solver.engine_window import read_counters

    now = 0.0
    engines: list[SlowedEngine] = []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        for engine in engines:
            engine.serve(seconds)

    monkeypatch.setattr(learning.time, "sleep", sleep)
    monkeypatch.setattr(
        learning, "_read", lambda url: read_counters(engines[0 if url == "http://a/metrics" else 1].text, now)
    )
    return lambda times, step=STEP: engines.extend(SlowedEngine(step, times) for _ in range(2))


def test_the_command_learns_and_predictions_follow(
    served: Callable[[float], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served(1.5)
    file = str(tmp_path / "live.json")
    assert main([*COMMAND.split(), file, "--windows", "15", "--format", "json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["engine_version"], found["windows"]) == ("sglang 0.5.23", 30)
    assert found["decodeFactor"] == pytest.approx(1.5, rel=0.1)
    assert found["prefillFactor"] == pytest.approx(1.5, rel=0.1)
    assert len(err.splitlines()) == 15
    assert "times as long as predicted (30 windows" in err
    assert main([*COMMAND.split(), file, "--windows", "5"]) == 0  # goes on with what is there
    assert "(40 windows" in capsys.readouterr().out
    predict = "predict --model meta-llama/Llama-3.1-8B-Instruct --gpu H100-SXM-80GB --tensor-parallel 1 -o json"
    load = "--input 700 --output 150 --rate 3 --engine sglang:0.5.23"
    assert main([*predict.split(), *load.split()]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert main([*predict.split(), *load.split(), "--live", file]) == 0
    live = json.loads(capsys.readouterr().out)
    assert live["source"] == "live correction of roofline"
    assert live["e2e"]["p50Ms"] == pytest.approx(1.5 * plain["e2e"]["p50Ms"], rel=0.1)
    assert live["uncertaintyPercent"] < plain["uncertaintyPercent"]


def test_the_command_is_told_how_the_engines_are_set_up(
    served: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served(1.0, Roofline().step_model(L8, H100, Shape(), "bf16", chunk_tokens=256)._replace(prefix_hit=0.7))
    factors = []
    for flags in ("--prefix-cache-hit 70 --chunked-prefill-size 256", ""):
        file = str(tmp_path / f"live{len(factors)}.json")
        assert main([*COMMAND.split(), file, "--windows", "8", "--format", "json", *flags.split()]) == 0
        factors.append(json.loads(capsys.readouterr().out)["prefillFactor"])
    assert factors[0] == pytest.approx(1.0, abs=0.07)
    assert factors[1] < 0.93  # untold, hits pass for faster prompts


def test_what_the_command_refuses(
    served: Callable[[float], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served(1.0)
    file = str(tmp_path / "live.json")
    assert main([*COMMAND.split(), file, "--windows", "2", "--interval", "3"]) == 2
    assert "nothing was learnt: no window of 3 s held 20 answers" in capsys.readouterr().err
    assert main([*COMMAND.replace("sglang:0.5.23", "sglang").split(), file]) == 2
    assert "--engine: corrections are of one version: sglang:VERSION" in capsys.readouterr().err
    assert main([*COMMAND.split(), str(tmp_path / "no" / "live.json")]) == 2
    assert "--live: " in (said := capsys.readouterr().err)
    assert "its folder is not there: make it" in said
    (tmp_path / "live.json").write_text("{}")
    assert main([*COMMAND.split(), file]) == 2
    assert f"{file}: schemaVersion: must be 1" in capsys.readouterr().err


def test_what_others_learn_into_the_same_file_is_kept(
    served: Callable[[float], None], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    served(1.0)
    file = tmp_path / "live.json"
    other = CorrectionKey("other", H100.name, "TP1xPP1", "sglang 0.5.23")
    sleep = learning.time.sleep

    def sleep_while_another_learns(seconds: float) -> None:
        sleep(seconds)
        learn_into(file, lambda known: known.observed(other, "decode", 2.0, 1.0))

    monkeypatch.setattr(learning.time, "sleep", sleep_while_another_learns)
    assert main([*COMMAND.split(), str(file), "--windows", "3"]) == 0
    kept = LiveCorrections.from_json(json.loads(file.read_text())).by_key
    assert {key.model: len(known.decode) for key, known in kept.items()} == {"other": 3, L8.name: 6}
    file.write_text("spoilt")
    with pytest.raises(CascadiaError, match="is not written over what is there, no corrections"):
        learn_into(file, lambda known: known.observed(other, "decode", 2.0, 1.0))
    assert file.read_text() == "spoilt"


def test_an_engine_that_restarts_costs_its_own_windows_only(
    served: Callable[[float], None], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    served(1.0)
    read, readings = learning._read, 0

    def read_or_fail(url: str) -> EngineCounters:
        nonlocal readings
        readings += url == "http://b/metrics"
        if url == "http://b/metrics" and readings == 3:  # after the second window
            raise InputError(Problem("--metrics", "http://b/metrics does not answer: refused"))
        return read(url)

    monkeypatch.setattr(learning, "_read", read_or_fail)
    assert main([*COMMAND.split(), str(tmp_path / "live.json"), "--windows", "4"]) == 0
    out, err = capsys.readouterr()
    assert "(6 windows" in out  # of eight, two of b
    assert err.count("http://b/metrics does not answer: refused") == 1
