"""Counting requests many at a time.

To count one request takes ten bisections and thirty attributes. So what is to be counted is put on a list,
and a batch of them is transposed and counted by loops in C, for two thirds of that. Batches are settled
every tick, before a slice of the window ends, and before anyone reads the counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import repeat
from operator import attrgetter, mul, sub

from cascadia_router.completion_body import Usage
from cascadia_router.ladder import Lateness
from cascadia_router.metrics import Metrics
from cascadia_router.share_budget import ShareBudget
from cascadia_router.window import Window

__all__ = ["Settlement"]

_prompt_tokens = attrgetter("prompt_tokens")
_completion_tokens = attrgetter("completion_tokens")


class Settlement:
    """What is still to be counted. Append to the lists; times are service times (monotonic, s).

    Attributes:
        answers: Our engine's complete answers: when it was asked, when it answered, tokens, score; the
            score is None if it was not asked for or could not be told.
        ends: Requests that were answered: (port, stage that answered, outcome), when the first byte of the
            request came, when the first and when the last of the answer left.
        lateness: Told of client requests that ended.
    """

    __slots__ = ("_budget", "_metrics", "_window", "answers", "ends", "lateness")

    def __init__(self, metrics: Metrics, window: Window, budget: ShareBudget) -> None:
        self.answers: list[tuple[float, float, Usage | None, float | None]] = []
        self.ends: list[tuple[tuple[str, str, str], float, float, float]] = []
        self.lateness = Lateness()
        self._metrics = metrics
        self._window = window
        self._budget = budget
        window.settle = self.settle

    def settle(self) -> None:
        """Count all that is on the lists, in the window's newest slice and in the metrics."""
        if self.answers:
            self._settle_answers()
        ends, self.ends = self.ends, []
        ports = {end[0][0] for end in ends}
        for port in ports:
            self._settle_ends(port, ends if len(ports) == 1 else [end for end in ends if end[0][0] == port])

    def _settle_answers(self) -> None:
        asked, answered, usages, scores = zip(*self.answers, strict=True)
        self.answers.clear()
        piece = self._window.newest
        piece.service_ms.observe_all(_milliseconds(map(sub, answered, asked)))
        counted = [usage for usage in usages if usage is not None]
        piece.input_tokens.observe_all(list(map(_prompt_tokens, counted)))
        piece.output_tokens.observe_all(list(map(_completion_tokens, counted)))
        scored = [score for score in scores if score is not None]
        if scored:
            piece.scores.observe_all(scored)
            self._metrics.scores.observe_all(scored)
            self._budget.count(answered[-1], len(scored))

    def _settle_ends(self, port: str, ends: list[tuple[tuple[str, str, str], float, float, float]]) -> None:
        keys, arrived, first, last = zip(*ends, strict=True)
        metrics, piece = self._metrics, self._window.newest
        seconds = list(map(sub, last, arrived))
        until_first = seconds if first == last else list(map(sub, first, arrived))  # of whole answers they are the same
        buckets = metrics.request_seconds[port].observe_all(seconds)
        if until_first is seconds:
            metrics.first_byte_seconds[port].add(buckets, sum(seconds))
        else:
            metrics.first_byte_seconds[port].observe_all(until_first)
        for key, count in Counter(keys).items():
            metrics.requests[key] += count
            if port == "client":
                piece.answered_by[key[1]] += count
        if port == "client":
            self.lateness.observe(last[-1], arrived, seconds)
            milliseconds = _milliseconds(seconds)
            buckets = piece.end_to_end_ms.observe_all(milliseconds)
            if until_first is seconds:
                piece.first_token_ms.add(buckets, sum(milliseconds))
            else:
                piece.first_token_ms.observe_all(_milliseconds(until_first))


def _milliseconds(seconds: Iterable[float]) -> list[float]:
    return list(map(mul, seconds, repeat(1000.0)))
