"""What the routers do: scoring, escalation, streaming, balancing, overload; who may ask, and what is told of it."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from cascadia_api.cascade.access import RateLimits, RequestLimits, Tls
from cascadia_api.cascade.observability import AccessLog, Tracing
from cascadia_api.cascade.references import ApiKeysReference
from cascadia_api.cascade.scorer import Scorer
from cascadia_api.schema import ApiModel, DecimalString, Rule, as_decimal

__all__ = ["Balancing", "Overload", "Routing", "ShadowSampling", "Streaming"]


class Streaming(ApiModel):
    """How streamed answers of stages that may still be rejected are held back."""

    mode: Literal["Buffer", "Gate"] = Field(
        "Buffer",
        description="Buffer: hold the answer until it is scored. Gate: hold its first gateTokens tokens, decide on "
        "them, then pass on the rest as it comes.",
    )
    gate_tokens: int | None = Field(
        None, ge=1, le=4096, description="Gate: tokens to decide on. They are scored under an id of their own."
    )
    keep_alive_seconds: int = Field(
        10, ge=1, le=3600, description="Silence after which the client of a held stream is sent an SSE comment, s."
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "(self.mode == 'Gate') == has(self.gateTokens)",
            "mode: Gate needs gateTokens, the number of tokens to decide on (as in 64), and no other mode takes it",
            lambda s: (s.mode == "Gate") == (s.gate_tokens is not None),
            ".gateTokens",
        ),
    )


class Balancing(ApiModel):
    """Where requests go among the replicas of a stage, and conversations among stages."""

    policy: Literal["LeastLoaded", "PrefixAffinity"] = Field(
        "LeastLoaded",
        description="LeastLoaded: to the replica with the fewest outstanding requests by weight. PrefixAffinity: "
        "conversations that begin alike to the same replica, for its prefix cache, while its load is near its share.",
    )
    prefix_bytes: int | None = Field(
        None,
        ge=1,
        le=1_048_576,
        description="PrefixAffinity: bytes of a conversation's beginning (its messages up to the first of the user, "
        "or its prompt) that count. Absent: 4096.",
    )
    session_latch_seconds: int | None = Field(
        None,
        ge=1,
        le=604_800,
        description="A conversation that has escalated goes straight to that stage until it has been silent for so "
        "long, s. Absent: each request is judged for itself.",
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.prefixBytes) || self.policy == 'PrefixAffinity'",
            "prefixBytes needs policy: PrefixAffinity: set it, or remove prefixBytes",
            lambda b: b.prefix_bytes is None or b.policy == "PrefixAffinity",
            ".prefixBytes",
        ),
    )


class Overload(ApiModel):
    """What each router does with more requests than it can hold."""

    max_in_flight: int = Field(4096, ge=1, le=65_536, description="Requests that one router holds at once.")
    max_queued: int = Field(
        256, ge=0, le=65_536, description="Requests that wait while so many are held; more are refused with 429."
    )
    ladder: Literal["Automatic", "Off"] = Field(
        "Automatic",
        description="Automatic: under overload routers step down the plan's ladder of thresholds, all within the "
        "quality floor (or minQualityOverloaded), and back.",
    )
    latency_milliseconds: int | None = Field(
        None,
        ge=1,
        le=3_600_000,
        description="A router is overloaded when more than 5 % of its requests take longer, ms. Absent: what the "
        "objective's EndToEnd target says; without one twice the p95 that the plan predicts.",
    )
    max_queue_seconds: int = Field(
        30, ge=1, le=3600, description="Longest wait; then a request is refused with 429, s."
    )


class ShadowSampling(ApiModel):
    """Asks the next stage, too, for some accepted requests, off the client's path, to see how far both agree."""

    percent: DecimalString = Field(description='Share of accepted answers that are compared, %, "0.1" to "100".')
    max_concurrent: int = Field(
        2, ge=1, le=256, description="Comparisons that one router has under way; more are dropped, never queued."
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "double(self.percent) > 0.0 && double(self.percent) <= 100.0",
            "percent must be above 0 and at most 100: leave shadowSampling out to compare nothing",
            lambda s: 0 < as_decimal(s.percent) <= 100,
            ".percent",
        ),
    )


class Routing(ApiModel):
    """What the routers do."""

    scorer: Scorer = Field(default_factory=Scorer, description="What scores an answer.")
    on_scorer_error: Literal["Escalate", "Accept"] = Field(
        "Escalate", description="When an answer cannot be scored: Escalate (within a budget, then accept) or Accept."
    )
    escalation_budget_percent: int = Field(
        10, ge=0, le=100, description="Largest share of a stage's requests that scorer errors may escalate, %."
    )
    streaming: Streaming = Field(default_factory=Streaming, description="How streamed answers are held back.")
    shadow_sampling: ShadowSampling | None = Field(
        None, description="Compares accepted answers with the next stage's; nothing is compared where absent."
    )
    access_log: AccessLog | None = Field(
        None, description="JSON line for each request on the routers' standard output; none where absent."
    )
    tracing: Tracing | None = Field(None, description="OpenTelemetry traces; none where absent.")
    max_escalations: int | None = Field(None, ge=0, le=7, description="Most times that a request is passed on.")
    pin_stages: bool = Field(
        True, description="Whether a request whose `model` is a stage's name is answered by that stage alone."
    )
    retry_budget_percent: int = Field(
        20,
        ge=0,
        le=100,
        description="Most of its requests that a router repeats on another replica, % over 10 s; "
        "10 a second are always allowed, unless it is 0.",
    )
    balancing: Balancing = Field(
        default_factory=Balancing, description="Where requests go among replicas, and conversations among stages."
    )
    overload: Overload = Field(
        default_factory=Overload, description="What each router does with more requests than it can hold."
    )
    request_timeout_seconds: int = Field(600, ge=1, le=86_400, description="Deadline of a request, all stages, s.")
    api_keys_secret_ref: ApiKeysReference | None = Field(
        None,
        description="Secret with the API keys of clients: one a line, as it is or as `sha256:<hex>`; the entry's key "
        "is the keys' id. Changes need no restart. Without it any client is served.",
    )
    tls: Tls | None = Field(None, description="TLS for clients, from a mounted certificate; plain HTTP where absent.")
    rate_limits: RateLimits | None = Field(None, description="What clients may ask for, by API key.")
    limits: RequestLimits = Field(default_factory=RequestLimits, description="What requests may be like.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.streaming) || self.streaming.mode != 'Gate' || !has(self.scorer) || "
            "self.scorer.type == 'LogProb'",
            "streaming.mode: Gate needs a scorer that can score the beginning of an answer: set scorer.type to "
            "LogProb, or streaming.mode to Buffer",
            lambda r: r.streaming.mode != "Gate" or r.scorer.type == "LogProb",
            ".streaming.mode",
        ),
        Rule(
            "!has(self.rateLimits) || has(self.apiKeysSecretRef)",
            "rateLimits count by API key: set apiKeysSecretRef",
            lambda r: r.rate_limits is None or r.api_keys_secret_ref is not None,
            ".rateLimits",
        ),
    )

    @property
    def scorer_id(self) -> str:
        """Key of the scores that thresholds apply to, in calibration sets: `@n` where n tokens are scored."""
        gate = self.streaming.gate_tokens
        return self.scorer.id if gate is None else f"{self.scorer.id}@{gate}"
