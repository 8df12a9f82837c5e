"""Scores of calibration answers, by the router's own scorers: the same code, so that thresholds mean the same."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from cascadia_api.cascade import Routing
from cascadia_api.cascade.scorer import scorer_secrets, secret_file
from cascadia_api.scorer_policy import scorer_policy
from cascadia_cli.calibrating.endpoint import AskError, UnusableAnswerError
from cascadia_router.completion_body import CompletionRequest
from cascadia_router.said import UNREADABLE
from cascadia_router.scorers.building import Workbench
from cascadia_router.scorers.composite import Composite
from cascadia_router.scorers.protocol import Outcome, Pending, Scorer, Unscored
from cascadia_router.scorers.surroundings import Surroundings
from cascadia_router.scoring import TokenStatistic
from cascadia_router.whole_answer import WholeAnswer

__all__ = ["SCORERS", "Scoring", "needed_secrets", "required_ids"]

SCORERS = {"logprob-mean": TokenStatistic("Mean"), "logprob-min": TokenStatistic("Minimum")}
"""Scores that are recorded of every answer with log-probabilities, whatever the manifest's scorer: they are free."""

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 20.0
_CHAT = b"/v1/chat/completions"


def required_ids(routing: Routing) -> set[str]:
    """Ids of the scores that each answer of a set must have: the scorer's, and its parts'."""
    parts = routing.scorer.parts or ()
    of_tokens = "LogProb" in {routing.scorer.type, *(part.type for part in parts)}
    return {routing.scorer_id, *(part.id for part in parts), *(SCORERS if of_tokens else ())}


def needed_secrets(routing: Routing) -> list[str]:
    """Files that the scorer reads its keys and certificates from."""
    return [secret_file(each) for each in scorer_secrets(routing.scorer)]


@dataclass
class _Case:
    """An answer that is being scored. See `Case`."""

    request: CompletionRequest
    request_id: str
    served_model: str
    outcome: asyncio.Future[Outcome] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def scored(self, outcome: Outcome) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)


class Scoring:
    """Scores the answers of one stage. Create and close it in the event loop.

    Args:
        routing: The manifest's.
        url: Base URL of the stage, which a SelfVerify asks.
        key: Its API key.
        secrets: Folder with the scorer's keys and certificates.
        attempts: Times that a scorer is asked about one answer at most.
    """

    def __init__(self, routing: Routing, url: str, key: str | None, secrets: str | None, attempts: int) -> None:
        self._routing = routing
        self._attempts = attempts
        self._bench = Workbench(Surroundings(engine=url, engine_key=key, secrets=secrets))
        self._scorer: Scorer = self._bench.scorer(scorer_policy(routing.scorer))
        self.candidates = 2 if self._scorer.logprobs > 1 else 0

    def close(self) -> None:
        """Close the connections."""
        self._bench.close()

    def of_tokens(self, document: bytes) -> dict[str, float]:
        """Scores by the log-probabilities alone; empty if there are none, and nobody needs them.

        Raises:
            UnusableAnswerError: The scorer needs log-probabilities, and there are none.
        """
        gate = self._routing.streaming.gate_tokens
        scores = {}
        for first in {None, gate}:
            answer = _read(document, first)
            for identifier, statistic in SCORERS.items():
                score = answer.score(statistic)
                if score is not None:
                    scores[identifier if first is None else f"{identifier}@{first}"] = score
        if not scores and self._scorer.logprobs:
            raise UnusableAnswerError("an answer without log-probabilities: does the engine support `logprobs`?")
        return scores

    async def of_scorer(self, body: bytes, document: bytes, request_id: str, model: str) -> dict[str, float]:
        """Scores of the manifest's scorer, and of its parts.

        Args:
            body: The request.
            document: The answer.
            request_id: For the scorer's own logs.
            model: The `model` that was asked for.

        Raises:
            AskError: It could not be scored.
        """
        case = _Case(CompletionRequest(_CHAT, body), request_id, model)
        answer = _read(document, self._routing.streaming.gate_tokens)
        scorer = self._scorer
        if not isinstance(scorer, Composite):
            return {self._routing.scorer_id: await self._score(scorer, case, answer)}
        parts = scorer.scorers
        scores = [await self._score(part, case, answer) for part in parts]
        return {scorer.id: scorer.combine(scores)} | dict(zip((part.id for part in parts), scores, strict=True))

    async def _score(self, scorer: Scorer, case: _Case, answer: WholeAnswer) -> float:
        pause, failure = _FIRST_PAUSE_S, Unscored(scorer.id, "")
        for number in range(1, self._attempts + 1):
            outcome = await _outcome(scorer, _Case(case.request, case.request_id, case.served_model), answer)
            if isinstance(outcome, float):
                return outcome
            failure = outcome
            if outcome.reason in {"unsupported", "secret", "no_logprobs"}:
                break
            if number < self._attempts:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
        raise AskError(f"scorer {failure.scorer}: {_WORDS.get(failure.reason, failure.reason)}")


async def _outcome(scorer: Scorer, case: _Case, answer: WholeAnswer) -> Outcome:
    outcome = scorer.at_once(case.request, answer)
    if outcome is not None:
        return outcome
    pending: Pending = scorer.ask(case, answer)
    try:
        return await case.outcome  # every question has a deadline
    finally:
        pending.abort()


def _read(document: bytes, first: int | None) -> WholeAnswer:
    try:
        return WholeAnswer(document, wants_logprobs=True, first=first)
    except UNREADABLE as error:
        raise UnusableAnswerError(f"not a chat completion: {error}") from None


_WORDS = {
    "timeout": "no score within its deadline",
    "unreachable": "no connection",
    "status": "it answers with an error",
    "malformed": "its answer holds no score",
    "no_logprobs": "the answer has no log-probabilities",
    "unsupported": "it cannot score such a request",
    "secret": "its key or certificate cannot be read: name their folder with --scorer-secrets",
    "unavailable": "it has failed too often, and is left alone for a while",
}
