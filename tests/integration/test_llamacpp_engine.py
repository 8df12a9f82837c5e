"""The llama.cpp engine with a real small model; `make engine` installs both."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import openai

DEADLINE_SECONDS = 120.0


def wait_until_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while True:
        assert process.poll() is None, f"ended with code {process.returncode}"
        assert time.monotonic() < end, "not ready in time"
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                assert answer.status == 200
                return
        except urllib.error.URLError:
            time.sleep(0.1)  # a probe's interval: there is nothing to wait on before it listens


def test_a_real_answer_with_scorable_logprobs(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = tmp_path / "engine.json"
    config: dict[str, Any] = {"listen": f"127.0.0.1:{port}", "servedModelName": "smollm2", "stage": "small"}
    path.write_text(json.dumps(config))
    process = subprocess.Popen([sys.executable, "-m", "cascadia_local.llamacpp_engine", "--config", str(path)])
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_healthy(url, process)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=DEADLINE_SECONDS) as client:
            answer = client.chat.completions.create(
                model="smollm2",
                messages=[{"role": "user", "content": "What is the capital of France?"}],
                logprobs=True,
                max_tokens=12,
                temperature=0,
                extra_body={"simulation": {"key": "ignored by a real engine"}},
            )
        [choice] = answer.choices
        assert choice.message.content
        assert choice.logprobs is not None
        values = [entry.logprob for entry in choice.logprobs.content or ()]
        assert answer.usage is not None
        assert len(values) == answer.usage.completion_tokens
        assert all(value <= 0 for value in values)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_SECONDS) == 0
    finally:
        process.kill()
        process.wait(DEADLINE_SECONDS)
