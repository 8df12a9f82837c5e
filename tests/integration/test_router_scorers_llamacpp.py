"""Every scorer that reads a model's tokens, on llama.cpp with a real small model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cascadia_api.cascade.scorer import Scorer
from cascadia_api.scorer_policy import scorer_policy
from tests.support.llamacpp_process import llamacpp_process
from tests.support.router_chain import StageOf, chain_of, http
from tests.support.scripted_engine import RunningEngine

PATIENCE_SECONDS = 240.0


@pytest.fixture(scope="module")
def llamacpp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with llamacpp_process(tmp_path_factory.mktemp("llamacpp")) as (address, _):
        yield address


@pytest.mark.parametrize(
    "scorer",
    [
        {"type": "LogProb", "statistic": "Quantile", "quantile": "0.2"},
        {"type": "LogProb", "statistic": "Margin"},
        {"type": "SelfVerify"},
        {"type": "Judge", "judge": {"url": "http://{address}/v1", "model": "smollm2", "reply": "YesNo"}},
        {"type": "Composite", "combine": "WeightedMean", "parts": [{"type": "SelfVerify"}, {"type": "LogProb"}]},
    ],
    ids=lambda scorer: "-".join(str(value) for value in scorer.values() if isinstance(value, str)),
)
@pytest.mark.parametrize("path", ["chat/completions", "completions"])
async def test_a_real_models_answer_gets_a_score(
    tmp_path: Path, llamacpp: str, scorer: dict[str, Any], path: str
) -> None:
    if "judge" in scorer:
        scorer = scorer | {"judge": scorer["judge"] | {"url": f"http://{llamacpp}/v1"}}
    policy = scorer_policy(Scorer.model_validate(scorer))
    policy = msgspec.structs.replace(policy, deadline_seconds=PATIENCE_SECONDS)
    if policy.parts is not msgspec.UNSET:
        parts = [msgspec.structs.replace(part, deadline_seconds=PATIENCE_SECONDS) for part in policy.parts]
        policy = msgspec.structs.replace(policy, parts=parts)
    engines = [RunningEngine(name, address=llamacpp) for name in ("s", "l")]
    stages = StageOf("small", 0.0, [engines[0]]), StageOf("large", None, [engines[1]])
    question = "What is the capital of France? Answer in one word."
    asked = {"prompt": question} if path == "completions" else {"messages": [{"role": "user", "content": question}]}
    async with chain_of(tmp_path, *stages, scorer=policy) as chain:
        body = {"model": "chat", "max_tokens": 4, "temperature": 0, **asked}
        answered = await http(chain.client("small"), f"/v1/{path}", body, seconds=PATIENCE_SECONDS)
        metrics = chain.router("small").node.metrics
        assert not metrics.scorer_errors
        decision = answered.json["cascadia"]
        assert decision["stage"] == "small"
        assert 0 < decision["score"] < 1
        assert not answered.json["choices"][0].get("logprobs")
