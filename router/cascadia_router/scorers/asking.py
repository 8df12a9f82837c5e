"""The scorers that ask somebody: a judge, the engine itself, a service.

Each question is about one choice of the answer; the worst choice's score is the answer's.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from functools import partial

from cascadia_router.completion_body import CompletionRequest
from cascadia_router.said import UNREADABLE, Said
from cascadia_router.scorers.endpoint import Endpoint, Reply
from cascadia_router.scorers.gathering import Gathering, Soon
from cascadia_router.scorers.protocol import Case, Outcome, Pending, Scorable, Unscored
from cascadia_router.scorers.question import Asked, asked_by
from cascadia_router.scorers.surroundings import Surroundings

__all__ = ["Asking"]

MAX_CHOICES = 8
"""Answers of more choices are not scored: each costs a question."""


class Asking:
    """What they have in common."""

    def __init__(self, identifier: str, endpoint: Endpoint, path: bytes, surroundings: Surroundings) -> None:
        self.id = identifier
        self.logprobs = 0
        self._endpoint = endpoint
        self._path = path
        self._surroundings = surroundings

    @abstractmethod
    def question(self, case: Case, asked: Asked, said: Said) -> bytes | None:
        """The body to send; None if the scorer has no question about such a request."""

    @abstractmethod
    def read(self, document: bytes) -> float | None:
        """Score in an answer's body; None if there is none."""

    def at_once(self, request: CompletionRequest, answer: Scorable) -> Outcome | None:  # noqa: ARG002
        """See `Scorer`."""
        return None

    def ask(self, case: Case, answer: Scorable) -> Pending:
        """See `Scorer`."""
        asked = asked_by(case.request)
        try:
            choices = answer.said()
        except UNREADABLE:
            choices = []
        bodies = [] if asked is None else [self.question(case, asked, said) for said in choices]
        questions = [body for body in bodies if body is not None]
        if not 0 < len(bodies) <= MAX_CHOICES or len(questions) < len(bodies):
            return Soon(case.scored, Unscored(self.id, "unsupported"))
        headers = b"x-request-id: %s\r\n" % case.request_id.encode("latin-1", "replace")
        return Gathering([partial(self._post, body, headers) for body in questions], min, case.scored)

    def _post(self, body: bytes, headers: bytes, tell: Callable[[Outcome], None]) -> Pending:
        begun = self._surroundings.now()

        def take(reply: Reply) -> None:
            self._surroundings.took(self.id, self._surroundings.now() - begun)
            tell(self.outcome(reply))

        return self._endpoint.post(self._path, body, headers, take)

    def outcome(self, reply: Reply) -> Outcome:
        """Outcome of what became of a question."""
        if isinstance(reply, str):
            return Unscored(self.id, reply)
        try:
            score = self.read(reply)
        except UNREADABLE:
            score = None
        if score is None or not math.isfinite(score) or not 0 <= score <= 1:
            return Unscored(self.id, "malformed")
        return float(score)
