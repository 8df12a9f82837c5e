"""Who may ask a cascade, and how much: the part of the manifest that is about clients."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from cascadia_api.cascade.references import SecretName
from cascadia_api.policy import LARGEST_BODY_BYTES
from cascadia_api.schema import ApiModel, Rule, Text

__all__ = ["KeyRateLimit", "RateLimit", "RateLimits", "RequestLimits", "Tls"]

Rate = Annotated[int, Field(ge=1, le=1_000_000_000)]


class Tls(ApiModel):
    """TLS for clients."""

    secret_ref: SecretName = Field(
        description="Secret of type kubernetes.io/tls, as cert-manager makes it. Its renewal needs no restart."
    )


class RateLimit(ApiModel):
    """What a client may ask of the whole cascade; routers divide it evenly among themselves."""

    requests_per_minute: Rate | None = Field(None, description="Requests, 1/min; any number where absent.")
    tokens_per_minute: Rate | None = Field(
        None, description="Prompt and answer tokens of all stages, 1/min; any number where absent."
    )


class KeyRateLimit(RateLimit):
    """What the client with one API key may ask for."""

    key: Text = Field(description="Id of the client's keys: the key of their entry in the Secret.")


class RateLimits(ApiModel):
    """What clients may ask for, by API key."""

    default: RateLimit | None = Field(None, description="Limits of clients that are not listed; none where absent.")
    keys: Annotated[list[KeyRateLimit], Field(max_length=64)] | None = Field(
        None, description="Limits of single clients, in the place of the default."
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.keys) || self.keys.all(k, self.keys.exists_one(l, l.key == k.key))",
            "each key may be listed once",
            lambda r: len({k.key for k in r.keys or ()}) == len(r.keys or ()),
            ".keys",
        ),
    )


class RequestLimits(ApiModel):
    """What a router takes of one request, and of all of them together. More is refused, and nothing lost."""

    body_bytes: int = Field(8_388_608, ge=1024, le=LARGEST_BODY_BYTES, description="Largest body, B (else 413).")
    header_bytes: int = Field(
        65_536,
        ge=1024,
        le=1_048_576,
        description="Names and values of the headers, and the target, B (else 431).",
    )
    headers: int = Field(100, ge=8, le=10_000, description="Headers of a request (else 431).")
    receive_seconds: int = Field(60, ge=1, le=3600, description="Time for a request to arrive, s (else 408).")
    connections: int = Field(8192, ge=1, le=65_536, description="Connections of a router; more are closed at once.")
    buffered_bytes: int = Field(
        67_108_864,
        ge=1024,
        le=8_589_934_592,
        description="Bodies that a router holds at once, B (else 429); its memory limit follows from it.",
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.bufferedBytes >= self.bodyBytes",
            "bufferedBytes must not be below bodyBytes: no request of that size could be taken",
            lambda r: r.buffered_bytes >= r.body_bytes,
            ".bufferedBytes",
        ),
    )
