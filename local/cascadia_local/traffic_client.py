"""The process that sends a run's traffic: ``python -m cascadia_local.traffic_client CONFIG.json``.

A process of its own, so that what the OpenAI client costs (about 2 ms of CPU a request) delays
neither the view nor the controller. Commands come as JSON lines on standard input, what happened
goes out as JSON lines on standard output (see `traffic`).

Requests are sent when they are due whatever has become of earlier ones (an open loop). Nothing is
retried: a failure that a retry would hide is a failure.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from openai import AsyncOpenAI, DefaultAioHttpClient, DefaultAsyncHttpxClient
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from cascadia_api.clock import ScaledClock
from cascadia_local.traffic import (
    Answered,
    PlannedRequest,
    Progress,
    TrafficCommand,
    TrafficConfig,
    TrafficUpdate,
    phase_requests,
    read_requests,
)

__all__ = ["TrafficClient", "main"]

REPORT_S = 0.2
"""Wall seconds between two updates."""
LAG_PROBE_S = 0.02
"""Wall seconds between two looks at the event loop's lag."""
REAL_ENGINE_TOKENS = 48
"""Longest answer asked of a real engine: small models on a CPU make some tens of tokens a second."""


class TrafficClient:
    """Sends requests and keeps what came of them until it is reported.

    Args:
        config: What to send where.
    """

    def __init__(self, config: TrafficConfig) -> None:
        self._config = config
        self._clock = ScaledClock(config.clock_scale, config.clock_epoch)
        self._client = AsyncOpenAI(
            base_url=config.base_url,
            api_key=config.api_key or "not-needed",
            max_retries=0,
            timeout=max(5.0, self._clock.wall(config.timeout_seconds) + 2.0),
            http_client=_transport(),
        )
        self._random = random.Random(f"stream/{config.seed}")  # noqa: S311 - a simulation, not a secret
        self._answers: list[Answered] = []
        self._in_flight: set[asyncio.Task[None]] = set()
        self._sending: asyncio.Task[None] | None = None
        self._sent, self._late = 0, 0.0
        self._lags: deque[float] = deque(maxlen=1_000)
        self._replayed = False

    async def run(self, commands: asyncio.StreamReader) -> None:
        """Obey commands until ``stop`` (or the end of the input), then wait for the last answers."""
        reporter = asyncio.create_task(self._report_regularly())
        prober = asyncio.create_task(self._probe_lag())
        while line := await commands.readline():
            command = msgspec.json.decode(line, type=TrafficCommand)
            await self._stop_sending()
            if command.do == "stop":
                break
            requests: Iterable[PlannedRequest]
            if command.phase is not None:
                requests = phase_requests(command.phase, seed=self._config.seed)
            else:
                requests = read_requests(self._config.requests_file or "")
            self._sending = asyncio.create_task(self._send(requests, replay=command.do == "replay"))
        await self._stop_sending()
        while self._in_flight:
            await asyncio.wait(self._in_flight)
        reporter.cancel()
        prober.cancel()
        self._report(ended=True)
        await self._client.close()

    async def _stop_sending(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)

    async def _send(self, requests: Iterable[PlannedRequest], *, replay: bool) -> None:
        start = self._clock.monotonic()
        for request in requests:
            wait = self._clock.wall(start + request.at - self._clock.monotonic())
            if wait > 0:
                await asyncio.sleep(wait)
            late = self._clock.wall(self._clock.monotonic() - start - request.at)
            self._late += max(0.0, late)
            self._sent += 1
            task = asyncio.create_task(self._ask(request))
            self._in_flight.add(task)
            task.add_done_callback(self._in_flight.discard)
        self._replayed = replay

    async def _ask(self, request: PlannedRequest) -> None:
        streamed = self._random.random() < self._config.stream_share
        sent_at, start = self._clock.now(), self._clock.monotonic()
        told: dict[str, Any] = {}
        failure = ""
        try:
            if streamed:
                told = await self._stream(request)
            else:
                told = _told(await self._client.chat.completions.create(**self._body(request)))
        except Exception as error:  # noqa: BLE001 - whatever went wrong, it is this request's failure
            failure = f"{type(error).__name__}: {error}"[:300]
        if not failure and not told.get("cascadia"):
            failure = "the answer ended without a cascadia object"
        cascadia = told.get("cascadia") or {}
        simulated = told.get("cascadia_simulated") or {}
        end = self._clock.monotonic()
        self._answers.append(
            Answered(
                sent_at=sent_at,
                seconds=end - start,
                failure=failure,
                stage=cascadia.get("stage") or "",
                path=cascadia.get("path") or "",
                quality=simulated.get("quality"),
                engine_seconds=simulated["finishedAt"] - simulated["arrivedAt"] if "finishedAt" in simulated else None,
            )
        )

    def _body(self, request: PlannedRequest) -> dict[str, Any]:
        # As extra_body, which the client sends as it is: checking typed messages costs it half a millisecond.
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": f"Question {request.key}: what is the answer?"}]
        }
        if self._config.simulated:
            body["simulation"] = request.simulation()
        else:
            body["max_tokens"] = min(REAL_ENGINE_TOKENS, request.output_tokens)
        return {"model": self._config.model, "messages": [], "extra_body": body}

    async def _stream(self, request: PlannedRequest) -> dict[str, Any]:
        told: dict[str, Any] = {}
        async with await self._client.chat.completions.create(stream=True, **self._body(request)) as chunks:
            async for chunk in chunks:
                told |= _told(chunk)
        return told

    async def _probe_lag(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(LAG_PROBE_S)
            self._lags.append(max(0.0, time.monotonic() - before - LAG_PROBE_S))

    async def _report_regularly(self) -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            self._report()

    def _report(self, *, ended: bool = False) -> None:
        lags = sorted(self._lags)
        progress = Progress(
            sent=self._sent,
            in_flight=len(self._in_flight),
            late_seconds_mean=self._late / max(1, self._sent),
            loop_lag_p95_seconds=lags[int(0.95 * len(lags))] if lags else 0.0,
            cpu_seconds=time.process_time(),
            replayed=self._replayed,
        )
        update = TrafficUpdate(answers=self._answers, progress=progress, ended=ended)
        self._answers = []
        sys.stdout.buffer.write(msgspec.json.encode(update) + b"\n")
        sys.stdout.buffer.flush()


def _transport() -> Any:
    """The client's HTTP transport: aiohttp's where it is installed, with half of httpx' CPU time.

    Loopback only: a proxy of the environment must not come between.
    """
    try:
        return DefaultAioHttpClient(trust_env=False)
    except RuntimeError:
        return DefaultAsyncHttpxClient(trust_env=False)


def _told(answer: ChatCompletion | ChatCompletionChunk) -> dict[str, Any]:
    return answer.model_extra or {}


async def _run(config: TrafficConfig) -> None:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await TrafficClient(config).run(reader)


def main() -> None:
    """Run the traffic process."""
    config = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=TrafficConfig)
    uvloop.run(_run(config))


if __name__ == "__main__":
    main()
