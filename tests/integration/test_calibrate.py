"""`cascadia calibrate` against simulated engines behind real routers, and against endpoints that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cascadia_api.cascade import CascadeDeployment
from cascadia_local.simulated_engine.difficulty import DifficultyModel, default_abilities
from tests.support.embedded import MANIFEST, Embedded, embedded, plan_of, until
from tests.support.scripted_engine import ScriptedEngine, Seen, answer, hang, http_response, status

DEADLINE_S = 60.0


def prompt(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "id": f"q{number}",
        "prompt": f"Question {number}?",
        "reference": "this is a simulated answer no model ran",
        "body": {"simulation": {"key": f"key-{number}", "outputTokens": 10 + number % 7}},
    } | fields


class Calibration:
    """The command in a folder of its own, run as a process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "set.jsonl"
        (folder / "pair.yaml").write_text(MANIFEST)
        self.process: asyncio.subprocess.Process | None = None

    def write(self, prompts: list[dict[str, Any]]) -> None:
        (self.folder / "prompts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in prompts))

    async def start(self, *flags: str) -> asyncio.subprocess.Process:
        arguments = ("calibrate", "pair.yaml", "--prompts", "prompts.jsonl", "-o", self.out.name, *flags)
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "cascadia_cli",
            *arguments,
            cwd=self.folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | {"CASCADIA_API_KEY": "stage-key", "CASCADIA_JUDGE_API_KEY": "judge-key"},
        )
        return self.process

    async def run(self, *flags: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        process = await self.start(*flags)
        async with asyncio.timeout(DEADLINE_S):
            out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.read_text().splitlines()]


@pytest.fixture
async def calibration(tmp_path: Path) -> AsyncIterator[Calibration]:
    folder = tmp_path / "calibration"
    folder.mkdir()
    running = Calibration(folder)
    yield running
    if running.process is not None and running.process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            running.process.kill()
        await running.process.wait()


@pytest.fixture
async def cascade(tmp_path: Path) -> AsyncIterator[Embedded]:
    folder = tmp_path / "run"
    folder.mkdir()
    async with embedded(folder) as running:
        await running.runtime.start(plan_of([(1, 1)], [(4, 1)]))
        yield running


@contextlib.asynccontextmanager
async def scripted(*engines: ScriptedEngine) -> AsyncIterator[list[str]]:
    """Flags that ask these engines as stages, by name."""
    try:
        for engine in engines:
            await engine.start()
        yield [f"--stage={engine.name}=http://{engine.address}#m-{engine.name}" for engine in engines]
    finally:
        for engine in engines:
            await engine.stop()


def judge_by_question() -> ScriptedEngine:
    """Judges an answer by its question's number, now and then in words that say nothing."""
    vague: set[str] = set()

    async def behave(engine: ScriptedEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
        content = seen.json["messages"][0]["content"]
        number = re.search(r"Question (\d+)\?", content)
        assert number is not None
        text = f"Let me see.\n**Score:** {int(number[1]) % 5 / 4}"
        if int(number[1]) % 9 == 0 and number[1] not in vague:
            vague.add(number[1])
            text = "I cannot tell."
        writer.write(http_response(200, json.dumps({"choices": [{"message": {"content": text}}]}).encode()))

    return ScriptedEngine("judge", behave)


async def test_every_stage_of_a_running_cascade_is_asked_scored_and_judged(
    cascade: Embedded, calibration: Calibration
) -> None:
    prompts = [prompt(number) for number in range(60)]
    prompts[7]["body"]["tools"] = [{"type": "function", "function": {"name": "add"}}]
    calibration.write(prompts)
    judge = judge_by_question()
    async with scripted(judge):
        code, out, err = await calibration.run(
            f"--endpoint={cascade.runtime.endpoint}",
            "--judge=Endpoint",
            f"--judge-endpoint=http://{judge.address}",
            "--judge-model=grader",
            "--format=json",
        )
    assert (code, err) == (0, "")
    rows = calibration.rows
    assert [row["id"] for row in rows] == [f"q{number}" for number in range(60)]
    assert {row["id"]: row["needs"] for row in rows if "needs" in row} == {"q7": ["tools"]}
    models = {ability.name: DifficultyModel(ability) for ability in default_abilities(["small", "large"])}
    for number, row in enumerate(rows):
        assert row["judge"] == "Endpoint/grader"
        for stage, model in models.items():
            outcome = model.outcome(f"key-{number}".encode(), base_tokens=10 + number % 7)
            told = row["answers"][stage]
            assert told["outputTokens"] == outcome.output_tokens
            assert told["scores"]["logprob-mean"] == pytest.approx(outcome.score, abs=2e-6)
            assert 0 < told["scores"]["logprob-min"] < told["scores"]["logprob-mean"]
            assert told["quality"] == number % 5 / 4
    assert {seen.headers["authorization"] for seen in judge.seen} == {"Bearer judge-key"}
    assert {seen.json["model"] for seen in judge.seen} == {"grader"}
    summary = json.loads(out)
    assert (summary["requests"], summary["failed"], summary["judge"]) == (60, 0, "Endpoint/grader")
    small = summary["stages"][0]
    assert small["quality"]["mean"] == pytest.approx(0.5)
    assert 0.3 < small["auroc"] < 0.7  # this judge does not look at the answer
    assert small["judgeBias"]["prompts"] == 60
    assert summary["target"]["minQuality"] == 0.8
    assert summary["target"]["enough"] is False
    assert summary["target"]["requestsNeeded"] is None  # the mean is 0.5 whatever the thresholds


async def test_a_killed_run_goes_on_where_it_ended(cascade: Embedded, calibration: Calibration) -> None:
    calibration.write([prompt(number) for number in range(80)])
    flags = (f"--endpoint={cascade.runtime.endpoint}", "--judge=AgreementWithLargest")
    process = await calibration.start(*flags, "--concurrency=2")
    await until(lambda: calibration.out.exists() and calibration.out.read_bytes().count(b"\n") >= 10, "ten rows")
    process.send_signal(signal.SIGKILL)
    await process.wait()
    kept = [line for line in calibration.out.read_bytes().split(b"\n") if line]
    assert 10 <= len(kept) < 80
    with calibration.out.open("ab") as file:
        file.write(b'{"id":"q79","inputTokens":5,"answ')  # as a machine that lost power would leave it

    code, out, err = await calibration.run(*flags)
    assert (code, out.splitlines()[0]) == (
        0,
        "set.jsonl: 80 requests, judged by AgreementWithLargest, scored by logprob-mean",
    )
    assert f"set.jsonl: going on: {len(kept)} of 80 prompts are done, 1 are done again" in err
    assert [row["id"] for row in calibration.rows] == [f"q{number}" for number in range(80)]
    assert set(kept) <= set(calibration.out.read_bytes().split(b"\n")), "rows of the first run are kept as they were"

    calibration.write(
        [prompt(number, prompt="Another one?") if number == 3 else prompt(number) for number in range(81)]
    )
    before = calibration.out.read_bytes().split(b"\n")
    code, _, err = await calibration.run(*flags)
    assert code == 0
    assert "going on: 79 of 81 prompts are done, 1 are done again" in err
    after = calibration.out.read_bytes().split(b"\n")
    assert len(set(after) - set(before)) == 2, "only the new prompt and the changed one were asked"


async def test_failures_are_retried_bounded_and_named(calibration: Calibration) -> None:
    calibration.write([prompt(number, reference="small0 small1 small2") for number in range(4)])
    refused: set[str] = set()

    async def moody(engine: ScriptedEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
        text = seen.json["messages"][0]["content"]
        if text == "Question 1?":
            return await status(400, b'{"error": {"message": "longer than 8192 tokens"}}')(engine, seen, writer)
        if text == "Question 2?":
            return await status(500)(engine, seen, writer)
        if text not in refused:
            refused.add(text)
            return await status(503)(engine, seen, writer)
        return await answer()(engine, seen, writer)

    small = ScriptedEngine("small", moody)
    large = ScriptedEngine("large", answer(-0.1))
    async with scripted(small, large) as stages:
        code, out, err = await calibration.run(*stages, "--attempts=2", "--concurrency=1")
        assert code == 1
        assert "2 prompts failed; the same command tries them again" in err
        assert f"stage small: http://{small.address}/v1: HTTP 400: longer than 8192 tokens" in err
        assert f"stage small: http://{small.address}/v1: HTTP 500: engine says no (tried 2 times)" in err
        assert "planning refuses this set as it is: calibration set: it has 2 usable rows" in out
        asked = [seen.json["messages"][0]["content"] for seen in small.seen]
        assert asked == [f"Question {number}?" for number in (0, 0, 1, 2, 2, 3, 3)]
        assert [row["answers"]["small"]["quality"] for row in calibration.rows] == [1.0, 1.0]
        assert [row["answers"]["large"]["quality"] for row in calibration.rows] == [0.0, 0.0]
        assert {seen.headers["authorization"] for seen in small.seen} == {"Bearer stage-key"}

        small.behaviour = answer()
        code, _, err = await calibration.run(*stages)
        assert code == 0
        assert "going on: 2 of 4" in err
        assert [row["id"] for row in calibration.rows] == ["q0", "q1", "q2", "q3"]


async def test_a_run_without_hope_stops_and_says_why(calibration: Calibration) -> None:
    calibration.write([prompt(number) for number in range(40)])
    small, large = ScriptedEngine("small", answer(scored=False)), ScriptedEngine("large", answer())
    async with scripted(small, large) as stages:
        flags = (*stages, "--attempts=1", "--concurrency=1", "--timeout=0.5")
        code, _, err = await calibration.run(*flags)
        assert code == 1
        assert "the last 10 prompts failed" in err
        assert "an answer without log-probabilities: does the engine support `logprobs`?" in err
        small.behaviour = status(401)
        small.seen.clear()
        code, _, err = await calibration.run(*flags)
        assert (code, len(small.seen)) == (1, 1)
        assert f"cascadia: stage small: http://{small.address}/v1: HTTP 401: engine says no" in err
        small.behaviour = hang
        code, _, err = await calibration.run(*flags)
        assert (code, "no answer within 0.5 s (tried once)" in err) == (1, True)
    code, _, err = await calibration.run(*flags)
    assert code == 1
    assert "no connection" in err
    assert not calibration.out.read_bytes()


async def test_what_an_endpoint_does_not_serve_is_said_at_once(cascade: Embedded, calibration: Calibration) -> None:
    calibration.write([prompt(0)])
    await cascade.runtime.apply(plan_of([], [(4, 1)], number=2))
    code, _, err = await calibration.run(f"--endpoint={cascade.runtime.endpoint}")
    assert code == 2
    assert "serves pair, large, not the stage 'small': its plan has dropped that stage" in err
    assert "--stage small=URL" in err
    code, _, err = await calibration.run(
        f"--endpoint={cascade.runtime.endpoint}", f"--stage=small={cascade.runtime.endpoint}"
    )
    assert code == 2
    assert f"serves pair, large: say which, as in small={cascade.runtime.endpoint}#MODEL" in err
    code, _, err = await calibration.run(
        f"--endpoint={cascade.runtime.endpoint}", f"--stage=small={cascade.runtime.endpoint}#pair"
    )
    assert code == 1
    assert "asked for stage 'small', 'large' answered" in err


async def test_interrupted_it_says_how_to_go_on(calibration: Calibration) -> None:
    calibration.write([prompt(number) for number in range(4)])

    async def one_then_none(engine: ScriptedEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
        first = seen.json["messages"][0]["content"] == "Question 0?"
        await (answer() if first else hang)(engine, seen, writer)

    small, large = ScriptedEngine("small", one_then_none), ScriptedEngine("large")
    async with scripted(small, large) as stages:
        process = await calibration.start(*stages)
        await until(lambda: calibration.out.exists() and calibration.out.read_bytes().count(b"\n") == 1, "one row")
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(DEADLINE_S):
            _, err = await process.communicate()
    assert process.returncode == 130
    assert b"set.jsonl: 1 of 4 prompts are done; the same command goes on from there" in err
    assert b"Traceback" not in err


async def test_the_first_tokens_are_scored_for_a_gate(calibration: Calibration) -> None:
    """Under an id of their own, without which planning with that gate refuses the set."""

    async def falling(engine: ScriptedEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
        content = [{"token": "t", "logprob": -0.1 * place} for place in range(1, 6)]
        choice = {"index": 0, "message": {"content": "t"}, "logprobs": {"content": content}, "finish_reason": "stop"}
        body = {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 5}}
        writer.write(http_response(200, json.dumps(body).encode()))

    gated = MANIFEST + "  routing: {streaming: {mode: Gate, gateTokens: 2}}\n"
    (calibration.folder / "pair.yaml").write_text(gated)
    calibration.write([prompt(1)])
    async with scripted(ScriptedEngine("small", falling), ScriptedEngine("large", falling)) as flags:
        code, _, err = await calibration.run(*flags)
    assert (code, err) == (0, "")
    (row,) = calibration.rows
    assert row["answers"]["small"]["scores"] == pytest.approx(
        {
            "logprob-mean": math.exp(-0.3),
            "logprob-min": math.exp(-0.5),
            "logprob-mean@2": math.exp(-0.15),
            "logprob-min@2": math.exp(-0.2),
        },
        abs=1e-6,
    )


def with_scorer(scorer: dict[str, Any]) -> str:
    document = yaml.safe_load(MANIFEST)
    document["spec"].setdefault("routing", {})["scorer"] = scorer
    return yaml.safe_dump(document)


async def test_the_scorer_of_the_manifest_scores_as_the_routers_do(calibration: Calibration, tmp_path: Path) -> None:
    """Every part of a Composite is recorded raw, and the whole as the router would score it."""
    failures = iter([status(503)])

    async def referee(engine: ScriptedEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
        broken = next(failures, None)
        if broken is not None:
            await broken(engine, seen, writer)
            return
        number = 9 if "small0" in seen.json["messages"][0]["content"] else 4
        reply = {"choices": [{"message": {"role": "assistant", "content": str(number)}}]}
        writer.write(http_response(200, json.dumps(reply).encode()))

    async def verifies(engine: ScriptedEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
        if len(seen.json["messages"]) == 1:
            await answer(logprob=-0.2)(engine, seen, writer)
            return
        tops = [{"token": "Yes", "logprob": math.log(0.6)}, {"token": "No", "logprob": math.log(0.2)}]
        content = [{"token": "Yes", "logprob": tops[0]["logprob"], "top_logprobs": tops}]
        reply = {"choices": [{"message": {"content": "Yes"}, "logprobs": {"content": content}}]}
        writer.write(http_response(200, json.dumps(reply).encode()))

    judge = ScriptedEngine("referee", referee)
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "judge.token").write_text("scorer-key")
    async with scripted(ScriptedEngine("small", verifies), ScriptedEngine("large", verifies), judge) as flags:
        options = {
            "url": f"http://{judge.address}/v1",
            "model": "m",
            "apiKeySecretRef": {"name": "judge", "key": "token"},
        }
        scorer = {
            "type": "Composite",
            "combine": "WeightedMean",
            "parts": [
                {"type": "LogProb", "statistic": "Quantile", "quantile": "0.25"},
                {"type": "SelfVerify", "id": "verified", "weight": "2"},
                {"type": "Judge", "id": "judged", "judge": options},
            ],
        }
        (calibration.folder / "pair.yaml").write_text(with_scorer(scorer))
        calibration.write([prompt(number) for number in range(2)])
        code, _, err = await calibration.run(*flags[:2])
        assert code == 2
        assert "--scorer-secrets: the scorer needs judge.token" in err
        code, _, err = await calibration.run(*flags[:2], f"--scorer-secrets={secrets}")
    assert code == 0, err
    assert {seen.headers["authorization"] for seen in judge.seen} == {"Bearer scorer-key"}
    assert len(judge.seen) == 5  # the one that failed was asked again
    routing = CascadeDeployment.model_validate(yaml.safe_load(with_scorer(scorer))).spec.routing
    for row in calibration.rows:
        for stage, judged in (("small", 0.9), ("large", 0.4)):
            scores = row["answers"][stage]["scores"]
            assert scores["logprob-q25"] == pytest.approx(math.exp(-0.2), abs=1e-6)
            assert scores["verified"] == pytest.approx(0.75)
            assert scores["judged"] == judged
            whole = (math.exp(-0.2) + 2 * 0.75 + judged) / 4
            assert scores[routing.scorer_id] == pytest.approx(whole, abs=1e-6)
