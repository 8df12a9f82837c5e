"""The simulated engine as a process: through OpenAI's client, and by its own virtual time."""

from __future__ import annotations

import json
import math
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from cascadia_cli.main import main
from cascadia_local.simulated_engine.calibration import LengthDistribution, sample_calibration
from cascadia_local.simulated_engine.difficulty import DifficultyModel, ModelAbility
from cascadia_local.simulated_engine.recorded import encode_rows
from cascadia_solver.batcher import Batcher
from cascadia_solver.catalogue.gpus import gpu_facts
from cascadia_solver.catalogue.models import model_facts
from cascadia_solver.live_correction import scaled
from cascadia_solver.roofline import Shape, step_model
from tests.support.engine_process import (
    DEADLINE_SECONDS,
    STEP,
    EngineProcess,
    command,
    engine_config,
    engine_process,
)

HELLO: Any = [{"role": "user", "content": "hello"}]
CHAT = "/v1/chat/completions"
LONG_ANSWER = {"messages": HELLO, "simulation": {"key": "long", "inputTokens": 10, "outputTokens": 38_000}}
"""Minutes of service time."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with engine_process(tmp_path_factory.mktemp("engine")) as running:
        yield running


@pytest.fixture
def client(engine: EngineProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0, timeout=DEADLINE_SECONDS) as made:
        yield made


def ask(engine: EngineProcess, **fields: Any) -> dict[str, Any]:
    status, body = engine.request(CHAT, {"messages": HELLO, **fields})
    assert status == 200, body
    return json.loads(body)  # type: ignore[no-any-return]


@contextmanager
def long_request(engine: EngineProcess, *, stream: bool = False) -> Iterator[socket.socket]:
    """A request that takes minutes of service time; the client goes away at the end of the block."""
    body = json.dumps(LONG_ANSWER | {"stream": stream}).encode()
    host, port = engine.address.split(":")
    with socket.create_connection((host, int(port)), timeout=DEADLINE_SECONDS) as connection:
        connection.sendall(b"POST %s HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % (CHAT.encode(), len(body)) + body)
        yield connection


def test_chat_through_the_official_client(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="llama-8b",
        messages=HELLO,
        logprobs=True,
        top_logprobs=1,
        extra_body={"simulation": {"key": "a", "inputTokens": 900, "outputTokens": 40}},
    )
    expected = DifficultyModel(ModelAbility(name="small", ability=0.58)).outcome(b"a", base_tokens=40)
    assert answer.model == "llama-8b"
    assert answer.system_fingerprint == "cascadia-simulated"
    [choice] = answer.choices
    assert choice.finish_reason == "stop"
    assert choice.message.content is not None
    assert "simulated answer" in choice.message.content
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (900, expected.output_tokens)
    values = [entry.logprob for entry in choice.logprobs.content]
    assert math.exp(math.fsum(values) / len(values)) == pytest.approx(expected.score)
    simulated = answer.model_extra["cascadia_simulated"]  # type: ignore[index]
    assert simulated["simulated"] is True
    assert simulated["correct"] == bool(expected.quality)


def test_streamed_chat_through_the_official_client(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="llama-8b",
        messages=HELLO,
        stream=True,
        stream_options={"include_usage": True},
        logprobs=True,
        extra_body={"simulation": {"key": "a", "outputTokens": 300}},
    )
    chunks = list(stream)
    *parts, last, usage = chunks
    assert parts[0].choices[0].delta.role == "assistant"
    text = "".join(part.choices[0].delta.content or "" for part in parts)
    entries = [e for part in parts if (found := part.choices[0].logprobs) for e in found.content or ()]
    assert usage.usage is not None
    assert usage.choices == []
    assert len(entries) == usage.usage.completion_tokens
    assert "".join(entry.token for entry in entries) == text
    assert [chunk.choices[0].finish_reason for chunk in (*parts, last)] == [None] * len(parts) + ["stop"]
    assert last.model_extra["cascadia_simulated"]["outputTokens"] == len(entries)  # type: ignore[index]
    # Several tokens a chunk: 300 tokens are 40 ms of wall time here, and chunks come every 5 ms at most.
    assert len(parts) < len(entries) / 2


def test_text_completions_through_the_official_client(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="llama-8b", prompt="hello", logprobs=1, max_tokens=5)
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.token_logprobs or ()) == 5
    assert answer.choices[0].finish_reason == "length"
    parts = list(client.completions.create(model="llama-8b", prompt="hello", max_tokens=5, stream=True))
    assert "".join(part.choices[0].text for part in parts) == answer.choices[0].text


def test_times_are_the_batchers_prediction(engine: EngineProcess) -> None:
    """The virtual times in the answers equal an offline replay of the same arrivals, exactly."""
    sizes = [(40 + 700 * (n % 5), 20 + 37 * (n % 11)) for n in range(48)]  # more than one batch and cache hold

    def one(size: tuple[int, int]) -> dict[str, Any]:
        return ask(engine, simulation={"inputTokens": size[0], "outputTokens": size[1]}, stream=False)

    with ThreadPoolExecutor(24) as threads:
        answers = [answer["cascadia_simulated"] for answer in threads.map(one, sizes)]

    batcher = Batcher(STEP)
    answers.sort(key=lambda answer: answer["arrivedAt"])
    for number, answer in enumerate(answers):
        batcher.submit(str(number), answer["arrivedAt"], answer["inputTokens"], answer["outputTokens"])
    for time, kind, number in batcher.advance(math.inf):
        field = "firstTokenAt" if kind == "first" else "finishedAt"
        assert answers[int(number)][field] == pytest.approx(time, abs=1e-9)
    assert all(answer["latenessSeconds"] >= 0 for answer in answers)


def test_metrics_and_server_info_say_what_happened(engine: EngineProcess) -> None:
    before = engine.metrics()
    answer = ask(engine, simulation={"inputTokens": 500, "outputTokens": 50})
    after = engine.metrics()
    times, tokens = answer["cascadia_simulated"], answer["usage"]["completion_tokens"]
    change = {name: after[name] - before[name] for name in after}
    assert change["sglang:num_requests_total"] == 1
    assert change["sglang:prompt_tokens_total"] == 500
    assert change["sglang:generation_tokens_total"] == tokens
    elapsed = times["finishedAt"] - times["arrivedAt"]
    assert change["sglang:e2e_request_latency_seconds_sum"] == pytest.approx(elapsed)
    assert change["sglang:time_to_first_token_seconds_sum"] == pytest.approx(times["firstTokenAt"] - times["arrivedAt"])
    assert change["sglang:inter_token_latency_seconds_count"] == tokens - 1
    assert change["cascadia_sim_lateness_seconds_sum"] == pytest.approx(times["latenessSeconds"])
    assert after["sglang:num_running_reqs"] == after["sglang:token_usage"] == 0

    info = json.loads(engine.request("/server_info")[1])
    assert info["simulated"] is True
    assert info["status"] == "ready"
    assert info["simulation"]["stepSource"] == "roofline"
    lateness = info["simulation"]["lateness"]
    assert lateness["answers"] == after["sglang:num_requests_total"]
    assert lateness["sumSeconds"] == after["cascadia_sim_lateness_seconds_sum"]
    assert lateness["maxSeconds"] == after["cascadia_sim_lateness_max_seconds"]


def test_other_routes(engine: EngineProcess) -> None:
    for path in ("/ready", "/health", "/ping"):
        assert engine.request(path)[0] == 200
    assert json.loads(engine.request("/v1/models")[1])["data"][0]["id"] == "llama-8b"
    assert json.loads(engine.request("/model_info")[1])["simulated"] is True
    assert json.loads(engine.request("/v1/loads")[1])["loads"][0]["max_total_num_tokens"] == 40_000
    assert engine.request("/generate")[0] == 404
    assert engine.request(CHAT)[0] == 405
    assert engine.request("/ready", b"{}")[0] == 405


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": []}, "messages"),
        ({"n": 3}, "n must be 1"),
        ({"simulation": {"inputTokens": 50_000}}, "longer than the model's context length (40000 tokens)"),
        ({"max_tokens": 39_999}, "exceeds the model's maximum context length of 40000 tokens"),
    ],
)
def test_bad_requests_get_sglangs_400(client: openai.OpenAI, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x" * 40}], extra_body=fields)
    error: Any = caught.value.body
    assert words in error["message"]
    assert (error["object"], error["type"], error["code"]) == ("error", "BadRequestError", 400)


def test_an_answer_never_outgrows_the_context(engine: EngineProcess) -> None:
    answer = ask(engine, simulation={"inputTokens": 39_990, "outputTokens": 5_000})
    assert answer["usage"]["completion_tokens"] == 10
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_place(engine: EngineProcess, stream: bool) -> None:
    cancelled = engine.metrics()["cascadia_sim_cancelled_requests_total"]
    with long_request(engine, stream=stream) as connection:
        engine.wait_for_metric("sglang:num_running_reqs", 1)
        if stream:
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK")
    engine.wait_for_metric("cascadia_sim_cancelled_requests_total", cancelled + 1)
    engine.wait_for_metric("sglang:num_running_reqs", 0)
    assert engine.metrics()["sglang:num_used_tokens"] == 0


def test_sigterm_as_sglang_does_it(tmp_path: Path) -> None:
    """Unready at once; what runs finishes; what comes is still answered; it ends once it is idle."""
    with engine_process(tmp_path, clockScale=5.0, drainPollSeconds=0.5) as engine, ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(ask, engine, simulation={"outputTokens": 300})]
        engine.wait_for_metric("sglang:num_running_reqs", 1)
        with long_request(engine):  # keeps it from being idle for as long as we look at it
            engine.wait_for_metric("sglang:num_running_reqs", 2)
            engine.process.send_signal(signal.SIGTERM)
            engine.wait_for("draining")
            assert engine.request("/ready")[0] == engine.request("/health")[0] == 503
            assert json.loads(engine.request("/server_info")[1])["status"] == "draining"
            answers.append(threads.submit(ask, engine, simulation={"outputTokens": 5}))
            tokens = [answer.result(DEADLINE_SECONDS)["usage"]["completion_tokens"] for answer in answers]
            assert engine.process.poll() is None
        assert engine.process.wait(DEADLINE_SECONDS) == 0
        assert tokens[0] > 100
        assert engine.wait_for("stopped")["answered"] == 2


def test_a_model_takes_its_time_to_load(tmp_path: Path) -> None:
    with engine_process(tmp_path, wait_ready=False, modelLoadSeconds=50.0) as engine:
        assert engine.request("/ready")[0] == 503
        status, body = engine.request(CHAT, LONG_ANSWER)
        assert (status, json.loads(body)["message"]) == (503, "the model is still loading")
        engine.wait_for("ready")
        assert engine.request("/ready")[0] == 200
        assert engine.stop(signal.SIGINT) == 0


def test_recorded_answers_come_back(tmp_path: Path) -> None:
    lengths = LengthDistribution(mean=40, p95=90)
    rows = sample_calibration(
        [ModelAbility(name="small", ability=0.0)], 20, seed=1, inputs=lengths, outputs=lengths, model_seed=99
    )
    (tmp_path / "rows.jsonl").write_bytes(encode_rows(rows))
    with engine_process(tmp_path, outcomesFile=str(tmp_path / "rows.jsonl")) as engine:
        for row in rows:
            simulated = ask(engine, simulation={"row": row.id})["cascadia_simulated"]
            recorded = row.answers["small"]
            assert simulated["score"] == recorded.scores["logprob-mean"]
            assert simulated["quality"] == recorded.quality
            assert (simulated["inputTokens"], simulated["outputTokens"]) == (row.input_tokens, recorded.output_tokens)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"listen": "nowhere"}, "$.listen"),
        ({"listen": "127.0.0.1:99999"}, "a port is at most 65535"),
        ({"step": [1.0]}, "step: has 1 numbers"),
        ({"clockScale": 0}, "$.clockScale"),
        ({"clockSpeed": 2}, "unknown field `clockSpeed`"),
        ({"outcomesFile": "/no/such/file"}, "/no/such/file: cannot be read: No such file"),
    ],
)
def test_a_bad_configuration_is_one_line_and_exit_2(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    path = tmp_path / "engine.json"
    path.write_text(json.dumps(engine_config(**fields)))
    ended = subprocess.run(command(path), capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False)
    assert ended.returncode == 2
    assert words in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_port_in_use_is_one_line_and_exit_2(engine: EngineProcess, tmp_path: Path) -> None:
    path = tmp_path / "engine.json"
    path.write_text(json.dumps(engine_config(listen=engine.address)))
    ended = subprocess.run(command(path), capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False)
    assert ended.returncode == 2
    assert f"cannot listen on {engine.address}" in ended.stderr


def test_the_process_stays_small(engine: EngineProcess) -> None:
    """A run has a few dozen of them on one machine."""
    status = Path(f"/proc/{engine.process.pid}/status")
    if not status.exists():
        pytest.skip("needs Linux's /proc")
    peak = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    assert peak < 40 * 1024, f"{peak} KB"
    heavy = "{'numpy', 'numba', 'pydantic', 'kubernetes', 'openai', 'prometheus_client'}"
    program = f"import sys, cascadia_local.simulated_engine.__main__; print({heavy} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "set()"


def test_the_calibration_of_a_slowed_engine_finds_by_how_much(tmp_path: Path) -> None:
    predicted = step_model(model_facts("meta-llama/Llama-3.1-8B"), gpu_facts("H100-SXM-80GB"), Shape(), "bf16")
    live = tmp_path / "live.json"
    draw = random.Random(3)
    with (
        engine_process(tmp_path, step=list(scaled(predicted, 1.5, 1.5)), clockScale=1.0) as engine,
        ThreadPoolExecutor(32) as clients,
    ):
        over = threading.Event()

        def traffic() -> None:
            asked = []
            while not over.wait(draw.expovariate(6.0)):
                lengths = {"inputTokens": draw.randint(200, 1200), "outputTokens": draw.randint(20, 100)}
                asked.append(clients.submit(ask, engine, simulation=lengths))
            for each in asked:
                each.result(DEADLINE_SECONDS)

        sending = clients.submit(traffic)
        flags = "--model meta-llama/Llama-3.1-8B --gpu H100-SXM-80GB --tensor-parallel 1 --engine sglang:simulated"
        try:
            arguments = [
                "--metrics",
                f"{engine.url}/metrics",
                "--live",
                str(live),
                "--windows",
                "1",
                "--interval",
                "10",
            ]
            assert main(["calibrate", "engine", *flags.split(), *arguments]) == 0
        finally:
            over.set()
        sending.result(DEADLINE_SECONDS)
    [learnt] = json.loads(live.read_text())["corrections"]
    assert math.exp(learnt["decode"][0]) == pytest.approx(1.5, rel=0.1)
    assert math.exp(learnt["prefill"][0]) == pytest.approx(1.5, rel=0.3)  # and this machine's own time
