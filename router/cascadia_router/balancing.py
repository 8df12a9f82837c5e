"""Which replica a request goes to: least outstanding ÷ weight, among those that work.

`Replica` is this router's view of one replica of a stage: how many of this router's requests it holds,
and a passive circuit breaker fed by how they ended. Replicas outlive policies, so that a policy change
forgets neither.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cascadia_router.http1_client import Upstream

__all__ = ["Breaker", "Replica", "ReplicaTable", "least_loaded"]


class Breaker:
    """Passive circuit breaker: opens after consecutive failures, lets one request try after a while.

    Attributes:
        failures: Failures since the last success.
        open_until: Service time before which nothing is sent, s; 0 while closed.
    """

    __slots__ = ("_ejections", "_trial_since", "failures", "open_until")

    THRESHOLD = 3
    """Consecutive failures that open it."""
    FIRST_SECONDS = 1.0
    """First back-off, service s; doubles with each failed trial."""
    LONGEST_SECONDS = 30.0
    """Longest back-off, service s, and the longest wait for a trial's outcome."""

    def __init__(self) -> None:
        self.failures = 0
        self.open_until = 0.0
        self._ejections = 0
        self._trial_since: float | None = None

    def allows(self, now: float) -> bool:
        """Whether a request may be sent now."""
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
        ready: False while it is known not to serve: by its engine (own replica), by the cluster (others).
    """

    __slots__ = ("breaker", "is_own", "name", "outstanding", "ready", "upstream")

    def __init__(self, name: str, upstream: Upstream, *, is_own: bool = False) -> None:
        self.name = name
        self.upstream = upstream
        self.is_own = is_own
        self.outstanding = 0
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


def least_loaded(
    targets: Sequence[tuple[Replica, float]],
    now: float,
    *,
    exclude: Collection[Replica] = (),
    even_open: bool = False,
) -> Replica | None:
    """Return the replica with the least outstanding ÷ weight, or None.

    Ties go to the own replica, which saves a hop, then to the larger weight, then to the first.

    Args:
        targets: Replicas of one stage with their plan weights.
        now: Service time, s.
        exclude: Replicas that this request has tried already.
        even_open: Whether to take a replica although its breaker is open or its engine not ready.
    """
    if len(targets) == 1:
        replica, _ = targets[0]
        if replica in exclude or not (even_open or (replica.ready and replica.breaker.allows(now))):
            return None
        return replica
    best: Replica | None = None
    best_key = (0.0, True, 0.0)
    for replica, weight in targets:
        if replica in exclude:
            continue
        if not even_open and not (replica.ready and replica.breaker.allows(now)):
            continue
        key = (replica.outstanding / weight, not replica.is_own, -weight)
        if best is None or key < best_key:
            best, best_key = replica, key
    return best
