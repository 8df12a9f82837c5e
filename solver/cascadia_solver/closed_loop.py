"""Mean latencies of one replica under a fixed number of clients, in closed form.

n clients are in service at a time, as many as the batch and the cache hold. While one of them is
answered, each of the others is answered once, so that its time is the sum of the work of all::

    cycle = T + (n - 1) X + (o - 1) D

with T its own prompt alone, X what a prompt adds to the step (or steps) that it shares, and D a decode
step of n requests. The sum does not depend on the order of the work; time to first token does. It is ::

    first = t0 + T + D + b c (n - 1) T        at most t0 + T + D + (n - 1) X

with t0 the time outside the steps, D the step under way, and c the share of the others' prompts that
one waits for: clients whose answers are of about one length ask in bunches, the more so where an
engine prefers prompts to decoding. Answers that vary more than those that c was fitted to pull a bunch apart: b
is the time that its prompts take, in this and the time by which its answers end apart. Clients beyond n
wait for one place in the batch to come free.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba.np.unsafe.ndarray import to_fixed_tuple

from cascadia_solver.compiled import compiled
from cascadia_solver.scheduling_kernel import Floats, Ints
from cascadia_solver.steptime import ANSWER_SHARE, StepModel, cached_tokens, step_seconds

__all__ = ["ClosedLoop", "closed_loop", "closed_loops"]

_FIELDS = len(StepModel._fields)
_step_seconds = compiled(step_seconds)
_cached_tokens = compiled(cached_tokens)


class ClosedLoop(NamedTuple):
    """Means over the requests.

    Attributes:
        end_to_end: Seconds from asking to the last token.
        first_token: Seconds from asking to the first token.
        waiting: Seconds of both that are spent waiting for a place in the batch.
        in_service: Clients in the batch.
        decode_step: Seconds of a step in which each of them gets a token.
    """

    end_to_end: float
    first_token: float
    waiting: float
    in_service: float
    decode_step: float


def closed_loop(step: StepModel, clients: float, inputs: float, outputs: float, spread: float = 0.0) -> ClosedLoop:
    """Mean latencies of one replica.

    Args:
        step: The replica's step model.
        clients: Clients that ask again as soon as they are answered, ≥ 1.
        inputs: Mean prompt length, tokens.
        outputs: Mean answer length, tokens.
        spread: Standard deviation of answer lengths, in their mean, beyond that of the fitted measurements.
    """
    return ClosedLoop(*_closed_loop(step, float(clients), float(inputs), float(outputs), float(spread)))


def closed_loops(
    steps: Sequence[StepModel], which: npt.ArrayLike, clients: npt.ArrayLike, inputs: npt.ArrayLike,
    outputs: npt.ArrayLike, spreads: npt.ArrayLike = 0.0,
) -> Floats:  # fmt: skip
    """`closed_loop` for many settings at once.

    Args:
        steps: Step models.
        which: Index of each setting's step model, [n].
        clients: Of each setting, [n].
        inputs: Of each setting, [n].
        outputs: Of each setting, [n].
        spreads: Of each setting, [n], or one number.

    Returns:
        Fields of `ClosedLoop`, [n, 5].
    """
    columns = np.broadcast_arrays(*(np.asarray(c, dtype=np.float64) for c in (clients, inputs, outputs, spreads)))
    settings = np.stack(columns, axis=1)
    return _closed_loops(np.array(steps, dtype=np.float64), np.asarray(which, dtype=np.int64), settings)


@compiled
def _closed_loop(
    step: StepModel, clients: float, inputs: float, outputs: float, spread: float
) -> tuple[float, float, float, float, float]:
    room = step.kv_capacity_tokens / (inputs + ANSWER_SHARE * outputs)
    served = min(clients, max(1.0, min(step.max_running, room)))
    context = inputs + 0.5 * outputs
    decode = _step_seconds(step, 0.0, 0.0, served, served * context)
    others = served - 1.0
    plain = _step_seconds(step, 0.0, 0.0, others, others * context) if others > 0.0 else 0.0
    alone = 0.0
    shared = 0.0
    done = float(_cached_tokens(step, inputs))
    while done < inputs:
        chunk = min(step.chunk_tokens, inputs - done)
        pairs = chunk * done + 0.5 * chunk * (chunk + 1.0)
        alone += _step_seconds(step, chunk, pairs, 0.0, 0.0)
        shared += _step_seconds(step, chunk, pairs, others, others * context) - plain
        done += chunk
    end_to_end = step.first_token_seconds + alone + others * shared + (outputs - 1.0) * decode
    prompts = others * alone
    together = prompts / (prompts + spread * outputs * decode) if prompts > 0.0 else 0.0
    queue = min(together * step.bunching * alone, shared) * others
    first = step.first_token_seconds + alone + decode + queue
    waiting = (clients / served - 1.0) * end_to_end
    return end_to_end + waiting, first + waiting, waiting, served, decode


@compiled
def _closed_loops(steps: Floats, which: Ints, settings: Floats) -> Floats:
    answers = np.empty((len(which), 5))
    for row in range(len(which)):
        step = StepModel(*to_fixed_tuple(steps[which[row]], _FIELDS))  # type: ignore[call-arg]  # as in scheduling_kernel
        loop = _closed_loop(step, settings[row, 0], settings[row, 1], settings[row, 2], settings[row, 3])
        for field in range(5):
            answers[row, field] = loop[field]
    return answers
