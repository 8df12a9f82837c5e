"""The policy: one document for all routers of a cascade.

The operator writes it into a ConfigMap, the embedded runtime into a file. It is replaced as a whole: a router takes a
document with a higher `policyRevision` and ignores any other.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from cascadia_api.policy.limits import RateLimits, RequestLimits
from cascadia_api.policy.scorer import ScorerPolicy
from cascadia_api.policy.text import Address, NonEmpty, SecretFile, check_port

__all__ = [
    "POLICY_SCHEMA_VERSION",
    "AccessLogPolicy",
    "BalancingPolicy",
    "Capability",
    "Endpoint",
    "OverloadPolicy",
    "RouterPolicy",
    "ShadowPolicy",
    "StagePolicy",
    "StreamingPolicy",
    "TracingPolicy",
    "decode_policy",
    "encode_policy",
]

POLICY_SCHEMA_VERSION = 1
Capability = Literal["tools", "images", "audio", "json-schema"]


class Endpoint(Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=False):
    """One replica of a stage, as other routers reach it.

    Attributes:
        replica: The replica's name, the same as its router's `RouterConfig.replica`.
        address: ``host:port`` of that replica's router's *stage* port.
        weight: The plan's share of load for this replica, relative to its siblings.
    """

    replica: NonEmpty
    address: Address
    weight: Annotated[float, Meta(gt=0)] = 1.0

    def __post_init__(self) -> None:
        """Check the port."""
        check_port("address", self.address)


class StagePolicy(Struct, frozen=True, rename="camel", kw_only=True):
    """One live stage of the cascade.

    Attributes:
        name: Stage (and model) name in the CascadeDeployment.
        served_model_name: The `model` that this stage's engine answers to.
        threshold: An answer is accepted when its raw score is ≥ this; None accepts every answer.
        endpoints: The stage's replicas. May be empty while a stage starts: it is then skipped.
        service: Service, in the namespace of the policy's ConfigMap, whose EndpointSlices say where the
            replicas are now and which of them are ready; None: the endpoints' addresses are all there is.
        context_window: Longest prompt + answer that the model takes, tokens; None if unknown.
        capabilities: What the model can do beyond text.
    """

    name: NonEmpty
    served_model_name: NonEmpty
    threshold: float | None = None
    endpoints: Annotated[list[Endpoint], Meta(max_length=512)] = msgspec.field(default_factory=list)
    service: Annotated[str, Meta(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")] | None = None
    context_window: Annotated[int, Meta(ge=1)] | None = None
    capabilities: list[Capability] = msgspec.field(default_factory=list)


class StreamingPolicy(Struct, frozen=True, rename="camel", kw_only=True):
    """How a streamed answer of a stage that may still be rejected is held back.

    Attributes:
        mode: ``Buffer`` holds the whole answer until it is scored, then replays it as it came. ``Gate``
            holds and scores its first `gate_tokens` tokens, then passes on the rest as it comes.
        gate_tokens: ``Gate`` only: tokens that are scored, of answers that come whole, too.
        keep_alive_seconds: Silence after which an SSE comment is sent, s.
    """

    mode: Literal["Buffer", "Gate"] = "Buffer"
    gate_tokens: Annotated[int, Meta(ge=1, le=4096)] | None = None
    keep_alive_seconds: Annotated[float, Meta(gt=0)] = 10.0

    def __post_init__(self) -> None:
        if (self.mode == "Gate") != (self.gate_tokens is not None):
            raise ValueError("mode Gate needs gateTokens, and no other mode takes it")


class BalancingPolicy(Struct, frozen=True, rename="camel", kw_only=True):
    """Where requests go among the replicas of a stage, and conversations among stages.

    Attributes:
        policy: ``LeastLoaded``: to the replica with the least outstanding ÷ weight. ``PrefixAffinity``:
            conversations that begin alike to the same replica, while its load is near its share.
        prefix_bytes: ``PrefixAffinity`` only: bytes of a conversation's beginning that count.
        session_latch_seconds: A conversation that has escalated goes straight to that stage until it has been
            silent for so long, service s; None: each request is judged for itself.
    """

    policy: Literal["LeastLoaded", "PrefixAffinity"] = "LeastLoaded"
    prefix_bytes: Annotated[int, Meta(ge=1, le=1_048_576)] = 4096
    session_latch_seconds: Annotated[float, Meta(gt=0)] | None = None


class OverloadPolicy(Struct, frozen=True, rename="camel", kw_only=True):
    """What a router does with more requests than it can hold.

    Attributes:
        max_queued: Requests that wait while `maxInFlight` are held; more are refused with 429.
        max_queue_seconds: Longest wait, service s; who has waited so long is refused with 429.
        ladder: Whether routers step down the policy's ladder under overload, and back.
        latency_seconds: A request that takes longer is late, service s; None: only those that wait count.
        late_share: Share of late requests above which a router is overloaded.
    """

    max_queued: Annotated[int, Meta(ge=0)] = 256
    max_queue_seconds: Annotated[float, Meta(gt=0)] = 30.0
    ladder: bool = True
    latency_seconds: Annotated[float, Meta(gt=0)] | None = None
    late_share: Annotated[float, Meta(gt=0, lt=1)] = 0.05


class ShadowPolicy(Struct, frozen=True, rename="camel", kw_only=True):
    """Asking the next stage, too, for some accepted requests, off the client's path.

    Attributes:
        share: Probability with which an accepted answer is drawn.
        max_concurrent: Shadow requests that one router has under way; more are dropped.
    """

    share: Annotated[float, Meta(gt=0, le=1)]
    max_concurrent: Annotated[int, Meta(ge=1, le=256)] = 2


class AccessLogPolicy(Struct, frozen=True, rename="camel", kw_only=True):
    """One JSON line on standard output for each request that a router has finished or refused.

    Attributes:
        share: Probability with which an answered request is logged; errors and refusals always are.
    """

    share: Annotated[float, Meta(ge=0, le=1)] = 1.0


class TracingPolicy(Struct, frozen=True, rename="camel", kw_only=True):
    """OpenTelemetry traces, sent as OTLP over HTTP.

    Attributes:
        endpoint: Base URL of the collector; spans go to ``/v1/traces`` below it.
        share: Probability with which a request is traced whose caller sends no trace context.
        headers: File with the headers that the collector wants, in `RouterConfig.secrets`.
        ca: File there with the certificates (PEM) to trust; unset: the public ones.
    """

    endpoint: Annotated[str, Meta(pattern=r"^https?://[^/?#@]+(/[!-~]*)?$", max_length=512)]
    share: Annotated[float, Meta(ge=0, le=1)] = 1.0
    headers: SecretFile | UnsetType = UNSET
    ca: SecretFile | UnsetType = UNSET


class RouterPolicy(Struct, frozen=True, rename="camel", kw_only=True):
    """All that the routers of one cascade enforce, the same document for each of them.

    Attributes:
        schema_version: Version of this document's shape.
        cascade: Name that clients use as `model`.
        policy_revision: Grows by at least one with each change.
        plan_id: The plan that this policy enforces.
        stages: Live stages, smallest model first; the last one's threshold is None.
        ladder: Threshold vectors (one entry a live stage, the last None), strictest first.
        scorer: What scores answers.
        on_scorer_error: ``Escalate`` (within the budget, then accept) or ``Accept``.
        escalation_budget: Largest share of a stage's requests that scorer errors may escalate.
        retry_budget: Largest share of a router's requests that it may repeat on another replica, over 10 s;
            10 a second are always allowed.
        max_escalations: Most times that one request is passed on.
        streaming: How streams are held back.
        request_timeout_seconds: Deadline of a request through the whole cascade, service seconds.
        max_in_flight: Requests that one router holds at once; see `OverloadPolicy` for more.
        overload: What is done with more requests.
        balancing: Where requests go.
        sample_rate: Share of answered requests kept as calibration samples in the report.
        shadow: Shadow sampling; None: none.
        pin_stages: Whether `model: <stage name>` asks that stage alone.
        rate_limits: What clients may ask for; None for all that they like. Needs API keys.
        access_log: The access log; None: none.
        tracing: Traces; None: none.
        limits: What requests may be like; None leaves it to the routers' bootstrap.
    """

    schema_version: Literal[1] = 1
    cascade: NonEmpty
    policy_revision: Annotated[int, Meta(ge=1)]
    plan_id: NonEmpty
    stages: Annotated[list[StagePolicy], Meta(min_length=1, max_length=8)]
    ladder: Annotated[list[list[float | None]], Meta(max_length=64)] = msgspec.field(default_factory=list)
    scorer: ScorerPolicy = msgspec.field(default_factory=ScorerPolicy)
    on_scorer_error: Literal["Escalate", "Accept"] = "Escalate"
    escalation_budget: Annotated[float, Meta(ge=0, le=1)] = 0.1
    retry_budget: Annotated[float, Meta(ge=0, le=1)] = 0.2
    max_escalations: Annotated[int, Meta(ge=0, le=7)] = 7
    streaming: StreamingPolicy = msgspec.field(default_factory=StreamingPolicy)
    request_timeout_seconds: Annotated[float, Meta(gt=0)] = 600.0
    max_in_flight: Annotated[int, Meta(ge=1)] = 4096
    overload: OverloadPolicy = msgspec.field(default_factory=OverloadPolicy)
    balancing: BalancingPolicy = msgspec.field(default_factory=BalancingPolicy)
    sample_rate: Annotated[float, Meta(ge=0, le=1)] = 0.05
    shadow: ShadowPolicy | None = None
    pin_stages: bool = True
    rate_limits: RateLimits | None = None
    limits: RequestLimits | None = None
    access_log: AccessLogPolicy | None = None
    tracing: TracingPolicy | None = None

    def __post_init__(self) -> None:
        if self.streaming.mode == "Gate" and self.scorer.type != "LogProb":
            raise ValueError(
                f"mode Gate needs a LogProb scorer, which can score a beginning: this is {self.scorer.type}"
            )
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stage names must be unique, got {names}")
        if self.stages[-1].threshold is not None:
            raise ValueError(f"the last stage ({names[-1]}) answers everything: its threshold must be null")
        for step, vector in enumerate(self.ladder):
            if len(vector) != len(self.stages):
                raise ValueError(f"ladder[{step}] has {len(vector)} thresholds for {len(self.stages)} stages")


def encode_policy(policy: RouterPolicy) -> bytes:
    """Return the policy as JSON, keys in the structs' order."""
    return msgspec.json.encode(policy)


def decode_policy(document: bytes | str) -> RouterPolicy:
    """Read a policy.

    Raises:
        msgspec.ValidationError: The document does not fit; the message names the field.
        msgspec.DecodeError: The document is not JSON.
    """
    return msgspec.json.decode(document, type=RouterPolicy)
