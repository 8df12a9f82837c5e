"""The engine's routes: SGLang's HTTP surface over the simulated replica."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from cascadia_api.clock import ScaledClock
from cascadia_local.simulated_engine.answers import Answer, ChatFormat, TextFormat
from cascadia_local.simulated_engine.completion_request import BadRequest, CompletionRequest, parse_chat, parse_text
from cascadia_local.simulated_engine.config import SimulatedEngineConfig
from cascadia_local.simulated_engine.generation import Exchange, Generation
from cascadia_local.simulated_engine.http_server import Connection, error_body
from cascadia_local.simulated_engine.metrics import EngineMetrics
from cascadia_local.simulated_engine.outcomes import Outcomes

__all__ = ["SimulatedEngine"]

SURFACE = "0.5.23"
"""The SGLang version whose HTTP surface this is."""


class SimulatedEngine:
    """Answers an engine's HTTP requests.

    Args:
        config: The process's configuration.
        outcomes: Decides how requests turn out.
        loop: The event loop that it runs on.
    """

    def __init__(self, config: SimulatedEngineConfig, outcomes: Outcomes, loop: asyncio.AbstractEventLoop) -> None:
        self.config = config
        self.clock = ScaledClock(scale=config.clock_scale, epoch=config.clock_epoch)
        self.metrics = EngineMetrics()
        self.loaded = self.draining = False
        step = config.step_model
        self.generation = Generation(step, self.clock, loop, self.metrics, config.stream_interval_milliseconds / 1000)
        self._outcomes = outcomes
        self._model = msgspec.json.encode(config.served_model_name)
        self._context = min(config.context_window, int(step.kv_capacity_tokens))
        self._prefix = os.urandom(6).hex()
        self._numbers = itertools.count(1)
        self._posts: dict[bytes, tuple[Callable[[bytes], CompletionRequest], str, type[ChatFormat | TextFormat]]] = {
            b"/v1/chat/completions": (parse_chat, "chatcmpl", ChatFormat),
            b"/v1/completions": (parse_text, "cmpl", TextFormat),
        }
        self._gets: dict[bytes, Callable[[Connection], None]] = {
            b"/ready": self._ready,
            b"/health": self._ready,
            b"/health_generate": self._ready,
            b"/ping": lambda connection: connection.respond(200, b""),
            b"/metrics": self._metrics_text,
            b"/server_info": lambda connection: connection.respond(200, msgspec.json.encode(self.server_info())),
            b"/model_info": lambda connection: connection.respond(200, msgspec.json.encode(self.model_info())),
            b"/v1/models": lambda connection: connection.respond(200, msgspec.json.encode(self.models())),
            b"/v1/loads": lambda connection: connection.respond(200, msgspec.json.encode(self.loads())),
        }

    def handle(self, connection: Connection, method: bytes, path: bytes, body: bytes) -> Callable[[], None] | None:
        """Answer one request, see `http_server.Handler`."""
        if method == b"POST" and path in self._posts:
            return self._complete(connection, path, body)
        if method == b"GET" and path in self._gets:
            self._gets[path](connection)
        elif path in self._posts or path in self._gets:
            connection.respond(405, error_body(405, f"{method.decode()} is not allowed on {path.decode()}"))
        else:
            connection.respond(404, error_body(404, f"no such path: {path.decode(errors='replace')}"))
        return None

    def _complete(self, connection: Connection, path: bytes, body: bytes) -> Callable[[], None] | None:
        if not self.loaded:
            connection.respond(503, error_body(503, "the model is still loading"))
            return None
        parse, prefix, form = self._posts[path]
        arrived = self.generation.now()
        try:
            request = parse(body)
            input_tokens, outcome = self._outcomes.outcome(request)
            limit = self._answer_limit(input_tokens, request.max_tokens)
        except BadRequest as error:
            connection.respond(400, error_body(400, str(error), "BadRequestError"))
            return None
        identifier = f"{prefix}-{self._prefix}{next(self._numbers):010x}"
        answer = Answer(identifier, request, outcome, input_tokens, limit, arrived)
        self.generation.begin(Exchange(answer, form(answer, self._model, int(self.clock.now())), connection))
        return lambda: self.generation.cancel(identifier)

    def _answer_limit(self, input_tokens: int, max_tokens: int | None) -> int:
        """Longest answer possible, tokens; the errors are SGLang's."""
        if input_tokens >= self._context:
            raise BadRequest(
                f"The input ({input_tokens} tokens) is longer than the model's context length ({self._context} tokens)."
            )
        if max_tokens is None:
            return self._context - input_tokens
        if input_tokens + max_tokens > self._context:
            raise BadRequest(
                f"Requested token count exceeds the model's maximum context length of {self._context} tokens. You "
                f"requested a total of {input_tokens + max_tokens} tokens: {input_tokens} tokens from the input "
                f"messages and {max_tokens} tokens for the completion."
            )
        return max_tokens

    def _ready(self, connection: Connection) -> None:
        if self.draining:
            connection.respond(503, error_body(503, "the engine is shutting down"))
        elif not self.loaded:
            connection.respond(503, error_body(503, "the model is still loading"))
        else:
            connection.respond(200, b"")

    def _metrics_text(self, connection: Connection) -> None:
        batcher = self.generation.batcher
        gauges: dict[str, float] = {
            "num_running_reqs": batcher.running,
            "num_queue_reqs": batcher.waiting,
            "num_used_tokens": batcher.kv_tokens,
            "max_total_num_tokens": int(self.config.step_model.kv_capacity_tokens),
            "token_usage": self._token_usage(),
            "cache_hit_rate": 0.0,
        }
        text = self.metrics.text(self.config.served_model_name, gauges)
        connection.respond(200, text, b"content-type: text/plain; version=0.0.4; charset=utf-8\r\n")

    def _token_usage(self) -> float:
        return self.generation.batcher.kv_tokens / self.config.step_model.kv_capacity_tokens

    def server_info(self) -> dict[str, Any]:
        """`/server_info`: some of SGLang's fields, and that and how this engine is simulated."""
        config, step = self.config, self.config.step_model
        lateness = self.metrics.lateness
        count = lateness.count
        return {
            "model_path": config.served_model_name,
            "served_model_name": config.served_model_name,
            "tp_size": config.tensor_parallel,
            "pp_size": config.pipeline_parallel,
            "dp_size": 1,
            "context_length": self._context,
            "max_total_num_tokens": int(step.kv_capacity_tokens),
            "max_running_requests": int(step.max_running),
            "chunked_prefill_size": int(step.chunk_tokens),
            "status": "ready" if self.loaded and not self.draining else "draining" if self.draining else "loading",
            "version": f"{SURFACE}-surface",
            "simulated": True,
            "simulation": {
                "stage": config.stage,
                "hardware": config.hardware,
                "stepSource": config.step_source,
                "step": step._asdict(),
                "outcomes": type(self._outcomes).__name__,
                "model": config.model,
                "seed": config.seed,
                "errorCorrelation": config.error_correlation,
                "clockScale": config.clock_scale,
                "now": self.generation.now(),
                "lateness": {
                    "meaning": "service seconds by which answers were sent after their virtual finish",
                    "answers": count,
                    "sumSeconds": lateness.sum,
                    "meanSeconds": lateness.sum / count if count else 0.0,
                    "maxSeconds": lateness.max,
                },
            },
        }

    def model_info(self) -> dict[str, Any]:
        """`/model_info`."""
        name = self.config.served_model_name
        return {"model_path": name, "tokenizer_path": name, "is_generation": True, "simulated": True}

    def models(self) -> dict[str, Any]:
        """`/v1/models`."""
        name = self.config.served_model_name
        model = {"id": name, "object": "model", "created": int(self.clock.now()), "owned_by": "cascadia-simulated"}
        return {"object": "list", "data": [{**model, "root": name, "parent": None, "max_model_len": self._context}]}

    def loads(self) -> dict[str, Any]:
        """`/v1/loads`: one data-parallel rank."""
        batcher, step = self.generation.batcher, self.config.step_model
        load = {
            "dp_rank": 0,
            "num_running_reqs": batcher.running,
            "num_waiting_reqs": batcher.waiting,
            "num_used_tokens": batcher.kv_tokens,
            "max_total_num_tokens": int(step.kv_capacity_tokens),
            "max_running_requests": int(step.max_running),
            "token_usage": self._token_usage(),
        }
        stamp = datetime.now(UTC).isoformat()
        return {"timestamp": stamp, "version": f"{SURFACE}-surface", "loads": [load]}
