"""Who the clients are, from a request's `Authorization` header, and how much each of them may ask for."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from cascadia_api.policy import RateLimit, RouterPolicy
from cascadia_router.api_keys import ApiKeys, digest_of
from cascadia_router.rate_limit import Rate

__all__ = ["Client", "Clients", "Denial"]

_SCHEME: Final = b"bearer "
_LINES = (  # as OpenAI has them; what is left, and the time until all is, are filled in later
    "x-ratelimit-limit-{0}: {1}\r\nx-ratelimit-remaining-{0}: %d\r\nx-ratelimit-reset-{0}: %dms\r\n"
)


class Denial(NamedTuple):
    """Why a client has to wait.

    Attributes:
        of: What is used up: ``requests`` or ``tokens``.
        limit: How many a minute this router lets it have.
        seconds: How long it has to wait, service s.
    """

    of: str
    limit: float
    seconds: float


class Client:
    """Whoever holds the API keys of one id.

    Attributes:
        id: Of its keys.
        admitted: How many of its requests were let in.
        denied: How many were not, by what was used up.
        tokens: Tokens that its requests took at all stages, as far as engines said.
        limited: Whether any limit holds for it.
    """

    __slots__ = (
        "_followed",
        "_lines",
        "_rates",
        "_requests",
        "_tokens",
        "admitted",
        "denied",
        "id",
        "limited",
        "tokens",
    )

    def __init__(self, id: str) -> None:  # noqa: A002
        self.id = id
        self.admitted = 0
        self.denied = {"requests": 0, "tokens": 0}
        self.tokens = 0
        self.limited = False
        self._followed: RouterPolicy | None = None
        self._requests: Rate | None = None
        self._tokens: Rate | None = None
        self._rates: tuple[tuple[str, Rate], ...] = ()
        self._lines = b""

    def follow(self, policy: RouterPolicy, share: float, now: float) -> None:
        """Take over the limits that are in force.

        Args:
            policy: In force.
            share: The part of its limits that this router enforces.
            now: Service time (monotonic), s.
        """
        if policy is self._followed:
            return
        self._followed = policy
        mine = policy.rate_limits.of(self.id) if policy.rate_limits is not None else RateLimit()
        self._requests = _changed(self._requests, mine.requests_per_minute, share, now)
        self._tokens = _changed(self._tokens, mine.tokens_per_minute, share, now)
        both = (("requests", self._requests), ("tokens", self._tokens))
        self._rates = tuple((of, rate) for of, rate in both if rate is not None)
        self._lines = "".join(_LINES.format(of, max(1, math.floor(rate.limit))) for of, rate in self._rates).encode()
        self.limited = bool(self._rates)

    def denial(self, now: float) -> Denial | None:
        """Why a request cannot be let in; None if it can.

        It can as long as any token is left, however many it will take: it may overdraw, and what comes
        after it waits the longer. So no budget is too small for a request.

        Args:
            now: Service time (monotonic), s.
        """
        for of, rate in self._rates:
            if rate.left(now) < 1:
                self.denied[of] += 1
                return Denial(of, rate.limit, rate.wait(now, 1))
        return None

    def take(self, now: float, tokens: int) -> None:
        """Let a request in.

        Args:
            now: Service time (monotonic), s.
            tokens: What the request is expected to take.
        """
        if self._requests is not None:
            self._requests.take(now, 1)
        if self._tokens is not None:
            self._tokens.take(now, tokens)
        self.admitted += 1

    def settle(self, now: float, expected: int, taken: int) -> None:
        """A request is over.

        Args:
            now: Service time (monotonic), s.
            expected: What `take` was told.
            taken: Tokens that it really took.
        """
        self.tokens += taken
        if self._tokens is not None and taken != expected:
            self._tokens.take(now, taken - expected)

    def lines(self, now: float, scale: float) -> bytes:
        """Header lines that say what is left.

        Args:
            now: Service time (monotonic), s.
            scale: Service seconds in one of the client's.
        """
        values: tuple[int, ...] = ()
        for _, rate in self._rates:
            left = rate.left(now)
            values += (int(left) if left > 0 else 0, int(rate.reset(now) * 1000 / scale))
        return self._lines % values


def _changed(rate: Rate | None, limit: int | None, share: float, now: float) -> Rate | None:
    if limit is None:
        return None
    if rate is None:
        return Rate(limit * share)
    rate.change(limit * share, now)
    return rate


class Clients:
    """All clients that have a key.

    Attributes:
        keys: Their keys.
    """

    def __init__(self, keys: ApiKeys) -> None:
        self.keys = keys
        self._by_digest: dict[bytes, Client] = {}
        self._of: dict[bytes, str] | None = None

    def of(self, authorization: bytes) -> Client | None:
        """The client of a request; None if it shows no valid key.

        Nothing of the header is kept: only digests are in this process's memory, and one digest and one
        look-up is all that a request costs.

        Args:
            authorization: Value of the header; empty if the request has none.
        """
        scheme = authorization[:7]
        if scheme != b"Bearer " and scheme.lower() != _SCHEME:
            return None
        if self._of is not self.keys.ids:
            self._follow()
        return self._by_digest.get(digest_of(authorization[7:].strip(b" \t")))

    def all(self) -> list[Client]:
        """All clients, by id."""
        self._follow()
        return sorted(set(self._by_digest.values()), key=lambda client: client.id)

    def _follow(self) -> None:
        """Take over the keys as they are now; who stays keeps its counts."""
        known = {client.id: client for client in self._by_digest.values()}
        self._of = self.keys.ids
        self._by_digest = {}
        for digest, name in self._of.items():
            client = known.get(name)
            if client is None:
                client = known[name] = Client(name)
            self._by_digest[digest] = client
