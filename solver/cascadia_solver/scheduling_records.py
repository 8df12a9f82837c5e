"""What the compiled scheduler holds of replicas and requests: records, whose layouts are these classes' fields."""

from __future__ import annotations

import numpy as np

from cascadia_solver.steptime import StepModel

__all__ = ["REPLICA", "REQUEST", "STEP_MODEL", "Replica", "Request"]


class Replica:
    """One replica, a record of `REPLICA`.

    Attributes:
        segment_steps: Steps in the current segment; 0 between segments.
        decoding: Decoding requests.
        context: Their summed context at the next step.
        reserved: Cache set aside for admitted requests, tokens.
        admitted: Admitted requests.
        steps_done: Steps made so far.
        partial: The request whose prompt is partly processed, or none.
        partial_done: How many tokens of it.
        completing: First of the requests whose prompts the current step finishes.
        head: First waiting request.
        tail: Last waiting request.
        waiting: Waiting requests.
        outstanding: Requests that have not ended.
        kv_capacity: See `StepModel`.
        max_running: See `StepModel`.
        chunk_tokens: See `StepModel`.
        start: Boundary at which the current segment began, or the next step may begin, s.
        first: Time of the first step of the segment, s.
        end: When the segment ends, s.
        busy: Time spent in steps, s.
    """

    segment_steps: int
    decoding: int
    context: int
    reserved: int
    admitted: int
    steps_done: int
    partial: int
    partial_done: int
    completing: int
    head: int
    tail: int
    waiting: int
    outstanding: int
    kv_capacity: int
    max_running: int
    chunk_tokens: int
    start: float
    first: float
    end: float
    busy: float


class Request:
    """One request, a record of `REQUEST`.

    Attributes:
        prompt: Prompt length, tokens.
        answer: Answer length, tokens.
        following: The next request of the list that it is in. Of the last record, which is no request, the
            next request that a closed loop sends, or their number.
        arrival: s.
        first_token: s.
        finish: s.
    """

    prompt: int
    answer: int
    following: int
    arrival: float
    first_token: float
    finish: float


def _layout(of: type) -> np.dtype[np.void]:
    return np.dtype([(name, {"int": np.int64, "float": np.float64}[kind]) for name, kind in of.__annotations__.items()])


REPLICA, REQUEST = _layout(Replica), _layout(Request)
STEP_MODEL = np.dtype([(name, np.float64) for name in StepModel._fields])
