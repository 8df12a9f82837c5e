"""What a router is told: its bootstrap configuration, and the policy that it enforces.

The bootstrap (`RouterConfig`) is fixed for the life of the process. The policy (`RouterPolicy`) is one
JSON document, written by the operator into a ConfigMap or by the embedded runtime into a file, and
replaced as a whole: a router takes a document with a higher `policyRevision` and ignores any other.

msgspec structs, not pydantic models: the router validates a policy in microseconds and stays small.
Field names are camelCase on the wire.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

__all__ = [
    "POLICY_SCHEMA_VERSION",
    "AccessLogPolicy",
    "BalancingPolicy",
    "Capability",
    "Endpoint",
    "EndpointPolicy",
    "HttpPolicy",
    "JudgePolicy",
    "OverloadPolicy",
    "RouterConfig",
    "RouterPolicy",
    "ScorerPolicy",
    "SelfVerifyPolicy",
    "ShadowPolicy",
    "StagePolicy",
    "StreamingPolicy",
    "TracingPolicy",
    "ValidatorPolicy",
    "decode_policy",
    "encode_policy",
]

POLICY_SCHEMA_VERSION = 1
LARGEST_BODY_BYTES = 64 * 1024 * 1024
"""What routers take from each other, whatever a policy says: the entry has looked at the body."""

NonEmpty = Annotated[str, Meta(min_length=1, max_length=253)]
Address = Annotated[str, Meta(pattern=r"^.{1,253}:[0-9]{1,5}$")]
"""``host:port``."""
SecretFile = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][-._A-Za-z0-9]{0,506}$")]
"""Name of a file, without a folder."""
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


class EndpointPolicy(Struct, frozen=True, rename="camel", kw_only=True):
    """A server that a scorer asks.

    Attributes:
        url: Its URL; of an OpenAI-compatible endpoint the base, as in ``https://judge.example.com/v1``.
        api_key: File with its API key, in `RouterConfig.scorer_secrets`.
        ca: File there with the certificates (PEM) to trust; unset: the public ones.
    """

    url: Annotated[str, Meta(pattern=r"^https?://[^/?#@]+(/[!-~]*)?$", max_length=512)]
    api_key: SecretFile | UnsetType = UNSET
    ca: SecretFile | UnsetType = UNSET


class SelfVerifyPolicy(Struct, frozen=True, rename="camel", kw_only=True):
    """The engine that answered is asked whether its answer is right.

    Attributes:
        prompt: Asked after the answer; the score is the probability of yes.
    """

    prompt: Annotated[str, Meta(min_length=1)]


class JudgePolicy(Struct, frozen=True, rename="camel", kw_only=True):
    """Another model is asked.

    Attributes:
        at: Where.
        model: The `model` to ask for.
        reply: ``Number``: its reply's first number, out of `maximum`. ``YesNo``: its probability of yes.
        maximum: The best number.
        prompt: With ``{question}`` and ``{answer}``, which are filled in.
    """

    at: EndpointPolicy
    model: NonEmpty
    reply: Literal["Number", "YesNo"] = "Number"
    maximum: Annotated[float, Meta(gt=0)] = 10.0
    prompt: Annotated[str, Meta(min_length=1)]


class HttpPolicy(Struct, frozen=True, rename="camel", kw_only=True):
    """A service of the user's is asked.

    Attributes:
        at: Where.
    """

    at: EndpointPolicy


class ValidatorPolicy(Struct, frozen=True, rename="camel", kw_only=True):
    """Checks of the answer's form.

    Attributes:
        json_schema: JSON Schema, as JSON, that the text must fit.
        request_schema: Whether it must fit the schema of the request's `response_format`.
        pattern: Regular expression that must match somewhere in the text.
        tool_calls: Whether tool calls must fit the request's tools.
    """

    json_schema: str | UnsetType = UNSET
    request_schema: bool = False
    pattern: str | UnsetType = UNSET
    tool_calls: bool = False


class ScorerPolicy(Struct, frozen=True, rename="camel", kw_only=True):
    """What scores an answer.

    Attributes:
        id: The scorer's id: the key under which calibration sets hold its scores.
        type: What kind it is. Each kind but ``LogProb`` has its options in the field named after it;
            a ``Composite`` has `combine` and `parts`.
        statistic: LogProb only. ``Mean``: exp of the mean token log-probability, in (0, 1].
            ``Minimum``: the least token probability. ``Quantile``: the `quantile` of the tokens'
            probabilities. ``Margin``: mean difference in probability of the two likeliest candidates.
        quantile: Of the statistic ``Quantile``, and of no other.
        self_verify: Options of ``SelfVerify``.
        judge: Options of ``Judge``.
        http: Options of ``Http``.
        validator: Options of ``Validator``.
        deadline_seconds: Longest time to wait for a score, service seconds; 10 where unset.
        max_concurrency: Most answers that one router has scored at once; 64 where unset.
        weight: Of a part, in a ``WeightedMean``; 1 where unset.
        calibration: Of a part: points (raw score, calibrated value), ascending; unset: the raw score.
        combine: How the parts' calibrated values make one score: ``All``, their product; ``Minimum``;
            ``WeightedMean``.
        parts: Of a ``Composite``; none is a composite itself.
    """

    id: NonEmpty = "logprob-mean"
    type: Literal["LogProb", "SelfVerify", "Judge", "Http", "Validator", "Composite"] = "LogProb"
    statistic: Literal["Mean", "Minimum", "Quantile", "Margin"] = "Mean"
    quantile: Annotated[float, Meta(ge=0, le=1)] | UnsetType = UNSET
    self_verify: SelfVerifyPolicy | UnsetType = UNSET
    judge: JudgePolicy | UnsetType = UNSET
    http: HttpPolicy | UnsetType = UNSET
    validator: ValidatorPolicy | UnsetType = UNSET
    deadline_seconds: Annotated[float, Meta(gt=0)] | UnsetType = UNSET
    max_concurrency: Annotated[int, Meta(ge=1)] | UnsetType = UNSET
    weight: Annotated[float, Meta(ge=0)] | UnsetType = UNSET
    calibration: Annotated[list[tuple[float, float]], Meta(min_length=1, max_length=64)] | UnsetType = UNSET
    combine: Literal["All", "Minimum", "WeightedMean"] | UnsetType = UNSET
    parts: Annotated[list[ScorerPolicy], Meta(min_length=2, max_length=8)] | UnsetType = UNSET

    def __post_init__(self) -> None:
        fields = {"SelfVerify": "self_verify", "Judge": "judge", "Http": "http", "Validator": "validator"}
        for name in (fields[self.type],) if self.type in fields else ("combine", "parts") * (self.type == "Composite"):
            if getattr(self, name) is UNSET:
                raise ValueError(f"a scorer of type {self.type} needs {name}")
        if self.parts is not UNSET and any(part.type == "Composite" for part in self.parts):
            raise ValueError("a part of a Composite must not be one itself")


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
    """

    endpoint: Annotated[str, Meta(pattern=r"^https?://[^/?#@]+(/[!-~]*)?$", max_length=512)]
    share: Annotated[float, Meta(ge=0, le=1)] = 1.0


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


class TlsFiles(Struct, frozen=True, rename="camel", kw_only=True):
    """A certificate and its key, PEM; both are watched.

    Attributes:
        certificate: File with the certificate and the intermediate ones after it.
        key: File with its private key, without a password.
    """

    certificate: Annotated[str, Meta(min_length=1)]
    key: Annotated[str, Meta(min_length=1)]


class RouterConfig(Struct, frozen=True, rename="camel", kw_only=True):
    """Bootstrap of one router process, fixed for its life.

    Attributes:
        stage: Stage of the engine beside this router; None for an entry router without an engine,
            which relays every request to the first live stage.
        replica: This replica's name, as in `Endpoint.replica`; None for an entry router.
        engine: ``host:port`` of the engine beside it; None for an entry router or a follower.
        role: ``Leader`` serves; ``Follower`` (rank > 0 of a multi-node replica) only answers probes.
        client: ``host:port`` to listen on for clients.
        peers: ``host:port`` to listen on for other routers of the cascade (the *stage port*).
        admin: ``host:port`` for probes, metrics, report and drain.
        policy_file: File that holds the policy: watched, and read at a cold start.
        policy_config_map: ``namespace/name`` of the ConfigMap to watch in a cluster (key
            ``policy.json``); `policy_file` then serves a cold start only.
        peer_secret_file: File with the secret that signs what routers send each other.
        api_keys: Files, and folders of files, with the API keys of clients (``cascadia_router.api_keys`` says
            how); they are watched. None: whoever reaches the client port is served.
        tls: What the client port shows; None: it speaks plain HTTP, as the other ports always do.
        scorer_secrets: Folder with the files that scorers' endpoints name: API keys and certificates.
        clock_scale: Service seconds per wall second (1 in a cluster).
        clock_epoch: See `ScaledClock.epoch`.
        max_body_bytes: Largest request body that is taken; a larger one is refused with 413.
    """

    stage: NonEmpty | None = None
    replica: NonEmpty | None = None
    engine: Address | None = None
    role: Literal["Leader", "Follower"] = "Leader"
    client: Address | None = None
    peers: Address | None = None
    admin: Address
    policy_file: str | None = None
    policy_config_map: str | None = None
    peer_secret_file: str | None = None
    scorer_secrets: str | None = None
    api_keys: Annotated[list[str], Meta(min_length=1, max_length=16)] | None = None
    tls: TlsFiles | None = None
    clock_scale: Annotated[float, Meta(gt=0)] = 1.0
    clock_epoch: float = 0.0
    max_body_bytes: Annotated[int, Meta(ge=1024)] = 8 * 1024 * 1024


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
