"""`batcher.Batcher` for a whole stage, compiled: many replicas, many requests, arrays instead of objects.

The rules are the batcher's, step for step, and so are the formulas (the functions of `steptime`,
compiled), hence the results; tests hold the two together. Requests are rows of arrays; each
replica keeps its queue as a linked list and its decoding requests as a heap on their last step.
The state is few arrays, since numba counts references to each of them at every call.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba.np.unsafe.ndarray import to_fixed_tuple

from cascadia_solver.compiled import compiled
from cascadia_solver.steptime import StepModel, cached_tokens, decode_run_seconds, reserved_tokens, step_seconds

__all__ = ["run_stage"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_step_seconds = compiled(step_seconds)
_decode_run_seconds = compiled(decode_run_seconds)
_reserved_tokens = compiled(reserved_tokens)
_cached_tokens = compiled(cached_tokens)
_FIELDS = len(StepModel._fields)
_KV_FIELD, _RUNNING_FIELD, _CHUNK_FIELD = (
    StepModel._fields.index(name) for name in ("kv_capacity_tokens", "max_running", "chunk_tokens")
)

# Columns of `_State.counts`, one row a replica.
_SEGMENT_STEPS = 0
_DECODING = 1
_CONTEXT = 2
_RESERVED = 3
_ADMITTED = 4
_STEPS_DONE = 5
_PARTIAL = 6
_PARTIAL_DONE = 7
_COMPLETING = 8
_HEAD = 9
_TAIL = 10
_WAITING = 11
_OUTSTANDING = 12
_KV_CAPACITY = 13
_MAX_RUNNING = 14
_CHUNK_TOKENS = 15
_COUNTS = 16

# Columns of `_State.times`, one row a replica, s.
_START = 0
_FIRST = 1
_END = 2
_BUSY = 3
_TIMES = 4

# Columns of `_State.tokens`, one row a request: prompt, answer, and the next request of the same list.
_INPUT = 0
_OUTPUT = 1
_NEXT = 2

# Columns of `_State.moments`, one row a request, s.
_ARRIVAL = 0
_FIRST_TOKEN = 1
_FINISH = 2

_REQUEST_BITS = 32
_REQUEST_MASK = (1 << _REQUEST_BITS) - 1


class _State(NamedTuple):
    """Everything a run changes.

    Attributes:
        steps: Step models, [replicas, fields].
        counts: See the column names, [replicas, 16].
        times: See the column names, [replicas, 4].
        heap: Decoding requests, [replicas, slots], heap-ordered: last step in the high bits,
            request in the low ones.
        tokens: See the column names, [n + 1, 3]. The last row is no request: its link is the next
            request that a closed loop sends, or n.
        moments: See the column names, [n, 3].
    """

    steps: Floats
    counts: Ints
    times: Floats
    heap: Ints
    tokens: Ints
    moments: Floats


@compiled
def _push(heap: Ints, size: int, entry: int) -> None:
    at = size
    while at > 0:
        parent = (at - 1) >> 1
        if heap[parent] <= entry:
            break
        heap[at] = heap[parent]
        at = parent
    heap[at] = entry


@compiled
def _pop(heap: Ints, size: int) -> None:
    """Remove the top of a heap of `size` entries."""
    last = size - 1
    entry = heap[last]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= last:
            break
        if child + 1 < last and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= entry:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = entry


@compiled
def _model(row: Floats) -> StepModel:
    return StepModel(*to_fixed_tuple(row, _FIELDS))  # type: ignore[call-arg]  # numba's intrinsics hide a parameter


@compiled
def _has_room(counts: Ints, need: int) -> bool:
    return bool(counts[_ADMITTED] < counts[_MAX_RUNNING] and counts[_RESERVED] + need <= counts[_KV_CAPACITY])


@compiled
def _idle(counts: Ints) -> bool:
    return bool(
        counts[_SEGMENT_STEPS] == 0 and counts[_WAITING] == 0 and counts[_PARTIAL] < 0 and counts[_DECODING] == 0
    )


@compiled
def _enqueue(counts: Ints, tokens: Ints, request: int) -> None:
    if counts[_WAITING] == 0:
        counts[_HEAD] = request
    else:
        tokens[counts[_TAIL], _NEXT] = request
    counts[_TAIL] = request
    counts[_WAITING] += 1
    counts[_OUTSTANDING] += 1


@compiled
def _compose(step: StepModel, counts: Ints, times: Floats, heap: Ints, tokens: Ints) -> None:
    """Compose the step at the boundary, or the run of decode steps up to the first finish."""
    prefill = 0
    pairs = 0.0
    budget = counts[_CHUNK_TOKENS]
    completing = -1
    while budget > 0:
        request = counts[_PARTIAL]
        if request < 0:
            if counts[_WAITING] == 0:
                break
            request = counts[_HEAD]
            need = _reserved_tokens(tokens[request, _INPUT], tokens[request, _OUTPUT])
            if not _has_room(counts, need):
                break
            counts[_HEAD] = tokens[request, _NEXT]
            counts[_WAITING] -= 1
            counts[_ADMITTED] += 1
            counts[_RESERVED] += need
            counts[_PARTIAL_DONE] = _cached_tokens(step, float(tokens[request, _INPUT]))
        done = counts[_PARTIAL_DONE]
        chunk = min(budget, tokens[request, _INPUT] - done)
        pairs += chunk * float(done) + 0.5 * chunk * (chunk + 1.0)
        prefill += chunk
        budget -= chunk
        if done + chunk == tokens[request, _INPUT]:
            counts[_PARTIAL] = -1
            tokens[request, _NEXT] = completing
            completing = request
        else:
            counts[_PARTIAL] = request
            counts[_PARTIAL_DONE] = done + chunk
    counts[_COMPLETING] = completing
    decoding = float(counts[_DECODING])
    context = float(counts[_CONTEXT])
    first = _step_seconds(step, float(prefill), pairs, decoding, context)
    times[_FIRST] = first
    if prefill > 0:
        counts[_SEGMENT_STEPS] = 1
        times[_END] = times[_START] + first
    else:
        run = (heap[0] >> _REQUEST_BITS) - counts[_STEPS_DONE]
        counts[_SEGMENT_STEPS] = run
        times[_END] = times[_START] + _decode_run_seconds(step, first, decoding, context, float(run))


@compiled
def _cut(step: StepModel, counts: Ints, times: Floats, now: float) -> None:
    """End the current run of decode steps at its first boundary that is not before `now`."""
    if counts[_SEGMENT_STEPS] <= 1:
        return
    first = times[_FIRST]
    start = times[_START]
    decoding = float(counts[_DECODING])
    context = float(counts[_CONTEXT])
    low = 1
    high = counts[_SEGMENT_STEPS]
    while low < high:
        middle = (low + high) // 2
        if start + _decode_run_seconds(step, first, decoding, context, float(middle)) >= now:
            high = middle
        else:
            low = middle + 1
    counts[_SEGMENT_STEPS] = low
    times[_END] = start + _decode_run_seconds(step, first, decoding, context, float(low))


@compiled
def _finish(counts: Ints, tokens: Ints, moments: Floats, request: int, time: float) -> None:
    counts[_CONTEXT] -= tokens[request, _INPUT] + tokens[request, _OUTPUT]
    counts[_RESERVED] -= _reserved_tokens(tokens[request, _INPUT], tokens[request, _OUTPUT])
    counts[_ADMITTED] -= 1
    counts[_OUTSTANDING] -= 1
    moments[request, _FINISH] = time
    n = len(moments)
    successor = tokens[n, _NEXT]
    if successor < n:  # closed loop: whoever got an answer asks again
        tokens[n, _NEXT] = successor + 1
        moments[successor, _ARRIVAL] = time
        _enqueue(counts, tokens, successor)


@compiled
def _finish_segment(counts: Ints, times: Floats, heap: Ints, tokens: Ints, moments: Floats) -> None:
    end = times[_END]
    times[_BUSY] += end - times[_START]
    times[_START] = end
    counts[_STEPS_DONE] += counts[_SEGMENT_STEPS]
    counts[_CONTEXT] += counts[_DECODING] * counts[_SEGMENT_STEPS]
    counts[_SEGMENT_STEPS] = 0
    while counts[_DECODING] > 0 and (heap[0] >> _REQUEST_BITS) == counts[_STEPS_DONE]:
        request = heap[0] & _REQUEST_MASK
        _pop(heap, counts[_DECODING])
        counts[_DECODING] -= 1
        _finish(counts, tokens, moments, request, end)
    request = counts[_COMPLETING]
    counts[_COMPLETING] = -1
    while request >= 0:
        following = tokens[request, _NEXT]
        moments[request, _FIRST_TOKEN] = end
        counts[_CONTEXT] += tokens[request, _INPUT] + 1
        if tokens[request, _OUTPUT] == 1:
            _finish(counts, tokens, moments, request, end)
        else:
            last_step = counts[_STEPS_DONE] + tokens[request, _OUTPUT] - 1
            _push(heap, counts[_DECODING], (last_step << _REQUEST_BITS) | request)
            counts[_DECODING] += 1
        request = following


@compiled
def _advance(state: _State, r: int, now: float) -> float:
    """Bring one replica up to `now`; returns when it next needs attention, infinite if it is idle."""
    counts = state.counts[r]
    times = state.times[r]
    heap = state.heap[r]
    tokens = state.tokens
    moments = state.moments
    step = _model(state.steps[r])
    while True:
        if counts[_SEGMENT_STEPS] > 0:
            if times[_END] > now:
                return float(times[_END])
            _finish_segment(counts, times, heap, tokens, moments)
        elif _idle(counts):
            return np.inf
        elif times[_START] < now:
            _compose(step, counts, times, heap, tokens)
        else:
            return float(times[_START])


@compiled
def _choose(counts: Ints, weights: Floats, need: int) -> int:
    """Least outstanding requests by weight among the replicas that can hold the request; -1 if none."""
    best = -1
    least = np.inf
    for r in range(len(weights)):
        if need <= counts[r, _KV_CAPACITY]:
            load = counts[r, _OUTSTANDING] / weights[r]
            if load < least:
                best = r
                least = load
    return best


@compiled
def _submit(state: _State, r: int, request: int, need: int, now: float) -> float:
    """Hand a request to a replica that has been advanced to `now`; returns when it next needs attention."""
    counts = state.counts[r]
    times = state.times[r]
    if _idle(counts):
        times[_START] = max(times[_START], now)
    elif counts[_SEGMENT_STEPS] > 1 and counts[_WAITING] == 0 and _has_room(counts, need):
        _cut(_model(state.steps[r]), counts, times, now)
    _enqueue(counts, state.tokens, request)
    return float(times[_END] if counts[_SEGMENT_STEPS] > 0 else times[_START])


@compiled
def run_stage(
    steps: Floats, weights: Floats, arrivals: Floats, inputs: Ints, outputs: Ints, concurrency: int
) -> tuple[Floats, Floats, int]:
    """Run all requests through the replicas of one stage.

    Args:
        steps: Step models as rows, [replicas, fields].
        weights: Load weights, [replicas], > 0.
        arrivals: Times of arrival, [n], s, ascending.
        inputs: Prompt lengths, [n], ≥ 1.
        outputs: Answer lengths, [n], ≥ 1.
        concurrency: 0: open loop. Else the first so many requests arrive at their times and each
            finish brings the next one, to the same replica.

    Returns:
        Times of arrival, first token and finish, [n, 3], s, the latter two infinite for requests
        that no replica can hold; busy time of each replica, s; requests waiting for admission at
        the last arrival.
    """
    n = len(arrivals)
    replicas = len(weights)
    sent = min(n, concurrency) if concurrency > 0 else n
    slots = 1
    for r in range(replicas):
        slots = max(slots, int(steps[r, _RUNNING_FIELD]))
    counts = np.zeros((replicas, _COUNTS), np.int64)
    tokens = np.empty((n + 1, 3), np.int64)
    moments = np.full((n, 3), np.inf, np.float64)
    for r in range(replicas):
        counts[r, _PARTIAL] = -1
        counts[r, _COMPLETING] = -1
        counts[r, _KV_CAPACITY] = int(steps[r, _KV_FIELD])
        counts[r, _MAX_RUNNING] = int(steps[r, _RUNNING_FIELD])
        counts[r, _CHUNK_TOKENS] = int(steps[r, _CHUNK_FIELD])
    for request in range(n):
        tokens[request, _INPUT] = inputs[request]
        tokens[request, _OUTPUT] = outputs[request]
        moments[request, _ARRIVAL] = arrivals[request]
    tokens[n, _NEXT] = sent
    times = np.zeros((replicas, _TIMES), np.float64)
    state = _State(steps, counts, times, np.empty((replicas, slots), np.int64), tokens, moments)
    due = np.full(replicas, np.inf)

    for request in range(sent):
        now = arrivals[request]
        for r in range(replicas):
            if due[r] <= now:
                due[r] = _advance(state, r, now)
        chosen = _choose(counts, weights, inputs[request] + outputs[request])
        if chosen >= 0:
            need = _reserved_tokens(inputs[request], outputs[request])
            due[chosen] = _submit(state, chosen, request, need, now)
    waiting = 0
    for r in range(replicas):
        waiting += counts[r, _WAITING]
        _advance(state, r, np.inf)
    return moments, times[:, _BUSY].copy(), int(waiting)
