"""A continuous-batching scheduler in virtual time.

The scheduler of one replica: requests wait first come, first served; at each step boundary the
waiting ones are admitted while the batch has a slot and the key-value cache has room for the prompt and
a part of the answer (`reserved_tokens`), prompts, but for what the
prefix cache has of them (`cached_tokens`), are processed in chunks that share their steps with
the running requests' next tokens (as SGLang with mixed chunks, or vLLM), and an answer's first token
comes out of the step that finishes its prompt. An admitted request keeps its place in the cache until it
ends: nothing is evicted and recomputed.

Time is whatever the caller says it is. All instants are computed from step times, never from the
moments at which the scheduler happens to be called, so calling late moves no event. Runs of steps
in which nothing changes are taken in one jump.

`simulation` is the compiled twin of this module; a test holds them to the same results.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Literal, NamedTuple

from cascadia_solver.steptime import StepModel, cached_tokens, decode_run_seconds, reserved_tokens, step_seconds

__all__ = ["Batcher", "Event"]


class Event(NamedTuple):
    """Something that happened to a request.

    Attributes:
        time: When, in the caller's time, s.
        kind: ``first`` token or ``finish``; a one-token answer has both, at the same time.
        request_id: The request, as submitted.
    """

    time: float
    kind: Literal["first", "finish"]
    request_id: str


@dataclass(slots=True, eq=False)
class _Request:
    request_id: str
    input_tokens: int
    output_tokens: int
    prefilled: int
    """Tokens of the prompt that are in the key-value cache: found there at first, then computed."""
    last_step: int = -1
    """Count of engine steps at which the last token comes out; -1 until the prompt is done."""
    finished: bool = False
    cancelled: bool = False

    @property
    def reserved(self) -> int:
        """Tokens of the cache that are set aside for it."""
        return reserved_tokens(self.input_tokens, self.output_tokens)

    def generated(self, steps: int) -> int:
        """Tokens produced once the engine has made `steps` steps."""
        return 0 if self.last_step < 0 else self.output_tokens - max(0, self.last_step - steps)


class Batcher:
    """Online scheduler of one replica; see the module's description for its rules.

    At any time the engine is idle, or at a boundary (a step is about to be composed), or in a
    segment: one step with prompt chunks, or a run of pure decode steps. A step is composed only
    once time has passed its boundary, so all requests that arrive at one instant share a step.

    Args:
        step: Step times and limits of the replica.
    """

    def __init__(self, step: StepModel) -> None:
        self._step = step
        self._chunk_tokens = int(step.chunk_tokens)
        self._max_running = int(step.max_running)
        self._kv_capacity = int(step.kv_capacity_tokens)

        self._requests: dict[str, _Request] = {}
        self._waiting: deque[_Request] = deque()
        self._partial: _Request | None = None
        """The one admitted request whose prompt is not wholly in the current or earlier steps."""
        self._completing: list[_Request] = []
        """Requests whose prompts the current step finishes."""
        self._decoding: list[tuple[int, int, _Request]] = []
        """Heap of (last step, order of admission, request)."""
        self._order = 0
        self._context = 0
        """Summed context of the decoding requests at the next step."""
        self._reserved = 0
        self._admitted = 0
        self._steps_done = 0

        self._start = 0.0
        """Boundary at which the current segment began, or the next step may begin."""
        self._segment_steps = 0
        """Steps in the current segment; 0 between segments."""
        self._segment_first = 0.0
        self._segment_end = 0.0
        self._chunks: list[tuple[_Request, int, bool]] = []
        """Prompt chunks of the current segment: request, tokens, whether it was admitted for this."""
        self._events: list[Event] = []

    @property
    def running(self) -> int:
        """Admitted requests, those whose prompt is being processed included."""
        return self._admitted

    @property
    def waiting(self) -> int:
        """Requests that are not admitted yet."""
        return len(self._waiting)

    @property
    def kv_tokens(self) -> int:
        """Tokens of key-value cache set aside for the admitted requests, a part of their answers included."""
        return self._reserved

    def submit(self, request_id: str, now: float, input_tokens: int, output_tokens: int) -> None:
        """Add a request.

        Args:
            request_id: Unique among the requests that have not ended.
            now: Time of arrival, s; not before the latest time given so far.
            input_tokens: Prompt length, ≥ 1.
            output_tokens: Answer length, ≥ 1.

        Raises:
            ValueError: If the id is taken, a length is below 1, or the request could never fit into
                the key-value cache.
        """
        if request_id in self._requests:
            raise ValueError(f"request {request_id!r} is already there")
        if input_tokens < 1 or output_tokens < 1:
            raise ValueError(f"lengths must be at least 1, not {input_tokens} and {output_tokens}")
        if input_tokens + output_tokens > self._kv_capacity:
            raise ValueError(
                f"{input_tokens} + {output_tokens} tokens exceed the key-value cache of {self._kv_capacity} tokens"
            )
        self._advance(now)
        self._reopen(now)
        request = _Request(request_id, input_tokens, output_tokens, cached_tokens(self._step, float(input_tokens)))
        if self._idle():
            self._start = max(self._start, now)
        elif not self._waiting and self._has_room(request):
            self._cut(now)
        self._requests[request_id] = request
        self._waiting.append(request)

    def cancel(self, request_id: str, now: float) -> None:
        """Drop a request; one that is running leaves at the end of the step in flight.

        Unknown and finished requests are left alone: a client may well hang up while its last
        token is on the way.
        """
        self._advance(now)
        request = self._requests.get(request_id)
        if request is None or request.finished:
            return
        del self._requests[request_id]
        self._reopen(now)
        if request in self._waiting:
            self._waiting.remove(request)
            if self._waiting and self._has_room(self._waiting[0]):
                self._cut(now)
        else:
            request.cancelled = True
            self._cut(now)

    def advance(self, now: float) -> list[Event]:
        """Return what has happened up to and including `now` and was not returned before.

        Args:
            now: Current time, s.

        Returns:
            First tokens and finishes in order of time, each with its exact time.
        """
        self._advance(now)
        events, self._events = self._events, []
        for event in events:
            if event.kind == "finish":
                self._requests.pop(event.request_id, None)
        return events

    def generated(self, request_id: str, now: float) -> int:
        """Tokens that a request has produced by `now`; call before its finish is returned.

        Raises:
            KeyError: If the request is unknown, cancelled, or its finish was returned already.
        """
        self._advance(now)
        steps = self._steps_done
        if self._segment_steps > 1:
            steps += self._steps_within(now - self._start)
        return self._requests[request_id].generated(steps)

    def next_event(self, now: float) -> float | None:
        """When to call `advance` next: no event comes before this time.

        The end of the current segment. Mostly something happens then; where a long prompt spans
        several steps, or a request is admitted in between, `advance` may return nothing.

        Returns:
            A time, s, or None while there is nothing to do.
        """
        self._advance(now)
        if self._events:
            return self._events[0].time
        if self._segment_steps == 0:
            if self._idle():
                return None
            self._compose()
            if self._segment_steps == 0:
                return None
        return self._segment_end

    def _idle(self) -> bool:
        return self._segment_steps == 0 and not self._waiting and self._partial is None and not self._decoding

    def _has_room(self, request: _Request) -> bool:
        return self._admitted < self._max_running and self._reserved + request.reserved <= self._kv_capacity

    def _advance(self, now: float) -> None:
        while True:
            if self._segment_steps:
                if self._segment_end > now:
                    return
                self._finish_segment()
            elif self._start < now and not self._idle():
                self._compose()
            else:
                return

    def _compose(self) -> None:
        """Compose the step at the boundary, or the run of steps up to the first finish."""
        step = self._step
        self._drop_cancelled()
        pairs = 0.0
        budget = self._chunk_tokens
        self._chunks.clear()
        while budget > 0:
            request = self._partial
            admits = request is None
            if request is None:
                if not self._waiting or not self._has_room(self._waiting[0]):
                    break
                request = self._waiting.popleft()
                self._admitted += 1
                self._reserved += request.reserved
            chunk = min(budget, request.input_tokens - request.prefilled)
            pairs += chunk * float(request.prefilled) + 0.5 * chunk * (chunk + 1.0)
            request.prefilled += chunk
            budget -= chunk
            self._chunks.append((request, chunk, admits))
            if request.prefilled == request.input_tokens:
                self._partial = None
                self._completing.append(request)
            else:
                self._partial = request

        tokens = self._chunk_tokens - budget
        decoding = len(self._decoding)
        if tokens == 0 and decoding == 0:
            return
        first = step_seconds(step, float(tokens), pairs, float(decoding), float(self._context))
        self._segment_first = first
        self._segment_steps = 1 if tokens else self._decoding[0][0] - self._steps_done
        self._segment_end = self._start + self._segment_seconds(self._segment_steps)

    def _reopen(self, now: float) -> None:
        """Take back a step that begins right now and was composed only to say when it will end.

        So what arrives at one instant shares a step, whether or not `next_event` was asked in between.
        """
        if self._segment_steps == 0 or self._start < now:
            return
        self._segment_steps = 0
        self._completing.clear()
        for request, chunk, admitted in reversed(self._chunks):
            request.prefilled -= chunk
            self._partial = request
            if admitted:
                self._partial = None
                self._release(request)
                self._waiting.appendleft(request)
        self._chunks.clear()

    def _segment_seconds(self, steps: int) -> float:
        """Time of the first `steps` steps of the current segment."""
        if self._chunks:
            return self._segment_first
        return decode_run_seconds(
            self._step, self._segment_first, float(len(self._decoding)), float(self._context), float(steps)
        )

    def _steps_within(self, elapsed: float) -> int:
        """Whole steps of the current segment that fit into `elapsed` seconds."""
        low, high = 0, self._segment_steps
        while low < high:
            middle = (low + high + 1) // 2
            if self._segment_seconds(middle) <= elapsed:
                low = middle
            else:
                high = middle - 1
        return low

    def _cut(self, now: float) -> None:
        """End the current run of decode steps at its first boundary that is not before `now`."""
        if self._segment_steps <= 1:
            return
        low, high = 1, self._segment_steps
        while low < high:
            middle = (low + high) // 2
            if self._start + self._segment_seconds(middle) >= now:
                high = middle
            else:
                low = middle + 1
        self._segment_steps = low
        self._segment_end = self._start + self._segment_seconds(low)

    def _finish_segment(self) -> None:
        end = self._segment_end
        self._steps_done += self._segment_steps
        self._context += len(self._decoding) * self._segment_steps
        self._start = end
        self._segment_steps = 0
        while self._decoding and self._decoding[0][0] == self._steps_done:
            self._finish(heappop(self._decoding)[2], end)
        for request in self._completing:
            if request.cancelled:
                self._release(request)
                continue
            self._events.append(Event(end, "first", request.request_id))
            request.last_step = self._steps_done + request.output_tokens - 1
            self._context += request.input_tokens + 1
            if request.output_tokens == 1:
                self._finish(request, end)
            else:
                self._order += 1
                heappush(self._decoding, (request.last_step, self._order, request))
        self._completing.clear()

    def _finish(self, request: _Request, time: float) -> None:
        self._context -= request.input_tokens + request.output_tokens
        self._release(request)
        if not request.cancelled:
            request.finished = True
            self._events.append(Event(time, "finish", request.request_id))

    def _release(self, request: _Request) -> None:
        self._admitted -= 1
        self._reserved -= request.reserved

    def _drop_cancelled(self) -> None:
        if self._partial is not None and self._partial.cancelled:
            self._release(self._partial)
            self._partial = None
        dropped = [entry[2] for entry in self._decoding if entry[2].cancelled]
        if not dropped:
            return
        self._decoding = [entry for entry in self._decoding if not entry[2].cancelled]
        heapify(self._decoding)
        for request in dropped:
            self._context -= request.input_tokens + request.generated(self._steps_done)
            self._release(request)
