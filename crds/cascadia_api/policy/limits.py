"""What routers take of their clients: so much by API key, and of one request."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

__all__ = ["LARGEST_BODY_BYTES", "RateLimit", "RateLimits", "RequestLimits"]

LARGEST_BODY_BYTES = 64 * 1024 * 1024
"""What routers take from each other, whatever a policy says: the entry has looked at the body."""


class RateLimit(Struct, frozen=True, rename="camel", kw_only=True):
    """What one client may ask of the whole cascade.

    Attributes:
        requests_per_minute: Requests, 1/min; None for no limit.
        tokens_per_minute: Prompt and answer tokens of all stages, 1/min; None for no limit.
    """

    requests_per_minute: Annotated[int, Meta(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Meta(ge=1)] | None = None


class RateLimits(Struct, frozen=True, rename="camel", kw_only=True):
    """What clients may ask of the whole cascade; each router enforces its share.

    Attributes:
        default: Of a client that `keys` does not name.
        keys: By the id of the client's API keys, in the place of `default`.
    """

    default: RateLimit = RateLimit()
    keys: Annotated[dict[str, RateLimit], Meta(max_length=64)] = msgspec.field(default_factory=dict)

    def of(self, key: str) -> RateLimit:
        """The limits of a client."""
        return self.keys.get(key, self.default)


class RequestLimits(Struct, frozen=True, rename="camel", kw_only=True):
    """What a router takes of one request, one connection, and all of them together.

    Attributes:
        body_bytes: Largest body, B; a larger one is refused with 413.
        header_bytes: Names and values of a request's headers, and its target, B; more is refused with 431.
        headers: Headers of a request; more are refused with 431.
        receive_seconds: Longest time in which a request must have arrived, wall s; then 408.
        connections: Connections of a port; more are closed at once.
        buffered_bytes: Bodies of all requests that are arriving or being answered, B; more is refused with 429.
    """

    body_bytes: Annotated[int, Meta(ge=1024, le=LARGEST_BODY_BYTES)] = 8 * 1024 * 1024
    header_bytes: Annotated[int, Meta(ge=1024, le=1024 * 1024)] = 64 * 1024
    headers: Annotated[int, Meta(ge=8, le=10_000)] = 100
    receive_seconds: Annotated[float, Meta(gt=0, le=3600)] = 60.0
    connections: Annotated[int, Meta(ge=1, le=65_536)] = 8192
    buffered_bytes: Annotated[int, Meta(ge=1024)] = 64 * 1024 * 1024
