"""Who the clients are: from a request's `Authorization` header to the client that sent it."""

from __future__ import annotations

from cascadia_router.api_keys import ApiKeys, digest_of

__all__ = ["Client", "Clients"]

_SCHEME = b"bearer "


class Client:
    """Whoever holds the API keys of one id.

    Attributes:
        id: Of its keys.
        requests: How many of its requests were let in.
        tokens: Prompt and answer tokens of its answers, as far as engines said.
    """

    __slots__ = ("id", "requests", "tokens")

    def __init__(self, id: str) -> None:  # noqa: A002
        self.id = id
        self.requests = 0
        self.tokens = 0


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
        if authorization[:7].lower() != _SCHEME:
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
