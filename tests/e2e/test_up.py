"""`cascadia up` as a user runs it: it serves, replays, and leaves nothing behind however it ends."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml
from openai import APIConnectionError, APIStatusError, AsyncOpenAI

from cascadia_local.loopback_http import ask
from tests.support.embedded import processes_of, until

REPOSITORY = Path(__file__).parents[2]
PAIR = REPOSITORY / "examples" / "pair.yaml"


def entries(folder: Path) -> list[Path]:
    return list(folder.iterdir())


class Up:
    """A running `cascadia up`, its output gathered."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.output = ""
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.output += line.decode()

    async def says(self, pattern: str) -> re.Match[str]:
        await until(lambda: re.search(pattern, self.output) is not None or self.process.returncode is not None, pattern)
        found = re.search(pattern, self.output)
        assert found, self.output
        return found

    async def ends(self) -> int:
        async with asyncio.timeout(60):
            code = await self.process.wait()
            await self._reader
        return code


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[Path]:
    run = tmp_path / "run"
    run.mkdir()
    yield run
    for pid in processes_of(run):
        os.kill(pid, signal.SIGKILL)


async def up(folder: Path, *arguments: str) -> Up:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "cascadia_cli",
        "up",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | {"TMPDIR": str(folder), "COLUMNS": "120"},
    )
    return Up(process, folder)


async def test_it_serves_an_openai_client_and_ctrl_c_leaves_nothing(folder: Path) -> None:
    run = await up(folder, str(PAIR), "--time-scale", "20")
    endpoint = (await run.says(r"pair is served at (\S+)")).group(1)
    async with AsyncOpenAI(base_url=endpoint, api_key="any", max_retries=0, timeout=30) as client:
        messages = [{"role": "user", "content": "Why is the sky blue?"}]
        answer = await client.chat.completions.create(model="pair", messages=messages)  # type: ignore[arg-type]
        told = answer.model_extra or {}
        assert told["cascadia"]["stage"] in ("small", "large")
        assert told["cascadia_simulated"]["simulated"] is True
        stream = await client.chat.completions.create(model="pair", messages=messages, stream=True)  # type: ignore[call-overload]
        chunks = [chunk async for chunk in stream]
        assert "simulated answer" in "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert len(processes_of(folder)) >= 5, "two engines, two routers, the entry"

        last = asyncio.create_task(ask_for_long(client))
        await until_in_flight(folder)
        run.process.send_signal(signal.SIGINT)
        await run.says(r"Stop +1 request in flight: finished first, within \d+ s; Ctrl-C again cuts them off")
        await last
    assert await run.ends() == 0, run.output
    assert re.search(r"^stopped: 3 requests answered \(.*\), none failed\.$", run.output, re.MULTILINE), run.output
    assert processes_of(folder) == []
    assert entries(folder) == []
    assert "Traceback" not in run.output


async def ask_for_long(client: AsyncOpenAI) -> None:
    """Ask for an answer that takes some 10 s here, at 20 service seconds a second."""
    await client.chat.completions.create(
        model="pair",
        messages=[{"role": "user", "content": "Tell me a long story."}],
        extra_body={"simulation": {"key": "long", "outputTokens": 25_000}},
    )


def entry_admin(folder: Path) -> str:
    (config,) = folder.glob("cascadia-*/entry-router.json")
    return str(json.loads(config.read_text())["admin"])


async def until_in_flight(folder: Path) -> None:
    """Wait until the endpoint's router holds one request."""
    admin = entry_admin(folder)
    async with asyncio.timeout(30):
        while True:  # another process tells no event
            _, body = await ask(admin, "/cascade/report")
            if json.loads(body)["inFlight"] == 1:
                return
            await asyncio.sleep(0.05)


async def test_another_ctrl_c_ends_it_at_once(folder: Path) -> None:
    run = await up(folder, str(PAIR), "--time-scale", "20")
    endpoint = (await run.says(r"pair is served at (\S+)")).group(1)
    async with AsyncOpenAI(base_url=endpoint, api_key="any", max_retries=0, timeout=60) as client:
        cut = asyncio.create_task(ask_for_long(client))
        await until_in_flight(folder)
        run.process.send_signal(signal.SIGINT)
        await run.says(r"1 request in flight: finished first")
        run.process.send_signal(signal.SIGTERM)  # no Ctrl-C: whoever manages services may send it twice
        run.process.send_signal(signal.SIGINT)
        assert await run.ends() == 130, run.output
        with pytest.raises(APIConnectionError):
            await cut
    assert "stopped at once, with 1 request in flight." in run.output
    assert processes_of(folder) == []
    assert entries(folder) == []
    assert "Traceback" not in run.output


async def test_a_composed_scorer_rejects_what_fails_its_check(folder: Path) -> None:
    """The simulated engine calls no tool: where one must be called, the first model's answer is worth nothing."""
    run = await up(folder, str(PAIR.with_name("checked.yaml")), "--time-scale", "20")
    endpoint = (await run.says(r"checked is served at (\S+)")).group(1)
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
    async with AsyncOpenAI(base_url=endpoint, api_key="any", max_retries=0, timeout=30) as client:
        messages = [{"role": "user", "content": "How is the weather in Bern?"}]
        free = await client.chat.completions.create(model="checked", messages=messages, tools=tools)  # type: ignore[call-overload]
        told = free.model_extra["cascadia"]
        assert told["stage"] == "large" or told["score"] >= told["threshold"] > 0
        bound = await client.chat.completions.create(  # type: ignore[call-overload]
            model="checked", messages=messages, tools=tools, tool_choice="required"
        )
        assert bound.model_extra["cascadia"]["path"] == "small>large"
    run.process.send_signal(signal.SIGINT)
    assert await run.ends() == 0, run.output


async def test_keys_rates_and_the_runs_own_traffic(folder: Path, tmp_path: Path) -> None:
    """The replay has a key of its own; other clients need one of the file, and have their tokens of the minute."""
    keys, manifest, trace = tmp_path / "keys", tmp_path / "pair.yaml", tmp_path / "trace.csv"
    keys.write_text("sk-0123456789abcdef\n")
    document = yaml.safe_load(PAIR.read_text())
    limit = {"key": "keys", "tokensPerMinute": 1}
    document["spec"]["routing"] = {"apiKeysSecretRef": {"name": "pair-keys"}, "rateLimits": {"keys": [limit]}}
    manifest.write_text(yaml.safe_dump(document))
    rows = [f"2023-11-16 18:15:{n // 4:02d}.{25 * (n % 4):02d},{300 + 7 * n},{40 + n}" for n in range(40)]
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n")
    replay = ("--trace", str(trace), "--limit", "60", "--time-scale", "20")
    run = await up(folder, str(manifest), *replay, "--api-keys", str(keys))
    endpoint = (await run.says(r"pair is served at (\S+)")).group(1)
    await run.says(r"60 requests, none failed\.")
    for key, statuses in (("sk-another-0123456789", [401]), ("sk-0123456789abcdef", [200, 429])):
        async with AsyncOpenAI(base_url=endpoint, api_key=key, max_retries=0, timeout=30) as client:
            messages = [{"role": "user", "content": "Why is the sky blue?"}]
            for status in statuses:
                try:
                    await client.chat.completions.create(model="pair", messages=messages)  # type: ignore[arg-type]
                    seen = 200
                except APIStatusError as error:
                    seen = error.status_code
                assert seen == status
    run.process.send_signal(signal.SIGINT)
    assert await run.ends() == 0, run.output


async def test_a_killed_run_leaves_no_process(folder: Path) -> None:
    run = await up(folder, str(PAIR), "--time-scale", "20")
    await run.says(r"Replica\s+\S+ starts")
    await until(lambda: len(processes_of(folder)) >= 5, "all processes")
    run.process.kill()
    await run.ends()
    await until(lambda: processes_of(folder) == [], "the kernel ends the children")


async def test_a_trace_is_replayed_and_compared_with_the_prediction(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    rows = [f"2023-11-16 18:15:{n // 4:02d}.{25 * (n % 4):02d},{300 + 7 * n},{40 + n}" for n in range(200)]
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n")
    run = await up(folder, str(PAIR), "--trace", str(trace), "--limit", "120", "--exit", "--time-scale", "20")
    assert await run.ends() == 0, run.output
    assert "Predicted against measured" in run.output
    assert "120 requests, none failed." in run.output
    assert re.search(r"arrivals +4\.0\d 1/s +[2-4]\.\d\d 1/s", run.output), run.output
    assert "this compares queueing" in " ".join(run.output.split())
    assert processes_of(folder) == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--port", "99999"], 2, "--port: 99999 is not between 1 and 65535"),
        (["--time-scale", "0"], 2, "--time-scale: 0 is not between"),
        (["--engine", "llamacpp", "--time-scale", "5"], 2, "--time-scale: llama.cpp really computes"),
        (["--gguf", "model.gguf"], 2, "--gguf: only --engine llamacpp"),
    ],
)
async def test_wrong_flags_are_named_before_anything_starts(
    folder: Path, arguments: list[str], code: int, words: str
) -> None:
    run = await up(folder, str(PAIR), *arguments)
    assert await run.ends() == code
    assert words in run.output
    assert "Traceback" not in run.output
    assert entries(folder) == []


async def test_streams_are_gated_and_answers_compared(folder: Path) -> None:
    """Accepted streams go on chunk by chunk, rejected ones come from the large model, and agreement is told."""
    manifest = folder.parent / "streaming.yaml"
    text = (PAIR.parent / "streaming.yaml").read_text()
    manifest.write_text(text.replace('percent: "2"', 'percent: "100", maxConcurrent: 64'))
    run = await up(folder, str(manifest), "--time-scale", "20")
    endpoint = (await run.says(r"streaming is served at (\S+)")).group(1)
    paths: dict[str, int] = {}
    async with AsyncOpenAI(base_url=endpoint, api_key="any", max_retries=0, timeout=60) as client:

        async def ask(number: int) -> None:
            stream = await client.chat.completions.create(
                model="streaming",
                messages=[{"role": "user", "content": f"Question {number}?"}],
                stream=True,
                extra_body={"simulation": {"key": f"gate-{number}", "outputTokens": 200}},
            )
            chunks = [chunk async for chunk in stream]
            told = chunks[-1].model_extra or {}
            path = told["cascadia"]["path"]
            paths[path] = paths.get(path, 0) + 1
            if path == "small":
                assert sum(1 for chunk in chunks if chunk.choices) > 3, "chunk by chunk behind the gate"

        for start in range(0, 160, 16):
            await asyncio.gather(*(ask(number) for number in range(start, start + 16)))
        assert paths["small"] > 30
        assert paths["small>large"] > 5
        await run.says(r"accepted answers of small agree with large's by \d\.\d\d")
    run.process.send_signal(signal.SIGINT)
    assert await run.ends() == 0, run.output
