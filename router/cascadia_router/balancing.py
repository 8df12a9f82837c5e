"""Which replica a request goes to: least outstanding ÷ weight, among those that work.

Of many replicas, two drawn by weight and the own one are compared (*power of two choices*).

`Replica` is this router's view of one replica of a stage: how many of this router's requests it holds,
and a passive circuit breaker fed by how they ended. Replicas outlive policies, so that a policy change
forgets neither.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Collection, Iterable, Sequence
from hashlib import blake2b
from itertools import accumulate
from random import random
from typing import ClassVar

from cascadia_router.http1_client import Upstream

__all__ = ["Breaker", "Replica", "ReplicaTable", "Targets", "choose", "least_loaded"]


class Breaker:
    """Passive circuit breaker: opens after consecutive failures, lets one request try after a while.

    Attributes:
        failures: Failures since the last success.
        open_until: Service time before which nothing is sent, s; 0 while closed.
        silent: Whether it accepts connections and does not answer (`peer_watch`): nothing is sent then.
    """

    __slots__ = ("_ejections", "_trial_since", "failures", "open_until", "silent")

    THRESHOLD: ClassVar = 3
    """Consecutive failures that open it."""
    FIRST_SECONDS: ClassVar = 1.0
    """First back-off, service s; doubles with each failed trial."""
    LONGEST_SECONDS: ClassVar = 30.0
    """Longest back-off, service s, and the longest wait for a trial's outcome."""

    def __init__(self) -> None:
        self.failures = 0
        self.open_until = 0.0
        self.silent = False
        self._ejections = 0
        self._trial_since: float | None = None

    def allows(self, now: float) -> bool:
        """Whether a request may be sent now."""
        if self.silent:
            return False
        if not self.open_until:
            return True
        if now < self.open_until:
            return False
        return self._trial_since is None or now - self._trial_since > self.LONGEST_SECONDS

    def sent(self, now: float) -> None:
        """A request is being sent: while open, it is the trial."""
        if self.open_until:
            self._trial_since = now

    def succeeded(self) -> None:
        """A request was answered: close."""
        if self.failures:
            self.failures = 0
            self.open_until = 0.0
            self._ejections = 0
        self._trial_since = None

    def failed(self, now: float) -> None:
        """A request failed."""
        self.failures += 1
        if self.failures >= self.THRESHOLD and (not self.open_until or self._trial_since is not None):
            back_off = min(self.FIRST_SECONDS * 2**self._ejections, self.LONGEST_SECONDS)
            self._ejections = min(self._ejections + 1, 16)
            self.open_until = now + back_off
            self._trial_since = None

    def abandoned(self) -> None:
        """A request ended without telling whether the replica works: the next one may be the trial."""
        self._trial_since = None


class Replica:
    """One replica of a stage, as this router sees it.

    Attributes:
        name: The replica's name.
        upstream: Its router's stage port, or the engine if it is this router's own.
        is_own: Whether it is the replica beside this router.
        outstanding: Requests that this router has chosen it for and that are not answered.
        breaker: Its circuit breaker.
        seed: Of its places in conversations' orders: see `affinity`.
        ready: False while it is known not to serve: by its engine (own replica), by the cluster (others).
    """

    __slots__ = ("breaker", "is_own", "name", "outstanding", "ready", "seed", "upstream")

    def __init__(self, name: str, upstream: Upstream, *, is_own: bool = False) -> None:
        self.name = name
        self.upstream = upstream
        self.is_own = is_own
        self.outstanding = 0
        self.seed = int.from_bytes(blake2b(name.encode(), digest_size=8).digest())
        self.breaker = Breaker()
        self.ready = True

    def is_known_ready(self, *, ready: bool) -> None:
        """The cluster says whether it takes requests; of the own replica its engine knows better."""
        if self.is_own or ready == self.ready:
            return
        self.ready = ready
        if ready:  # it has come back: what failed before says nothing of it now
            self.breaker = Breaker()


class ReplicaTable:
    """All replicas that the remembered policies name, each once."""

    def __init__(self, own: Replica | None, own_stage: str | None) -> None:
        self.own = own
        self._own_stage = own_stage
        self._replicas: dict[tuple[str, str, str], Replica] = {}

    def replica(self, stage: str, name: str, address: str) -> Replica:
        """The replica of that stage and name at that address; ours under any address."""
        if self.own is not None and name == self.own.name and stage == self._own_stage:
            return self.own
        key = (stage, name, address)
        found = self._replicas.get(key)
        if found is None:
            found = self._replicas[key] = Replica(name, Upstream(address))
        return found

    def keep_only(self, named: Collection[Replica]) -> None:
        """Forget the replicas that no policy names any more, once nothing is outstanding at them."""
        for key, replica in list(self._replicas.items()):
            if replica not in named and not replica.outstanding:
                replica.upstream.close()
                del self._replicas[key]

    def all(self) -> list[tuple[str, Replica]]:
        """Every replica known with its stage, the own one included."""
        known = [(stage, replica) for (stage, _, _), replica in self._replicas.items()]
        if self.own is not None and self._own_stage is not None:
            known.insert(0, (self._own_stage, self.own))
        return known


class Targets:
    """The replicas of a stage with their weights, ready for a choice among many of them.

    Attributes:
        pairs: Each replica with its weight.
    """

    __slots__ = ("_cumulative", "_own", "pairs")

    FEW: ClassVar = 8
    """Up to so many are all looked at."""

    def __init__(self, pairs: Iterable[tuple[Replica, float]] = ()) -> None:
        self.pairs = tuple(pairs)
        self._own = next((target for target in self.pairs if target[0].is_own), None)
        self._cumulative = list(accumulate(weight for _, weight in self.pairs))

    def candidates(self) -> Sequence[tuple[Replica, float]]:
        """Replicas to compare: all if they are few, else the own one and two drawn by weight."""
        pairs = self.pairs
        if len(pairs) <= self.FEW:
            return pairs
        total = self._cumulative[-1]
        # As `random.choices`: the last one's share includes what rounding leaves.
        drawn = [pairs[min(bisect(self._cumulative, random() * total), len(pairs) - 1)] for _ in range(2)]  # noqa: S311
        return drawn if self._own is None else [self._own, *drawn]


def choose(
    targets: Targets,
    now: float,
    *,
    exclude: Collection[Replica] = (),
    even_open: bool = False,
) -> Replica | None:
    """Return the replica that a request goes to, or None: the least loaded of the candidates.

    Each router knows only of what it has sent itself, and so do its siblings: among many replicas the least
    loaded of a random few is better than the least loaded of all, which several routers find to be the same.
    For the simulations behind that, see docs/resilience.md.

    Args:
        targets: Replicas of one stage with their plan weights.
        now: Service time, s.
        exclude: Replicas that this request has tried already.
        even_open: Whether to take a replica although its breaker is open or its engine not ready.
    """
    pairs = targets.pairs
    if len(pairs) == 1:
        replica, _ = pairs[0]
        if replica in exclude or not (even_open or (replica.ready and replica.breaker.allows(now))):
            return None
        return replica
    if len(pairs) > Targets.FEW:
        found = least_loaded(targets.candidates(), now, exclude=exclude, even_open=even_open)
        if found is not None:
            return found
    return least_loaded(pairs, now, exclude=exclude, even_open=even_open)


def least_loaded(
    targets: Sequence[tuple[Replica, float]],
    now: float,
    *,
    exclude: Collection[Replica] = (),
    even_open: bool = False,
) -> Replica | None:
    """Return the replica with the least outstanding ÷ weight, or None.

    Ties go to the own replica, which saves a hop, else by lot, weighted: routers that hold nothing would
    otherwise all choose the same.

    Args:
        targets: Replicas of one stage with their plan weights.
        now: Service time, s.
        exclude: Replicas that this request has tried already.
        even_open: Whether to take a replica although its breaker is open or its engine not ready.
    """
    best: Replica | None = None
    least = tied = 0.0
    for replica, weight in targets:
        load = replica.outstanding / weight
        if best is not None and (load > least or (load == least and best.is_own)):
            continue
        if replica in exclude or not (even_open or (replica.ready and replica.breaker.allows(now))):
            continue
        if best is None or load < least or replica.is_own:
            best, least, tied = replica, load, weight
        else:
            tied += weight
            if random() * tied < weight:  # noqa: S311 - a lot, not a secret
                best = replica
    return best
