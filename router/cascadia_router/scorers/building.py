"""Makes the scorer that a policy names."""

from __future__ import annotations

from collections import deque

from msgspec import UNSET, UnsetType

from cascadia_api.policy import EndpointPolicy, ScorerPolicy
from cascadia_router.http1_client import Upstream
from cascadia_router.scorers.composite import Composite, Part
from cascadia_router.scorers.endpoint import Endpoint
from cascadia_router.scorers.http_scorer import HttpScorer
from cascadia_router.scorers.judge import Judge
from cascadia_router.scorers.log_prob import LogProb
from cascadia_router.scorers.protocol import Scorer
from cascadia_router.scorers.self_verify import SelfVerify
from cascadia_router.scorers.surroundings import Surroundings

__all__ = ["Workbench"]

_DEADLINE_SECONDS = 10.0
_CONCURRENCY = 64
_MOST_UPSTREAMS = 256
"""Servers whose connections are looked after: those of scorers that no policy names any more included."""


class Workbench:
    """Makes scorers, and keeps the one in use while policies come and go.

    The connections of a scorer that no policy names any more are swept like others.
    """

    def __init__(self, surroundings: Surroundings | None = None) -> None:
        self._surroundings = surroundings or Surroundings()
        self._made: tuple[ScorerPolicy, Scorer] | None = None
        self._upstreams: deque[Upstream] = deque()

    def scorer(self, policy: ScorerPolicy) -> Scorer:
        """The scorer of a policy: the same one for the same options.

        Raises:
            ValueError: An option is wrong; the message says which.
        """
        if self._made is None or self._made[0] != policy:
            self._made = (policy, self._make(policy))
        return self._made[1]

    def _make(self, policy: ScorerPolicy) -> Scorer:
        if policy.parts is not UNSET and policy.combine is not UNSET:
            parts = [
                Part(self._make(part), () if part.calibration is UNSET else part.calibration, _or(part.weight, 1.0))
                for part in policy.parts
            ]
            return Composite(policy.id, policy.combine, parts)
        around = self._surroundings
        if policy.judge is not UNSET:
            return Judge(policy.id, policy.judge, self._endpoint(policy, policy.judge.at), around)
        if policy.http is not UNSET:
            return HttpScorer(policy.id, self._endpoint(policy, policy.http.at), around)
        if policy.self_verify is not UNSET:
            # A router without an engine scores nothing: its scorer is made, and asks nobody.
            engine = EndpointPolicy(url=around.engine or "http://127.0.0.1:9/v1")
            return SelfVerify(policy.id, policy.self_verify, self._endpoint(policy, engine, around.engine_key), around)
        if policy.validator is not UNSET:
            from cascadia_router.scorers.validator import Validator

            return Validator(policy.id, policy.validator)
        return LogProb(policy.id, policy.statistic, _or(policy.quantile, 0.1))

    def _endpoint(self, policy: ScorerPolicy, at: EndpointPolicy, key: str | None = None) -> Endpoint:
        endpoint = Endpoint(
            at,
            self._surroundings,
            deadline=_or(policy.deadline_seconds, _DEADLINE_SECONDS),
            concurrency=_CONCURRENCY if policy.max_concurrency is UNSET else policy.max_concurrency,
            key=key,
        )
        self._upstreams.append(endpoint.upstream)
        while len(self._upstreams) > _MOST_UPSTREAMS:
            self._upstreams.popleft().close()
        return endpoint

    def sweep(self) -> None:
        """Close connections that are too old to be used again."""
        for upstream in list(self._upstreams):
            upstream.sweep()

    def close(self) -> None:
        """Close every connection; questions under way are dropped."""
        for upstream in list(self._upstreams):
            upstream.close()


def _or(value: float | UnsetType, otherwise: float) -> float:
    return otherwise if value is UNSET else value
