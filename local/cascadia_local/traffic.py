"""The traffic of a run, as data: phases of synthetic requests or the rows of a trace, and what came of each request.

Synthetic requests follow published statistics of production traces: gaps between arrivals are gamma
distributed with a coefficient of variation of 1.1 (Azure's 2023 conversation trace has 1.09; Poisson
arrivals have 1), prompt and answer lengths are log-normal through the mean and the 95th percentile
that the manifest's `workload` states (for the example, those of the same trace). Prompts themselves
are a line of text: the body's `simulation` object tells the simulated engines the lengths.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from cascadia_local.simulated_engine.calibration import LengthDistribution

__all__ = [
    "ARRIVAL_CV",
    "Answered",
    "Phase",
    "PlannedRequest",
    "Progress",
    "TrafficCommand",
    "TrafficConfig",
    "TrafficUpdate",
    "phase_requests",
    "read_requests",
    "write_requests",
]

ARRIVAL_CV = 1.1
"""Coefficient of variation of the gaps between arrivals."""

Positive = Annotated[float, Meta(gt=0)]


class Phase(Struct, frozen=True, rename="camel", kw_only=True):
    """A stretch of traffic of one kind; it lasts until the next phase is asked for.

    Attributes:
        name: Shown, and part of the requests' keys.
        requests_per_second: Arrival rate, service time.
        hardness: Shift of the requests' difficulty (standard deviations of the difficulty model's margin).
        inputs, outputs: Distributions of prompt and answer lengths.
        trace: JSON lines of `PlannedRequest` that gaps and lengths are taken from instead, over and
            over, with the gaps scaled to the arrival rate.
    """

    name: str
    requests_per_second: Positive
    hardness: float = 0.0
    inputs: LengthDistribution
    outputs: LengthDistribution
    trace: str | None = None


class PlannedRequest(Struct, frozen=True, rename="camel", kw_only=True, omit_defaults=True):
    """One request to send.

    Attributes:
        at: When, service seconds after the phase's (or the trace's) start.
        key: Its identity to the difficulty model.
        input_tokens, output_tokens: Prompt length and base answer length.
        hardness: Shift of its difficulty.
        row: Recorded request whose outcome the engines shall use.
    """

    at: float
    key: str
    input_tokens: int
    output_tokens: int
    hardness: float = 0.0
    row: str | None = None

    def simulation(self) -> dict[str, object]:
        """The body's `simulation` object."""
        hints: dict[str, object] = {
            "key": self.key,
            "inputTokens": self.input_tokens,
            "outputTokens": self.output_tokens,
            "hardness": self.hardness,
        }
        return hints if self.row is None else hints | {"row": self.row}


class TrafficConfig(Struct, frozen=True, rename="camel", kw_only=True):
    """What the traffic process is told at its start.

    Attributes:
        base_url: OpenAI base URL of the cascade.
        model: The `model` to ask for.
        clock_scale, clock_epoch: The run's clock.
        timeout_seconds: Longest wait for an answer, service seconds.
        stream_share: Share of the requests that ask for a stream.
        seed: Seed of arrivals, lengths and keys.
        simulated: Whether the engines take the `simulation` object; real ones get a length limit instead.
        requests_file: JSON lines of `PlannedRequest` to replay, once asked to.
        api_key: The cascade's API key; None if it wants none.
    """

    base_url: str
    model: str
    clock_scale: Positive = 1.0
    clock_epoch: float = 0.0
    timeout_seconds: Positive = 600.0
    stream_share: Annotated[float, Meta(ge=0, le=1)] = 0.1
    seed: int = 0
    simulated: bool = True
    requests_file: str | None = None
    api_key: str | None = None


class TrafficCommand(Struct, frozen=True, rename="camel", kw_only=True, omit_defaults=True):
    """One line on the traffic process' standard input.

    Attributes:
        do: ``phase`` starts (or replaces) synthetic traffic, ``replay`` sends the requests file,
            ``stop`` sends nothing more and ends once every answer is in.
        phase: For ``phase``.
    """

    do: Literal["phase", "replay", "stop"]
    phase: Phase | None = None


class Answered(Struct, frozen=True, array_like=True, kw_only=True):
    """What came of one request. Times are service seconds.

    Attributes:
        sent_at: Scaled Unix time.
        seconds: From sending to the last byte of the answer.
        failure: What went wrong; empty if nothing did.
        stage: Stage that answered.
        path: Stages that it went through, as in ``small>large``.
        quality: The answer's worth, told by a simulated engine.
        engine_seconds: Exact virtual time in the answering engine, told by a simulated engine.
    """

    sent_at: float
    seconds: float
    failure: str = ""
    stage: str = ""
    path: str = ""
    quality: float | None = None
    engine_seconds: float | None = None


class Progress(Struct, frozen=True, rename="camel", kw_only=True):
    """How the traffic process itself fares.

    Attributes:
        sent: Requests sent so far.
        in_flight: Requests without an answer yet.
        late_seconds_mean: Mean delay of sending behind the schedule, wall seconds.
        loop_lag_p95_seconds: 95th percentile of the event loop's lag, wall seconds.
        cpu_seconds: CPU time of the process.
        replayed: Whether the whole requests file has been sent.
    """

    sent: int = 0
    in_flight: int = 0
    late_seconds_mean: float = 0.0
    loop_lag_p95_seconds: float = 0.0
    cpu_seconds: float = 0.0
    replayed: bool = False


class TrafficUpdate(Struct, frozen=True, rename="camel", kw_only=True):
    """One line on the traffic process' standard output: answers since the last one."""

    answers: list[Answered]
    progress: Progress
    ended: bool = False


def phase_requests(phase: Phase, *, seed: int) -> Iterator[PlannedRequest]:
    """Yield the endless requests of a phase; a pure function of the phase, its trace and the seed."""
    shapes = _synthetic(phase, seed) if phase.trace is None else _from_trace(phase, read_requests(phase.trace))
    at = 0.0
    for number, (gap, input_tokens, output_tokens) in enumerate(shapes):
        at += gap
        yield PlannedRequest(
            at=at,
            key=f"traffic-{seed}-{phase.name}-{number}",
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            hardness=phase.hardness,
        )


def _synthetic(phase: Phase, seed: int) -> Iterator[tuple[float, int, int]]:
    """Gaps before requests, s, and their lengths."""
    source = random.Random(f"traffic/{seed}/{phase.name}")  # noqa: S311 - a simulation, not a secret
    shape = 1 / ARRIVAL_CV**2
    mean_gap = 1 / phase.requests_per_second
    while True:
        # Lengths by the dozen: the parameters are worked out once a batch.
        lengths = zip(phase.inputs.draw(source, 64), phase.outputs.draw(source, 64), strict=True)
        for input_tokens, output_tokens in lengths:
            yield source.gammavariate(shape, mean_gap / shape), input_tokens, output_tokens


def _from_trace(phase: Phase, trace: Iterable[PlannedRequest]) -> Iterator[tuple[float, int, int]]:
    requests = list(trace)
    own_gap = (requests[-1].at - requests[0].at) / (len(requests) - 1)
    pace = 1 / (phase.requests_per_second * own_gap)
    while True:
        before = requests[0].at - own_gap
        for request in requests:
            yield (request.at - before) * pace, request.input_tokens, request.output_tokens
            before = request.at


def write_requests(path: Path, requests: Iterable[PlannedRequest]) -> None:
    """Write requests as JSON lines."""
    with path.open("wb") as file:
        file.writelines(msgspec.json.encode(request) + b"\n" for request in requests)


def read_requests(path: str) -> Iterator[PlannedRequest]:
    """Read requests from JSON lines."""
    decoder = msgspec.json.Decoder(PlannedRequest)
    with Path(path).open("rb") as lines:
        for line in lines:
            yield decoder.decode(line)
