"""`batcher.Batcher` for a whole stage, compiled: many replicas, many requests, records instead of objects.

The rules are the batcher's, step for step, and so are the formulas (the functions of `steptime`,
compiled), hence the results; tests hold the two together.

Everything a run changes is in five arrays that are passed on without reference counts. Replicas and requests are
records; a replica's decoding requests are in a calendar: those that end at the same step are a linked list, which
starts in the slot of that step, and a bit says whether a slot is in use. There are more slots than an answer has
tokens, so each step that is to come has one of its own.
"""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba.cpython.unsafe.numbers import trailing_zeros

from cascadia_solver.compiled import borrowed, compiled, inlined
from cascadia_solver.scheduling_records import REPLICA, REQUEST, STEP_MODEL, Replica, Request
from cascadia_solver.steptime import StepModel, cached_tokens, decode_run_seconds, reserved_tokens, step_seconds

__all__ = ["StageRun", "run_stage"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint64]

_step_seconds = inlined(step_seconds)
_decode_run_seconds = inlined(decode_run_seconds)
_reserved_tokens = inlined(reserved_tokens)
_cached_tokens = inlined(cached_tokens)

_NONE = -1
_WORD = 64  # slots to a word of `used`


class StageRun(NamedTuple):
    """What became of the requests of a stage.

    Attributes:
        arrival: Times of arrival, [n], s.
        first_token: Times of the first tokens, [n], s; infinite for requests that no replica can hold.
        finish: Times of the last tokens, [n], s; the same.
        busy: Time that each replica spent in steps, [replicas], s.
        waiting: Requests waiting for admission at the last arrival.
        served: Requests that some replica can hold.
        last_finish: The last of the last tokens' times, s; minus infinity if there is none.
    """

    arrival: Floats
    first_token: Floats
    finish: Floats
    busy: Floats
    waiting: int
    served: int
    last_finish: float


@inlined
def _has_room(replica: Replica, need: int) -> bool:
    return replica.admitted < replica.max_running and replica.reserved + need <= replica.kv_capacity


@inlined
def _idle(replica: Replica) -> bool:
    return replica.segment_steps == 0 and replica.waiting == 0 and replica.partial == _NONE and replica.decoding == 0


@inlined
def _enqueue(replica: Replica, requests: MutableSequence[Request], request: int) -> None:
    if replica.waiting == 0:
        replica.head = request
    else:
        requests[replica.tail].following = request
    replica.tail = request
    replica.waiting += 1
    replica.outstanding += 1


@inlined
def _word(slot: int) -> int:
    return slot >> 6


@inlined
def _bit(slot: int) -> np.uint64:
    return np.uint64(1) << np.uint64(slot & (_WORD - 1))


@inlined
def _steps_to_finish(used: Bits, r: int, steps_done: int) -> int:
    """Steps until the first decoding request ends; there must be one."""
    last_word = used.shape[1] - 1
    slot = steps_done + 1
    word = _word(slot) & last_word
    found = used[r, word] >> np.uint64(slot & (_WORD - 1))
    steps = 1
    if found == 0:
        steps += _WORD - (slot & (_WORD - 1))
        word = (word + 1) & last_word
        while used[r, word] == 0:
            steps += _WORD
            word = (word + 1) & last_word
        found = used[r, word]
    return steps + int(trailing_zeros(found))  # type: ignore[call-arg]  # numba's intrinsics hide a parameter


@inlined
def _compose(step: StepModel, replica: Replica, requests: MutableSequence[Request], used: Bits, r: int) -> None:
    """Compose the step at the boundary, or the run of decode steps up to the first finish."""
    prefill = 0
    pairs = 0.0
    budget = replica.chunk_tokens
    completing = _NONE
    while budget > 0:
        request = replica.partial
        if request == _NONE:
            if replica.waiting == 0:
                break
            request = replica.head
            need = _reserved_tokens(requests[request].prompt, requests[request].answer)
            if not _has_room(replica, need):
                break
            replica.head = requests[request].following
            replica.waiting -= 1
            replica.admitted += 1
            replica.reserved += need
            replica.partial_done = _cached_tokens(step, float(requests[request].prompt))
        done = replica.partial_done
        chunk = min(budget, requests[request].prompt - done)
        pairs += chunk * float(done) + 0.5 * chunk * (chunk + 1.0)
        prefill += chunk
        budget -= chunk
        if done + chunk == requests[request].prompt:
            replica.partial = _NONE
            requests[request].following = completing
            completing = request
        else:
            replica.partial = request
            replica.partial_done = done + chunk
    replica.completing = completing
    decoding = float(replica.decoding)
    context = float(replica.context)
    first = _step_seconds(step, float(prefill), pairs, decoding, context)
    replica.first = first
    if prefill > 0:
        replica.segment_steps = 1
        replica.end = replica.start + first
    else:
        run = _steps_to_finish(used, r, replica.steps_done)
        replica.segment_steps = run
        replica.end = replica.start + _decode_run_seconds(step, first, decoding, context, float(run))


@inlined
def _cut(step: StepModel, replica: Replica, now: float) -> None:
    """End the current run of decode steps at its first boundary that is not before `now`."""
    first = replica.first
    start = replica.start
    decoding = float(replica.decoding)
    context = float(replica.context)
    # How many steps fit, solved for as if no window ended the growth of the steps: nearly the number, ...
    growth = 0.5 * step.decode_context_seconds * max(1.0, decoding * step.decode_share)
    root = np.sqrt((first - growth) * (first - growth) + 4.0 * growth * (now - start))
    steps = max(1, min(replica.segment_steps, int(2.0 * (now - start) / (first - growth + root))))
    end = start + _decode_run_seconds(step, first, decoding, context, float(steps))
    # ... so that the boundary is a step or two away.
    while steps < replica.segment_steps and end < now:
        steps += 1
        end = start + _decode_run_seconds(step, first, decoding, context, float(steps))
    while steps > 1:
        before = start + _decode_run_seconds(step, first, decoding, context, float(steps - 1))
        if before < now:
            break
        steps -= 1
        end = before
    replica.segment_steps = steps
    replica.end = end


@inlined
def _finish(replica: Replica, requests: MutableSequence[Request], request: int, time: float) -> None:
    replica.context -= requests[request].prompt + requests[request].answer
    replica.reserved -= _reserved_tokens(requests[request].prompt, requests[request].answer)
    replica.admitted -= 1
    replica.outstanding -= 1
    requests[request].finish = time
    n = len(requests) - 1
    successor = requests[n].following
    if successor < n:  # closed loop: whoever got an answer asks again
        requests[n].following = successor + 1
        requests[successor].arrival = time
        _enqueue(replica, requests, successor)


@inlined
def _finish_segment(replica: Replica, requests: MutableSequence[Request], slots: Ints, used: Bits, r: int) -> None:
    end = replica.end
    replica.busy += end - replica.start
    replica.start = end
    replica.steps_done += replica.segment_steps
    replica.context += replica.decoding * replica.segment_steps
    replica.segment_steps = 0
    last_slot = slots.shape[1] - 1
    slot = replica.steps_done & last_slot
    if used[r, _word(slot)] & _bit(slot) != 0:
        used[r, _word(slot)] ^= _bit(slot)
        request = slots[r, slot]
        while request != _NONE:
            following = requests[request].following
            replica.decoding -= 1
            _finish(replica, requests, request, end)
            request = following
    request = replica.completing
    replica.completing = _NONE
    while request != _NONE:
        following = requests[request].following
        requests[request].first_token = end
        replica.context += requests[request].prompt + 1
        if requests[request].answer == 1:
            _finish(replica, requests, request, end)
        else:
            slot = (replica.steps_done + requests[request].answer - 1) & last_slot
            requests[request].following = slots[r, slot] if used[r, _word(slot)] & _bit(slot) != 0 else _NONE
            used[r, _word(slot)] |= _bit(slot)
            slots[r, slot] = request
            replica.decoding += 1
        request = following


@inlined
def _advance(
    step: StepModel, replica: Replica, requests: MutableSequence[Request], slots: Ints, used: Bits, r: int, now: float
) -> float:
    """Bring one replica up to `now`; returns when it next needs attention, infinite if it is idle."""
    due = np.inf
    while True:
        if replica.segment_steps > 0:
            if replica.end > now:
                due = replica.end
                break
            _finish_segment(replica, requests, slots, used, r)
        elif _idle(replica):
            break
        elif replica.start < now:
            _compose(step, replica, requests, used, r)
        else:
            due = replica.start
            break
    return due


@inlined
def _submit(step: StepModel, replica: Replica, requests: MutableSequence[Request], request: int, now: float) -> float:
    """Hand a request to a replica that has been advanced to `now`; returns when it next needs attention."""
    if _idle(replica):
        replica.start = max(replica.start, now)
    elif replica.segment_steps > 1 and replica.waiting == 0:
        need = _reserved_tokens(requests[request].prompt, requests[request].answer)
        if _has_room(replica, need):
            _cut(step, replica, now)
    _enqueue(replica, requests, request)
    return replica.end if replica.segment_steps > 0 else replica.start


@inlined
def _fill(requests: MutableSequence[Request], arrivals: Floats, inputs: Ints, outputs: Ints, sent: int) -> None:
    n = len(arrivals)
    for request in range(n):
        requests[request].prompt, requests[request].answer = inputs[request], outputs[request]
        requests[request].arrival = arrivals[request]
        requests[request].first_token = requests[request].finish = np.inf
    requests[n].following = sent


@inlined
def _read(requests: MutableSequence[Request], times: Floats) -> tuple[int, float]:
    """Copy out arrivals, first and last tokens; returns how many have been served, and when the last one was."""
    served = 0
    last_finish = -np.inf
    for request in range(len(requests) - 1):
        finish = requests[request].finish
        times[0, request], times[1, request] = requests[request].arrival, requests[request].first_token
        times[2, request] = finish
        if finish < np.inf:
            served += 1
            last_finish = max(last_finish, finish)
    return served, last_finish


@compiled
def _run(
    held_steps: Sequence[StepModel],
    held_weights: Floats,
    held_replicas: MutableSequence[Replica],
    held_requests: MutableSequence[Request],
    held_slots: Ints,
    held_used: Bits,
    held_due: Floats,
    held_loads: Floats,
    arrivals: Floats,
    inputs: Ints,
    outputs: Ints,
    sent: int,
    times: Floats,
) -> tuple[int, int, float]:
    """Run all requests, of which so many are sent from outside; fills in their times.

    Returns:
        How many wait when the last one has come, how many have been served, and when the last one was.
    """
    steps, replicas, requests = borrowed(held_steps), borrowed(held_replicas), borrowed(held_requests)
    slots, used = borrowed(held_slots), borrowed(held_used)
    weights, due, loads = borrowed(held_weights), borrowed(held_due), borrowed(held_loads)
    _fill(requests, arrivals, inputs, outputs, sent)
    waiting = 0
    for request in range(sent + 1):
        now = np.inf
        if request < sent:
            now = requests[request].arrival
        else:
            for r in range(len(replicas)):
                waiting += replicas[r].waiting
        for r in range(len(replicas)):
            if due[r] <= now:
                due[r] = _advance(steps[r], replicas[r], requests, slots, used, r, now)
                loads[r] = replicas[r].outstanding / weights[r]
        if request < sent:
            # Least outstanding requests by weight among the replicas that can hold the request.
            tokens = requests[request].prompt + requests[request].answer
            chosen = _NONE
            least = np.inf
            for r in range(len(replicas)):
                if loads[r] < least and tokens <= replicas[r].kv_capacity:
                    chosen = r
                    least = loads[r]
            if chosen != _NONE:
                due[chosen] = _submit(steps[chosen], replicas[chosen], requests, request, now)
                loads[chosen] = replicas[chosen].outstanding / weights[chosen]
    served, last_finish = _read(requests, times)
    return waiting, served, last_finish


def run_stage(
    steps: Floats, weights: Floats, arrivals: Floats, inputs: Ints, outputs: Ints, concurrency: int
) -> StageRun:
    """Run all requests through the replicas of one stage.

    Args:
        steps: Step models as rows, [replicas, fields].
        weights: Load weights, [replicas], > 0.
        arrivals: Times of arrival, [n], s, ascending.
        inputs: Prompt lengths, [n], ≥ 1.
        outputs: Answer lengths, [n], ≥ 1.
        concurrency: 0: open loop. Else the first so many requests arrive at their times and each
            finish brings the next one, to the same replica.
    """
    n = len(arrivals)
    sent = min(n, concurrency) if concurrency > 0 else n
    models: Any = steps.view(STEP_MODEL)[:, 0]
    replicas: Any = np.zeros(len(weights), REPLICA)
    replicas["partial"] = replicas["completing"] = _NONE
    replicas["kv_capacity"] = models["kv_capacity_tokens"]
    replicas["max_running"] = models["max_running"]
    replicas["chunk_tokens"] = models["chunk_tokens"]
    requests: Any = np.empty(n + 1, REQUEST)
    longest = min(int(outputs.max(initial=1)), int(replicas["kv_capacity"].max()))
    window = max(_WORD, 1 << longest.bit_length())
    slots = np.empty((len(weights), window), np.int64)
    used = np.zeros((len(weights), window // _WORD), np.uint64)
    due, loads = np.full(len(weights), np.inf), np.zeros(len(weights))
    times = np.empty((3, n))
    waiting, served, last_finish = _run(
        models, weights, replicas, requests, slots, used, due, loads, arrivals, inputs, outputs, sent, times
    )
    arrival, first_token, finish = times
    return StageRun(arrival, first_token, finish, replicas["busy"].copy(), waiting, served, last_finish)
