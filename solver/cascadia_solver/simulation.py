"""Event-jump simulation of replicas, stages and cascades.

Exact for the scheduler that `batcher` describes: a run of decode steps in which nothing changes is
one event, so ten thousand requests take milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from cascadia_solver.scheduling_kernel import Floats, Ints, run_stage
from cascadia_solver.stage_visits import Journeys, Visit, let_in, let_out, merged
from cascadia_solver.steptime import StepModel

__all__ = [
    "CascadeTimes",
    "StageReplicas",
    "StageTimes",
    "simulate_cascade",
    "simulate_closed_loop",
    "simulate_replica",
    "simulate_stage",
]

_OUTSIDE = StepModel._fields.index("first_token_seconds")
_CROWD_SEED = 20260707
_CROWDS = 8
"""Draws that are kept: many simulations of one plan differ in their replicas only."""
_APART = 0.02
"""How far, as a share of the time that is simulated, a request of the crowd may enter from one that does."""


@dataclass(frozen=True, slots=True)
class StageReplicas:
    """The replicas of one stage.

    Attributes:
        steps: Each replica's step model; empty for a stage without GPUs.
        weights: Each replica's share of the load, relative to the others, > 0.
    """

    steps: Sequence[StepModel]
    weights: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.weights):
            raise ValueError(f"{len(self.steps)} replicas, but {len(self.weights)} weights")
        if any(weight <= 0.0 for weight in self.weights):
            raise ValueError(f"weights must be positive, not {list(self.weights)}")


@dataclass(frozen=True, slots=True)
class StageTimes:
    """What one stage did.

    Attributes:
        first_token: Times of the first tokens, [n], s; infinite if no replica can hold the request.
        finish: Times of the last tokens, [n], s.
        utilisation: Share of the time between first arrival and last finish in which a replica
            was working, mean over the replicas.
        saturated: Whether the queue grew with the number of requests.
    """

    first_token: Floats
    finish: Floats
    utilisation: float
    saturated: bool


@dataclass(frozen=True, slots=True)
class CascadeTimes:
    """What a cascade did with each request.

    Attributes:
        end_to_end: Seconds from arrival to the whole accepted answer, [n].
        time_to_first_token: Seconds to the first byte that a client sees, [n]: answers are held
            back until accepted, except those of the last stage, which stream.
        stage_service: For each stage, seconds from arrival there to the end of its answer, of the
            requests that it saw, in order of their index; empty for a stage without replicas.
        stage_first: The same to the first token of its answer.
        stage_per_token: The same of each further token.
        utilisation: For each stage, see `StageTimes`.
        saturated: For each stage, whether its queue grew without bound.
    """

    end_to_end: Floats
    time_to_first_token: Floats
    stage_service: list[Floats]
    stage_first: list[Floats]
    stage_per_token: list[Floats]
    utilisation: list[float]
    saturated: list[bool]


def simulate_replica(
    step: StepModel, arrivals: npt.ArrayLike, inputs: npt.ArrayLike, outputs: npt.ArrayLike
) -> tuple[Floats, Floats]:
    """Simulate one replica.

    Args:
        step: Its step model.
        arrivals: Times of arrival, [n], s, ascending.
        inputs: Prompt lengths, [n].
        outputs: Answer lengths, [n].

    Returns:
        Times of the first and of the last tokens, [n], s.
    """
    times = simulate_stage(StageReplicas([step], [1.0]), arrivals, inputs, outputs)
    return times.first_token, times.finish


def simulate_stage(
    stage: StageReplicas, arrivals: npt.ArrayLike, inputs: npt.ArrayLike, outputs: npt.ArrayLike
) -> StageTimes:
    """Simulate the replicas of one stage together.

    Each request goes, when it arrives, to the replica with the fewest outstanding requests by
    weight (the first of them if several): the routers' rule, as one that sees all would follow it. A
    router knows only of what it has sent itself: docs/resilience.md says what that costs. It gets to the
    scheduler after the time that requests spend outside the steps: the replicas' mean.

    Args:
        stage: At least one replica.
        arrivals: Times of arrival, [n], s, ascending.
        inputs: Prompt lengths, [n], tokens; below 1 counts as 1.
        outputs: Answer lengths, [n], tokens; below 1 counts as 1.

    Raises:
        ValueError: If there is no replica, lengths differ or arrivals descend.
    """
    when = np.ascontiguousarray(arrivals, dtype=np.float64)
    prompts, answers = _lengths(inputs), _lengths(outputs)
    if not stage.steps:
        raise ValueError("a stage without replicas serves nothing")
    if not len(when) == len(prompts) == len(answers):
        raise ValueError(f"{len(when)} arrivals, {len(prompts)} prompts and {len(answers)} answers")
    if not np.all(np.diff(when) >= 0.0):
        raise ValueError("arrivals must ascend")
    return _simulated(_matrix(stage), when, prompts, answers)


def _simulated(replicas: Floats, when: Floats, prompts: Ints, answers: Ints) -> StageTimes:
    """A stage with replicas as `_matrix` has them; [n]."""
    if len(when) == 0:
        return StageTimes(np.empty(0), np.empty(0), 0.0, saturated=False)
    steps, weights = np.ascontiguousarray(replicas[:, :-1]), np.ascontiguousarray(replicas[:, -1])
    outside = (steps[:, _OUTSIDE] * weights).sum() / weights.sum()
    run = run_stage(steps, weights, when + outside, prompts, answers, 0)
    span = run.last_finish - when[0]
    utilisation = float(run.busy.mean()) / span if 0.0 < span < np.inf else 0.0
    # A stable queue's length does not depend on the number of requests, and at the very limit it
    # grows as a random walk, like the square root; more than three times that is growth in proportion.
    saturated = run.waiting > 3.0 * math.sqrt(len(when)) or run.served < len(when)
    return StageTimes(run.first_token, run.finish, utilisation, saturated)


def _matrix(stage: StageReplicas) -> Floats:
    """A stage's replicas as rows: step model and weight."""
    return np.array([(*step, weight) for step, weight in zip(stage.steps, stage.weights, strict=True)])


def simulate_closed_loop(
    step: StepModel,
    concurrency: int,
    inputs: npt.ArrayLike,
    outputs: npt.ArrayLike,
    *,
    ramp_seconds: float = 0.0,
) -> tuple[Floats, Floats, Floats]:
    """Simulate one replica under a fixed number of clients, each of which asks again when answered.

    Args:
        step: The replica's step model.
        concurrency: Clients, ≥ 1.
        inputs: Prompt lengths, [n].
        outputs: Answer lengths, [n].
        ramp_seconds: Time over which the clients start, evenly spread; clients that start together
            and get answers of one length stay in step for ever.

    Returns:
        Times of arrival, of the first and of the last tokens, [n], s.

    Raises:
        ValueError: If there is no client, or some request exceeds the key-value cache.
    """
    prompts, answers = _lengths(inputs), _lengths(outputs)
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, not {concurrency}")
    if len(prompts) and (prompts + answers).max() > step.kv_capacity_tokens:
        raise ValueError(f"a request exceeds the key-value cache of {step.kv_capacity_tokens:.0f} tokens")
    steps = np.array([step], dtype=np.float64)
    starts = np.arange(len(prompts), dtype=np.float64) * (ramp_seconds / concurrency)
    run = run_stage(steps, np.ones(1), starts, prompts, answers, concurrency)
    return run.arrival, run.first_token, run.finish


def simulate_cascade(
    stages: Sequence[StageReplicas],
    arrivals: npt.ArrayLike,
    inputs: npt.ArrayLike,
    outputs: npt.ArrayLike,
    exit_stage: npt.ArrayLike,
    scorer_seconds: float = 0.0,
    hop_seconds: float = 0.002,
    able: npt.NDArray[np.bool_] | None = None,
    gate_tokens: int | None = None,
    crowd: Sequence[float] | None = None,
    margin: int = 0,
    known: dict[bytes, StageTimes] | None = None,
    until: int | None = None,
) -> CascadeTimes:
    """Simulate requests on their way through a cascade.

    A request visits the stages that have replicas, in order, up to the one whose answer is accepted.
    A stage's arrivals depend on the stages before it only, so stages are simulated one by one.

    Args:
        stages: In order, smallest model first.
        arrivals: Times of arrival at the entry, [n], s, ascending.
        inputs: Prompt lengths, [n], the same at every stage.
        outputs: Answer lengths, [n, stages]: models differ in verbosity.
        exit_stage: Index of the stage whose answer is accepted, [n]; it must have replicas.
        scorer_seconds: Time to score an answer; the last stage's answers are not scored.
        hop_seconds: Time to pass a request on to the next stage.
        able: Which stages can take each request, [n, stages]; None: all of them. It passes the others by, and
            one that its exit stage cannot take is refused there at once.
        gate_tokens: Answers of all stages but the last are decided on after so many tokens: rejected ones stop
            there, accepted ones begin to be seen there (in between, tokens are taken to come evenly). None: they
            are decided on at their end.
        crowd: How many requests come to each stage for each of these that does, ≥ 1 [stages]: the others are
            like these, enter the cascade about when any request does, and are only there to load the replicas. None:
            one.
        margin: So many requests at the beginning and at the end are only there for the others to find the
            cascade at work: n is without them in what is returned.
        known: What stages did in other simulations: cascades that begin alike need those stages once. Those of
            this one are added.
        until: Stages after this one are left out: requests end where they are passed on to those.

    Raises:
        ValueError: If some request's exit stage has no replicas, or shapes disagree.
    """
    when = np.ascontiguousarray(arrivals, dtype=np.float64)
    prompts = _lengths(inputs)
    answers = np.ascontiguousarray(outputs, dtype=np.float64)
    exits = np.ascontiguousarray(exit_stage, dtype=np.int64)
    live = [index for index, stage in enumerate(stages) if stage.steps]
    if answers.shape != (len(when), len(stages)) or exits.shape != when.shape:
        raise ValueError(f"outputs must have shape {(len(when), len(stages))}, not {answers.shape}")
    elsewhere = np.ones(len(exits), dtype=bool)
    for index in live:
        elsewhere &= exits != index
    if elsewhere.any():
        raise ValueError(f"requests end at stages without replicas; those with replicas are {live}")

    farthest = exits.max(initial=-1)
    journeys = Journeys(prompts, answers, exits, when.copy(), *np.full((2, len(when)), np.inf))
    own: list[Floats] = [np.empty((3, 0)) for _ in stages]
    utilisation = [0.0] * len(stages)
    saturated = [False] * len(stages)
    for index in live:
        if until is not None and index > until:
            _end(journeys, exits > until)
            break
        comes = exits >= index
        if able is not None:
            _end(journeys, (exits == index) & ~able[:, index])
            comes &= able[:, index]
        last = index == live[-1] or index >= farthest  # what accepts every answer streams it, and scores none
        gate = math.inf if gate_tokens is None or last else float(gate_tokens)
        visit = let_in(journeys, comes, index, gate)
        times = _simulated_crowd(stages[index], visit, when, 1.0 if crowd is None else crowd[index], known)
        utilisation[index] = times.utilisation
        saturated[index] = times.saturated or not visit.all_come
        each = let_out(
            journeys, visit, times.first_token, times.finish, index, last, gate, float(scorer_seconds), hop_seconds
        )
        first, end = np.searchsorted(visit.visitors, (margin, len(when) - margin))
        own[index] = each[:, first:end]
    measured = slice(margin, len(when) - margin)
    end_to_end, first_byte = ((seen - when)[measured] for seen in (journeys.end, journeys.first_byte))
    service, to_first, per_token = ([of[figure] for of in own] for figure in range(3))
    return CascadeTimes(end_to_end, first_byte, service, to_first, per_token, utilisation, saturated)


def _end(journeys: Journeys, where: npt.NDArray[np.bool_]) -> None:
    """Let requests end where they are."""
    np.copyto(journeys.end, journeys.at_stage, where=where)
    np.copyto(journeys.first_byte, journeys.at_stage, where=where)


def _simulated_crowd(
    stage: StageReplicas, visit: Visit, entered: Floats, crowd: float, known: dict[bytes, StageTimes] | None
) -> StageTimes:
    """A stage that its visitors come to among others, unless that is known; returns the visitors' times."""
    replicas = _matrix(stage)
    others = round((crowd - 1.0) * len(visit.came))
    if known is None:
        return _simulated_among(replicas, visit, entered, others)
    given = (np.append(replicas, (crowd, entered.sum())), visit.came, visit.prompts, visit.answers)
    key = b"".join(hash(array.tobytes()).to_bytes(8, "little", signed=True) for array in given)
    if key not in known:
        known[key] = _simulated_among(replicas, visit, entered, others)
    return known[key]


def _simulated_among(replicas: Floats, visit: Visit, entered: Floats, others: int) -> StageTimes:
    """A stage that so many other requests come to as well."""
    count = len(visit.came)
    if visit.ascending and others <= 0:
        return _simulated(replicas, visit.came, visit.prompts, visit.answers)
    order = np.arange(count) if visit.ascending else np.argsort(visit.came, kind="stable")
    like, others_at = np.empty(0, np.int64), np.empty(0)
    if others > 0:
        like, who, aside = _drawn(count, len(entered), math.ceil(others / count))
        # Any request of the cascade may have come here: were they to come when the few that do came, every chance
        # crowding of those would be so many times as large.
        under_way = visit.came - entered[visit.visitors]
        begin, end = visit.came[order[0]], entered[-1] + under_way.max()
        others_at = entered[who[:others]] + under_way[like[:others]]
        # Near enough to come in the same burst, and far enough not to queue behind the one that they came with.
        others_at += _APART * (entered[-1] - entered[0]) * aside[:others]
        others_at = begin + np.abs(others_at - begin)
        others_at = np.sort(end - np.abs(end - others_at))
    every, prompts, answers, place = merged(visit, order, others_at, like)
    times = _simulated(replicas, every, prompts, answers)
    return StageTimes(times.first_token[place], times.finish[place], times.utilisation, times.saturated)


@lru_cache(maxsize=_CROWDS)
def _drawn(count: int, entered: int, times: int) -> tuple[Ints, Ints, Floats]:
    """Of so many times as many others: whom they are like, whom they enter with, and how far from that [count * times].

    Args:
        count: Requests that come to the stage.
        entered: Requests of the cascade.
        times: So many times as many others.

    Returns:
        Places among either, and numbers in [-1, 1). Of fewer others, they are the first ones of these.
    """
    random = np.random.default_rng(_CROWD_SEED)
    others = count * times
    like = np.tile(random.permutation(count), times)
    who = np.tile(random.permutation(entered), math.ceil(others / entered))[:others]
    return like, who, random.uniform(-1.0, 1.0, others)


def _lengths(tokens: npt.ArrayLike) -> Ints:
    given = np.asarray(tokens)
    whole: Ints = given if given.dtype == np.int64 else np.rint(given.astype(np.float64)).astype(np.int64)
    return np.maximum(whole, 1)
