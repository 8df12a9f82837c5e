"""The examples of docs/api.md run, and its tables are complete."""

import ast
import asyncio
import contextlib
import io
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.router_chain import StageOf, chain_of, http
from tests.support.scripted_engine import ScriptedEngine, answer

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def stages() -> tuple[StageOf, StageOf]:
    return (
        StageOf("small", 0.8, [ScriptedEngine("small", answer(logprob=-1.0))]),
        StageOf("large", None, [ScriptedEngine("large")]),
    )


def run(code: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "docs/api.md", "exec"), {})
    return out.getvalue()


@pytest.mark.parametrize("code", blocks("python"))
async def test_python_examples_run(tmp_path: Path, code: str) -> None:
    async with chain_of(tmp_path, *stages()) as chain:
        said = await asyncio.to_thread(run, code.replace("localhost:8080", chain.client("small")))
        assert "large" in said


@pytest.mark.parametrize("command", blocks("bash"))
async def test_curl_examples_run(tmp_path: Path, command: str) -> None:
    program, url, *rest = shlex.split(command.replace("\\\n", " "))
    assert program == "curl"
    options = list(zip(rest[::2], rest[1::2], strict=True))
    headers = dict(value.split(": ", 1) for option, value in options if option == "-H")
    [body] = [value for option, value in options if option == "-d"]
    async with chain_of(tmp_path, *stages()) as chain:
        path = url.removeprefix("http://localhost:8080")
        reply = await http(chain.client("small"), path, json.loads(body), headers=headers)
        assert reply.status == 200
        bounded = "x-cascadia-max-stage" in headers
        assert reply.headers["x-cascadia-path"] == ("small" if bounded else "small>large")


async def test_the_decision_is_as_shown(tmp_path: Path) -> None:
    [shown] = blocks("json")
    async with chain_of(tmp_path, *stages()) as chain:
        body: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
        reply = await http(chain.client("small"), "/v1/chat/completions", body)
        assert reply.json["cascadia"] == json.loads(shown)
        for name in [name for name in reply.headers if name.startswith("x-")]:
            assert f"| `{name}` |" in PAGE


def codes_in_use() -> Iterator[str]:
    """Every error code that the router's source names."""
    for path in (ROOT / "router" / "cascadia_router").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name not in {"_refuse", "_fail", "fail", "error_body"}:
                continue
            given = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "code")]
            for argument in given:
                value = argument.value if isinstance(argument, ast.Constant) else None
                if isinstance(value, str) and re.fullmatch(r"[a-z]+(_[a-z]+)+|busy|timeout", value):
                    yield value


def test_every_error_code_is_documented() -> None:
    used = set(codes_in_use())
    assert {"deadline_exceeded", "invalid_body", "malformed_request"} <= used
    assert {code for code in used if f"`{code}`" not in PAGE} == set()
