"""Event-jump simulation of replicas, stages and cascades.

Exact for the scheduler that `batcher` describes: a run of decode steps in which nothing changes is
one event, so ten thousand requests take milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cascadia_solver.scheduling_kernel import Floats, Ints, run_stage
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

_CROWD_SEED = 20260707
_APART = 0.02
"""How far, as a share of the time that is simulated, a request of the crowd may come from one that it is like."""


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
    if len(when) == 0:
        return StageTimes(np.empty(0), np.empty(0), 0.0, saturated=False)
    if not np.all(np.diff(when) >= 0.0):
        raise ValueError("arrivals must ascend")
    steps, weights = np.array(stage.steps, dtype=np.float64), np.array(stage.weights, dtype=np.float64)
    outside = np.average([step.first_token_seconds for step in stage.steps], weights=weights)
    run = run_stage(steps, weights, when + outside, prompts, answers, 0)
    finish = run.finish
    served = finish[np.isfinite(finish)]
    span = float(served.max() - when[0]) if len(served) else 0.0
    utilisation = float(run.busy.mean()) / span if span > 0.0 else 0.0
    # A stable queue's length does not depend on the number of requests, and at the very limit it
    # grows as a random walk, like the square root; more than three times that is growth in proportion.
    saturated = run.waiting > 3.0 * np.sqrt(len(when)) or len(served) < len(when)
    return StageTimes(run.first_token, finish, utilisation, saturated=bool(saturated))


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
            like these, come about when they do, and are only there to load the replicas. None: one.
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
    answers = np.asarray(outputs)
    exits = np.asarray(exit_stage)
    live = [index for index, stage in enumerate(stages) if stage.steps]
    if answers.shape != (len(when), len(stages)) or exits.shape != when.shape:
        raise ValueError(f"outputs must have shape {(len(when), len(stages))}, not {answers.shape}")
    elsewhere = np.ones(len(exits), dtype=bool)
    for index in live:
        elsewhere &= exits != index
    if elsewhere.any():
        raise ValueError(f"requests end at stages without replicas; those with replicas are {live}")

    at_stage = when.copy()
    end = np.full(len(when), np.inf)
    first_byte = np.full(len(when), np.inf)
    service: list[Floats] = [np.empty(0) for _ in stages]
    first: list[Floats] = [np.empty(0) for _ in stages]
    per_token: list[Floats] = [np.empty(0) for _ in stages]
    utilisation = [0.0] * len(stages)
    saturated = [False] * len(stages)
    for index in live:
        if until is not None and index > until:
            going_on = exits > until
            end[going_on] = first_byte[going_on] = at_stage[going_on]
            break
        comes = exits >= index
        if able is not None:
            refused = (exits == index) & ~able[:, index]
            end[refused] = first_byte[refused] = at_stage[refused]
            comes &= able[:, index]
        visitors = np.flatnonzero(comes)
        came = at_stage[visitors]
        reached = np.isfinite(came)
        if not reached.all():
            saturated[index] = True
            visitors, came = visitors[reached], came[reached]
        last = index == live[-1]
        accepted = exits[visitors] == index
        lengths = answers[visitors, index]
        if gate_tokens is not None and not last:
            lengths = np.where(accepted, lengths, np.minimum(lengths, gate_tokens))
        order = np.argsort(came, kind="stable")
        times = _simulate_crowded(
            stages[index],
            came[order],
            prompts[visitors[order]],
            lengths[order],
            1.0 if crowd is None else crowd[index],
            known,
        )
        utilisation[index] = times.utilisation
        saturated[index] |= times.saturated
        finish, first_token = np.empty(len(order)), np.empty(len(order))
        finish[order], first_token[order] = times.finish, times.first_token
        further = np.maximum(lengths - 1, 1)
        with np.errstate(invalid="ignore"):  # what never ends has no tokens either
            decoding = finish - first_token
        inner = slice(*np.searchsorted(visitors, [margin, len(when) - margin]))
        service[index] = (finish - came)[inner]
        first[index] = (first_token - came)[inner]
        per_token[index] = (decoding / further)[inner]

        decided = finish if last else finish + scorer_seconds
        seen = first_token if last else decided
        if gate_tokens is not None and not last:
            seen = first_token + (np.minimum(lengths, gate_tokens) - 1) / further * decoding + scorer_seconds
        answered, passed_on = np.flatnonzero(accepted), np.flatnonzero(~accepted)
        end[visitors[answered]] = decided[answered]
        first_byte[visitors[answered]] = seen[answered]
        at_stage[visitors[passed_on]] = decided[passed_on] + hop_seconds
    measured = slice(margin, len(when) - margin)
    end_to_end, to_first_byte = (end - when)[measured], (first_byte - when)[measured]
    return CascadeTimes(end_to_end, to_first_byte, service, first, per_token, utilisation, saturated)


def _simulate_crowded(
    stage: StageReplicas,
    arrivals: Floats,
    prompts: Ints,
    answers: Ints,
    crowd: float,
    known: dict[bytes, StageTimes] | None,
) -> StageTimes:
    """A stage among others' requests, unless that is known; returns the times of the given ones."""
    others = round((crowd - 1.0) * len(arrivals))
    if known is None:
        return _simulate_among(stage, arrivals, prompts, answers, others)
    given = (np.array(stage.steps), np.array([*stage.weights, crowd]), arrivals, prompts, answers)
    key = b"".join(hash(array.tobytes()).to_bytes(8, "little", signed=True) for array in given)
    if key not in known:
        known[key] = _simulate_among(stage, arrivals, prompts, answers, others)
    return known[key]


def _simulate_among(stage: StageReplicas, arrivals: Floats, prompts: Ints, answers: Ints, others: int) -> StageTimes:
    """A stage that so many other requests come to as well."""
    count = len(arrivals)
    if others <= 0:
        return simulate_stage(stage, arrivals, prompts, answers)
    random = np.random.default_rng(_CROWD_SEED)
    like, when = (random.permutation(count)[np.arange(others) % count] for _ in range(2))
    # Near enough in time to come in the same burst, and far enough not to queue behind the one that they are like.
    apart = _APART * (arrivals[-1] - arrivals[0]) * random.uniform(-1.0, 1.0, others)
    others_at = np.abs(arrivals[when] - arrivals[0] + apart)  # reflected at both ends
    others_at = arrivals[-1] - np.abs(arrivals[-1] - arrivals[0] - others_at)
    every = np.concatenate([arrivals, np.sort(others_at)])  # two ascending runs: argsort merges them
    order = np.argsort(every, kind="stable")
    of = np.concatenate([np.arange(count), like])[order]
    times = simulate_stage(stage, every[order], prompts[of], answers[of])
    own = np.flatnonzero(order < count)  # in order of arrival, as the given ones are
    return StageTimes(times.first_token[own], times.finish[own], times.utilisation, times.saturated)


def _lengths(tokens: npt.ArrayLike) -> Ints:
    given = np.asarray(tokens)
    whole: Ints = given if given.dtype == np.int64 else np.rint(given.astype(np.float64)).astype(np.int64)
    return np.maximum(whole, 1)
