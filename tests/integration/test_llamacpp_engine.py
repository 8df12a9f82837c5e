"""The llama.cpp engine with a real small model; `make engine` installs both."""

from __future__ import annotations

import signal
from pathlib import Path

import openai

from tests.support.llamacpp_process import DEADLINE_SECONDS, llamacpp_process


def test_a_real_answer_with_scorable_logprobs(tmp_path: Path) -> None:
    with llamacpp_process(tmp_path) as (address, process):
        with openai.OpenAI(base_url=f"http://{address}/v1", api_key="none", timeout=DEADLINE_SECONDS) as client:
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
