"""What the runtime and its planning process say to each other: pickles behind an eight-byte length."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cascadia_api.errors import Problem, Shortfall
from cascadia_api.plan import Plan
from cascadia_solver.inputs import PlanningInputs

__all__ = ["LENGTH", "Expectation", "Infeasible", "Invalid", "Job", "OutOfTime", "Planned", "Progress"]

LENGTH = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class Job:
    """One plan to make.

    Attributes:
        inputs: What to plan from.
        deadline_seconds: After this the planner returns the best so far, wall s.
        in_force: Plan whose figures under the same demand are wanted too.
        replicas: What of `in_force` may stay: `Anew` plans everything, `KeepIfEnough` thresholds alone where
            another placement promises little, `Keep` thresholds alone whatever it promises.
        plan: Plan that is given: none is made, it is `Planned.plan`.
        requests_file: Where to write the demand's requests (`traffic.PlannedRequest`), for a replay.
        outcomes_file: Where to write what every model answers to each of them.
        most_requests: Most requests to write.
    """

    inputs: PlanningInputs
    deadline_seconds: float
    in_force: Plan | None = None
    replicas: Literal["Anew", "Keep", "KeepIfEnough"] = "Anew"
    plan: Plan | None = None
    requests_file: Path | None = None
    outcomes_file: Path | None = None
    most_requests: int | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is: what is being done, and the share that is done."""

    what: str
    share: float


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a plan would do under some demand, once it is at work: not what the first requests to idle engines see.

    Attributes:
        end_to_end_ms: Percentiles 50, 90, 95 and 99 of end-to-end latency; infinite for lost requests.
        quality: Mean worth of the answers.
        reach: Share of requests that get to each stage, by name.
        saturated: Stages that cannot carry their load.
    """

    end_to_end_ms: dict[int, float]
    quality: float
    reach: dict[str, float]
    saturated: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan was made.

    Attributes:
        plan: The plan.
        in_force: What the plan in force would do under the same demand, if that was asked.
    """

    plan: Plan
    in_force: Expectation | None = None


@dataclass(frozen=True, slots=True)
class Invalid:
    """The inputs are wrong: an `InputError`'s content."""

    problems: tuple[Problem, ...]
    source: str | None


@dataclass(frozen=True, slots=True)
class Infeasible:
    """No plan can satisfy the manifest: an `InfeasibleError`'s content."""

    reason: str
    message: str
    shortfalls: tuple[Shortfall, ...]
    nearest: str


@dataclass(frozen=True, slots=True)
class OutOfTime:
    """The deadline came before it was known whether there is a plan: a `PlanningTimeoutError`'s content."""

    message: str
