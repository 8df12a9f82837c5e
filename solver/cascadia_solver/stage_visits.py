"""Requests on their way into the stages of a cascade and out again, compiled: one pass over them each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cascadia_solver.compiled import compiled
from cascadia_solver.scheduling_kernel import Floats, Ints

__all__ = ["Journeys", "Visit", "let_in", "let_out", "merged"]


class Journeys(NamedTuple):
    """What requests ask of a cascade, and how far they have come.

    Attributes:
        prompts: Prompt lengths [n], tokens, ≥ 1.
        answers: Answer lengths [n, stages], tokens; below 1 counts as 1.
        exits: Stage whose answer is accepted [n].
        at_stage: When each gets to the next stage; infinite if it never does [n], s.
        first_byte: When its client sees the first of the answer; infinite until that is known [n], s.
        end: When it is over; the same [n], s.
    """

    prompts: Ints
    answers: Floats
    exits: Ints
    at_stage: Floats
    first_byte: Floats
    end: Floats


class Visit(NamedTuple):
    """The requests that get to a stage, and what they ask of it.

    Attributes:
        visitors: Their indices, ascending [v].
        came: When they come [v], s.
        prompts: Prompt lengths [v], tokens, ≥ 1.
        answers: Tokens that are generated for them [v], ≥ 1.
        all_come: Whether all who are to come get there.
        ascending: Whether they come in their order.
    """

    visitors: Ints
    came: Floats
    prompts: Ints
    answers: Ints
    all_come: bool
    ascending: bool


def let_in(journeys: Journeys, comes: npt.NDArray[np.bool_], stage: int, gate_tokens: float) -> Visit:
    """The requests that get to a stage.

    Args:
        journeys: All of them.
        comes: Which are to come [n].
        stage: The stage.
        gate_tokens: Answers that it rejects stop there; infinite if they do not.
    """
    count = np.count_nonzero(comes)
    whole, came = np.empty((3, count), np.int64), np.empty(count)
    v, ascending = _let_in(journeys, comes, stage, gate_tokens, whole, came)
    visitors, prompts, answers = whole[:, :v]
    return Visit(visitors, came[:v], prompts, answers, v == count, ascending)


@compiled
def _let_in(
    journeys: Journeys, comes: npt.NDArray[np.bool_], stage: int, gate_tokens: float, whole: Ints, came: Floats
) -> tuple[int, bool]:
    v = 0
    latest, ascending = -np.inf, True
    for request in range(len(comes)):
        at = journeys.at_stage[request]
        if comes[request] and at < np.inf:
            length = max(1.0, np.rint(journeys.answers[request, stage]))
            if journeys.exits[request] != stage:
                length = min(length, gate_tokens)
            whole[0, v], whole[1, v], whole[2, v] = request, journeys.prompts[request], int(length)
            came[v] = at
            ascending &= at >= latest
            latest = at
            v += 1
    return v, ascending


@compiled
def merged(visit: Visit, order: Ints, others_at: Floats, like: Ints) -> tuple[Floats, Ints, Ints, Ints]:
    """Requests together with others that are like them, by time of arrival; at the same time, themselves first.

    Args:
        visit: The requests.
        order: Puts them in order of arrival [v].
        others_at: When the others come, ascending [m], s.
        like: Which place of `order` each of the others is like [m].

    Returns:
        Arrivals, prompts and answers [v + m]; and each request's place among them [v].
    """
    every = len(order) + len(others_at)
    when, prompts, answers = np.empty(every), np.empty(every, np.int64), np.empty(every, np.int64)
    place = np.empty(len(order), np.int64)
    own = other = 0
    for k in range(every):
        if other == len(others_at) or (own < len(order) and visit.came[order[own]] <= others_at[other]):
            of = order[own]
            when[k] = visit.came[of]
            place[of] = k
            own += 1
        else:
            of = order[like[other]]
            when[k] = others_at[other]
            other += 1
        prompts[k], answers[k] = visit.prompts[of], visit.answers[of]
    return when, prompts, answers, place


@compiled
def let_out(
    journeys: Journeys,
    visit: Visit,
    first_token: Floats,
    finish: Floats,
    stage: int,
    last: bool,
    gate_tokens: float,
    scorer_seconds: float,
    hop_seconds: float,
) -> Floats:
    """Pass a stage's answers to the clients, or their requests on to the next stage.

    Args:
        journeys: All requests; what becomes of the stage's is filled in.
        visit: The stage's requests.
        first_token: [v], s.
        finish: [v], s.
        stage: The stage.
        last: Whether it is the last one, whose answers stream.
        gate_tokens: Tokens after which the others' answers are decided on; infinite: at their end.
        scorer_seconds: Time that this takes.
        hop_seconds: Time to pass a request on.

    Returns:
        Seconds that the stage took to the end of each answer, to its first token and for each further one [3, v].
    """
    own = np.empty((3, len(visit.visitors)))
    for v in range(len(visit.visitors)):
        request = visit.visitors[v]
        further = max(visit.answers[v] - 1.0, 1.0)
        decoding = finish[v] - first_token[v]
        own[0, v], own[1, v] = finish[v] - visit.came[v], first_token[v] - visit.came[v]
        own[2, v] = decoding / further
        decided = finish[v] if last else finish[v] + scorer_seconds
        if journeys.exits[request] != stage:
            journeys.at_stage[request] = decided + hop_seconds
            continue
        journeys.end[request] = decided
        if last:
            journeys.first_byte[request] = first_token[v]
        elif gate_tokens == np.inf:
            journeys.first_byte[request] = decided
        else:
            seen = min(float(visit.answers[v]), gate_tokens) - 1.0
            journeys.first_byte[request] = first_token[v] + seen / further * decoding + scorer_seconds
    return own
