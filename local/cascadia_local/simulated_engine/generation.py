"""Answers in the making: the batcher's virtual time, driven by the event loop's timers.

One timer waits for the batcher's next event; while streams are open, a second one, of a fixed
interval, sends what they have produced since. A timer that fires late makes answers late, never
slow: all times in answers are the batcher's, and the next event is counted from them.
"""

from __future__ import annotations

import asyncio
import math

from cascadia_api.clock import ScaledClock
from cascadia_local.simulated_engine.answers import Answer, ChatFormat, TextFormat
from cascadia_local.simulated_engine.http_server import Connection
from cascadia_local.simulated_engine.metrics import EngineMetrics
from cascadia_solver.batcher import Batcher
from cascadia_solver.steptime import StepModel

__all__ = ["Exchange", "Generation"]


class Exchange:
    """One request on its connection.

    Args:
        answer: The answer in the making.
        form: How it is written.
        connection: Where it goes.
    """

    __slots__ = ("answer", "connection", "form", "sent")

    def __init__(self, answer: Answer, form: ChatFormat | TextFormat, connection: Connection) -> None:
        self.answer = answer
        self.form = form
        self.connection = connection
        self.sent = 0

    def begin(self) -> None:
        """The first token is there: begin the stream."""
        self.connection.start_stream(self.form.opening() + self.form.chunk(0, 1))
        self.sent = 1

    def progress(self, generated: int) -> None:
        """Send what is new, unless the client still has to read what was sent before."""
        if generated > self.sent and self.connection.writable:
            self.connection.send(self.form.chunk(self.sent, generated))
            self.sent = generated

    def finish(self) -> None:
        """The last token is there: end the answer."""
        total = self.answer.output_tokens
        if not self.answer.request.stream:
            self.connection.respond(200, self.form.body())
            return
        rest = self.form.chunk(self.sent, total) if total > self.sent else b""
        self.connection.end_stream(rest + self.form.closing())


class Generation:
    """The simulated GPU replica: runs requests through the batcher in scaled time.

    Args:
        step: Step times and limits of the replica.
        clock: Service time.
        loop: The event loop, for its timers.
        metrics: Where finished answers are counted.
        stream_interval: Shortest time between two chunks of a stream, wall s.
    """

    def __init__(
        self,
        step: StepModel,
        clock: ScaledClock,
        loop: asyncio.AbstractEventLoop,
        metrics: EngineMetrics,
        stream_interval: float,
    ) -> None:
        self._batcher = Batcher(step)
        self._outside = step.first_token_seconds
        self._told = 0.0
        """Latest time that the batcher was told."""
        self._clock = clock
        self._loop = loop
        self._metrics = metrics
        self._stream_interval = stream_interval
        self._origin = clock.monotonic()
        self._exchanges: dict[str, Exchange] = {}
        self._streams: dict[str, Exchange] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf
        self._arming = self._flushing = False

    @property
    def batcher(self) -> Batcher:
        """The scheduler, for its gauges."""
        return self._batcher

    @property
    def unfinished(self) -> int:
        """Requests not yet answered."""
        return len(self._exchanges)

    def now(self) -> float:
        """Virtual time: service seconds since the engine started."""
        return self._clock.monotonic() - self._origin

    def _tell(self) -> float:
        """Virtual time, for the batcher."""
        self._told = max(self._told, self.now())
        return self._told

    def begin(self, exchange: Exchange) -> None:
        """Submit a request once it has spent its time outside the steps."""
        self._exchanges[exchange.answer.identifier] = exchange
        if self._outside > 0.0:
            self._loop.call_later(self._clock.wall(self._outside), self._submit, exchange, self._outside)
        else:
            self._submit(exchange, 0.0)

    def _submit(self, exchange: Exchange, outside: float) -> None:
        answer = exchange.answer
        if answer.identifier in self._exchanges:  # its client may have gone away
            # The timer may be late, and the scheduler may have gone on.
            arrived = max(answer.arrived + outside, self._told)
            self._batcher.submit(answer.identifier, arrived, answer.input_tokens, answer.output_tokens)
            self._arm_soon()

    def cancel(self, identifier: str) -> None:
        """Drop a request whose client has gone away."""
        if self._exchanges.pop(identifier, None) is not None:
            self._streams.pop(identifier, None)
            self._batcher.cancel(identifier, self._tell())
            self._metrics.cancelled += 1
            self._arm_soon()

    def _arm_soon(self) -> None:
        """Set the timer once for all requests that arrive in one turn of the loop."""
        if not self._arming:
            self._arming = True
            self._loop.call_soon(self._arm)

    def _arm(self) -> None:
        self._arming = False
        now = self._tell()
        event = self._batcher.next_event(now)
        if event is None:
            self._due = math.inf
            if self._timer is not None:
                self._timer.cancel()
            return
        if event >= self._due:
            return  # the timer set already fires first, and then finds this event
        if self._timer is not None:
            self._timer.cancel()
        self._due = event
        # Loops round delays to milliseconds: round up, since waking early is waking twice.
        delay = math.ceil(max(0.0, self._clock.wall(event - now)) * 1000) / 1000
        self._timer = self._loop.call_later(delay, self._wake)

    def _wake(self) -> None:
        self._due, self._timer = math.inf, None
        self._settle()
        self._arm()

    def _settle(self) -> None:
        """Send what has happened since the last time."""
        for time, kind, identifier in self._batcher.advance(self._tell()):
            exchange = self._exchanges.get(identifier)
            if exchange is None:
                continue  # cancelled
            answer = exchange.answer
            if kind == "first":
                answer.first_token = time
                if answer.request.stream:
                    exchange.begin()
                    self._streams[identifier] = exchange
                    self._flush_later()
                continue
            del self._exchanges[identifier]
            self._streams.pop(identifier, None)
            answer.finished = time
            answer.lateness = self.now() - time
            self._metrics.answered(
                answer.arrived, answer.first_token, time, answer.lateness, answer.input_tokens, answer.output_tokens
            )
            exchange.finish()

    def _flush_later(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_later(self._stream_interval, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        self._settle()
        now = self._tell()
        for identifier, exchange in self._streams.items():
            exchange.progress(self._batcher.generated(identifier, now))
        self._arm()
        if self._streams:
            self._flush_later()
