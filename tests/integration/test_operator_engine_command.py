"""Every command line that the operator builds is one that SGLang's own parser takes, and means what it should."""

from typing import Any

import pytest

from cascadia_api.cascade import Model
from cascadia_api.engine_args import OWNED_ENGINE_ARGS
from cascadia_operator.manifests.engine_argv import engine_command
from cascadia_operator.settings import DEFAULT_ENGINE_IMAGE
from tests.support.sglang_parser import SGLANG_VERSION, Parsed, ensure_sglang, parse


def command(nodes: int = 1, tp: int = 1, pp: int = 1, **model: Any) -> list[str]:
    source = model.pop("source", {"huggingFace": {"repo": "meta-llama/Llama-3.1-8B-Instruct"}})
    built = engine_command(
        Model.model_validate({"name": "small", "source": source, **model}), tp, pp, nodes=nodes, leader_host="lead.er"
    )
    assert built[:2] == ["sglang", "serve"]
    # The kubelet puts the pod's rank here.
    return [argument.replace("$(CASCADIA_POD_INDEX)", "1") for argument in built[2:]]


LINES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "plain": (
        command(),
        {
            "model_path": "meta-llama/Llama-3.1-8B-Instruct",
            "served_model_name": "small",
            "host": "127.0.0.1",
            "port": 30000,
            "tp_size": 1,
            "pp_size": 1,
            "enable_metrics": True,
            "dtype": "bfloat16",
            "nnodes": 1,
        },
    ),
    "multi-node": (
        command(nodes=2, tp=8, pp=2),
        {"tp_size": 8, "pp_size": 2, "nnodes": 2, "node_rank": 1, "dist_init_addr": "lead.er:5000"},
    ),
    "fp8": (command(precision="fp8"), {"quantization": "fp8", "dtype": "auto"}),
    "fp16": (command(precision="fp16"), {"dtype": "float16"}),
    "int8": (command(precision="int8"), {"quantization": None}),
    "int4": (command(precision="int4"), {"quantization": None}),
    "volume": (command(source={"pvc": {"claimName": "weights", "path": "/a/b/"}}), {"model_path": "/models/a/b"}),
    "revision": (command(source={"huggingFace": {"repo": "a/b", "revision": "v2"}}), {"revision": "v2"}),
    "extra": (
        command(engine={"extraArgs": ["--mem-fraction-static", "0.8", "--context-length=8192"]}),
        {"mem_fraction_static": 0.8, "context_length": 8192},
    ),
}


@pytest.fixture(scope="session")
def parsed(request: pytest.FixtureRequest) -> dict[str, Parsed]:
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        sglang = ensure_sglang()
    owned = {argument: [argument, "1"] for argument in OWNED_ENGINE_ARGS}
    lines = {name: line for name, (line, _) in LINES.items()} | owned
    return dict(zip(lines, parse(sglang, list(lines.values())), strict=True))


@pytest.mark.parametrize("name", LINES)
def test_sglang_understands(name: str, parsed: dict[str, Parsed]) -> None:
    assert parsed[name].error == ""
    assert {key: parsed[name].values[key] for key in LINES[name][1]} == LINES[name][1]


def test_what_the_operator_owns_exists(parsed: dict[str, Parsed]) -> None:
    """An option that SGLang renamed would no longer be refused in extraArgs."""
    unknown = [a for a in OWNED_ENGINE_ARGS if f"unrecognized arguments: {a}" in parsed[a].error]
    assert unknown == []


def test_the_default_image_is_the_version_that_was_tested() -> None:
    assert DEFAULT_ENGINE_IMAGE.endswith(f":v{SGLANG_VERSION}")
