"""`CascadeDeployment`: what a user writes.

The custom resource definition is generated from these models (`crd`), so the field docs below are what
``kubectl explain`` shows. Defaults are given in the schema only outside lists: a defaulted field inside
a list item would show as a permanent difference in GitOps tools.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints

from cascadia_api.access import ApiKeysReference, RateLimits, RequestLimits, Tls
from cascadia_api.engine_args import OWNED_ENGINE_ARGS, is_owned
from cascadia_api.names import CASCADE_NAME_MAX, MODEL_NAME_MAX
from cascadia_api.observability import AccessLog, Tracing
from cascadia_api.schema import ApiModel, DecimalString, DnsLabel, Rule, as_decimal
from cascadia_api.scorer import Scorer, SecretKeyReference

__all__ = [
    "Balancing",
    "Calibration",
    "CapabilityNeeds",
    "CascadeDeployment",
    "CascadeDeploymentSpec",
    "Engine",
    "GpuSpec",
    "Gpus",
    "LatencyTarget",
    "LocalObjectReference",
    "Model",
    "ModelSource",
    "ObjectMeta",
    "Objective",
    "Overload",
    "Parallelism",
    "PodTemplate",
    "Pool",
    "Replanning",
    "Rollout",
    "Routing",
    "Scorer",
    "SecretKeyReference",
    "ShadowSampling",
    "Streaming",
    "TokenLengths",
    "Toleration",
    "Workload",
]

ModelName = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", min_length=1, max_length=MODEL_NAME_MAX)
]
Text = Annotated[str, StringConstraints(min_length=1, max_length=253)]
Argument = Annotated[str, StringConstraints(min_length=1, max_length=512)]
LabelValue = Annotated[str, StringConstraints(max_length=63)]
LabelMap = Annotated[dict[str, LabelValue], Field(max_length=32)]


class LocalObjectReference(ApiModel):
    """Reference to an object in the same namespace."""

    name: Text = Field(description="Name of the object.")


class HuggingFaceSource(ApiModel):
    """Weights from a Hugging Face repository, downloaded by the engine."""

    repo: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?$", max_length=128)] = Field(
        description="Repository, as in `meta-llama/Llama-3.1-8B-Instruct`."
    )
    revision: Text | None = Field(None, description="Branch, tag or commit; the default branch where absent.")
    token_secret_ref: SecretKeyReference | None = Field(
        None, description="Secret key with the access token of gated repositories."
    )


class PvcSource(ApiModel):
    """Weights on a PersistentVolumeClaim that many nodes can read."""

    claim_name: DnsLabel = Field(description="PersistentVolumeClaim in the same namespace.")
    path: Text = Field(description="Folder of the model inside the volume.")
    architecture: Text | None = Field(
        None, description="Catalogue name or repository whose architecture the weights have; planning needs it."
    )


class ModelSource(ApiModel):
    """Where a model's weights come from: exactly one of the fields."""

    hugging_face: HuggingFaceSource | None = Field(None, description="A Hugging Face repository.")
    pvc: PvcSource | None = Field(None, description="A folder on a PersistentVolumeClaim.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.huggingFace) != has(self.pvc)",
            "set exactly one of huggingFace and pvc",
            lambda s: (s.hugging_face is None) != (s.pvc is None),
        ),
    )


class Parallelism(ApiModel):
    """Limits on how one replica of the model may be spread over GPUs."""

    max_tensor_parallel: int | None = Field(None, ge=1, le=64, description="Largest tensor-parallel degree.")
    max_pipeline_parallel: int | None = Field(None, ge=1, le=16, description="Largest pipeline-parallel degree.")


class EnvironmentVariable(ApiModel):
    """An environment variable of the engine container."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)] = Field(
        description="Name of the variable."
    )
    value: Annotated[str, StringConstraints(max_length=1024)] | None = Field(None, description="Its value.")
    secret_key_ref: SecretKeyReference | None = Field(None, description="Secret key that holds its value.")


_OWNED_LIST = "[" + ", ".join(f"'{argument}'" for argument in OWNED_ENGINE_ARGS) + "]"


class Engine(ApiModel):
    """How SGLang is run for one model."""

    image: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = Field(
        None, description="Container image; the operator's default where absent."
    )
    extra_args: Annotated[list[Argument], Field(max_length=32)] | None = Field(
        None,
        description="More arguments for SGLang; options that the operator sets (parallelism, ports, …) are refused.",
    )
    env: Annotated[list[EnvironmentVariable], Field(max_length=32)] | None = Field(
        None, description="Environment variables of the engine container."
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.extraArgs) || self.extraArgs.all(a, !a.startsWith('--') || "
            f"!{_OWNED_LIST}.exists(o, o.startsWith(a.split('=')[0])))",
            "extraArgs must not set or abbreviate an option that the operator owns (model, parallelism, host, "
            "port, metrics, keys): remove it, or set the field of the manifest that controls it",
            lambda e: not any(is_owned(a) for a in e.extra_args or ()),
            ".extraArgs",
        ),
    )


class Model(ApiModel):
    """One model of the cascade."""

    name: ModelName = Field(description="Stage name: short, unique, used in object names, metrics and headers.")
    source: ModelSource = Field(description="Where the weights come from.")
    precision: Literal["bf16", "fp16", "fp8", "int8", "int4", "fp4"] | None = Field(
        None, description="Precision of the weights as served; that of the published checkpoint where absent."
    )
    config_json: Annotated[str, StringConstraints(min_length=2, max_length=32_768)] | None = Field(
        None,
        description="The model's own config.json, as text: planning takes the architecture from it. For models that "
        "the catalogue does not have.",
    )
    parallelism: Parallelism | None = Field(None, description="Limits on tensor and pipeline parallelism.")
    min_replicas: int | None = Field(
        None, ge=0, le=256, description="Least number of replicas; 0 or absent lets the planner drop the stage."
    )
    pools: Annotated[list[DnsLabel], Field(max_length=8)] | None = Field(
        None, description="GPU pools that may serve this model; any where absent."
    )
    engine: Engine | None = Field(None, description="Image, arguments and environment of its engine.")


class Toleration(ApiModel):
    """A toleration of the pods of a pool."""

    key: Text | None = Field(None, description="Taint key; all keys where absent and operator is Exists.")
    operator: Literal["Exists", "Equal"] | None = Field(None, description="Equal where absent.")
    value: LabelValue | None = Field(None, description="Taint value for Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        None, description="Taint effect; all where absent."
    )


class GpuSpec(ApiModel):
    """A GPU in numbers of its datasheet, for kinds that the catalogue does not have."""

    memory_gigabytes: int = Field(ge=1, le=4096, description="Device memory, 10^9 bytes.")
    memory_gigabytes_per_second: int = Field(ge=1, le=1_000_000, description="Memory bandwidth, GB/s.")
    bf16_teraflops: int = Field(ge=1, le=1_000_000, description="Dense 16-bit matrix arithmetic, 10^12/s.")
    fp8_teraflops: int = Field(ge=0, le=1_000_000, description="Dense fp8 matrix arithmetic, 10^12/s; 0: it has none.")
    link_gigabytes_per_second: int = Field(
        ge=1, le=100_000, description="Bandwidth to the other GPUs of the node, one way, GB/s."
    )
    fp4_teraflops: int | None = Field(
        None, ge=0, le=1_000_000, description="Dense fp4 matrix arithmetic, 10^12/s; none where absent."
    )


class Pool(ApiModel):
    """GPUs of one kind."""

    name: DnsLabel = Field(description="Name of the pool, unique in the manifest.")
    gpu: Text = Field(
        description="GPU of the catalogue, as in `H100-SXM-80GB` (docs/cost-model.md lists them), or a name of your "
        "own with gpuSpec."
    )
    gpu_spec: GpuSpec | None = Field(None, description="The GPU's numbers, where the catalogue does not have it.")
    max_gpus: int = Field(ge=1, le=4096, description="Most GPUs that the cascade may take from this pool: a ceiling.")
    gpus_per_node: int | None = Field(None, ge=1, le=16, description="GPUs of one node; 8 where absent.")
    price_per_gpu_hour: DecimalString | None = Field(
        None, description="Price of one GPU for one hour, any currency; needed to minimise Cost."
    )
    resource_name: (
        Annotated[str, StringConstraints(pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$", max_length=128)] | None
    ) = Field(None, description="Extended resource that pods ask for; `nvidia.com/gpu` where absent.")
    node_selector: LabelMap | None = Field(None, description="Labels of the pool's nodes.")
    tolerations: Annotated[list[Toleration], Field(max_length=16)] | None = Field(
        None, description="Tolerations of pods on this pool."
    )


class Gpus(ApiModel):
    """The GPU budget."""

    pools: Annotated[list[Pool], Field(min_length=1, max_length=8)] = Field(description="One or several kinds of GPU.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.pools.all(p, self.pools.exists_one(q, q.name == p.name))",
            "pool names must be unique: rename one",
            lambda g: len({p.name for p in g.pools}) == len(g.pools),
            ".pools",
        ),
    )


class LatencyTarget(ApiModel):
    """A latency that the plan has to meet."""

    metric: Literal["EndToEnd", "TimeToFirstToken", "TimePerOutputToken"] = Field(
        description="What is measured, along the whole path of a request."
    )
    percentile: Literal[50, 90, 95, 99] = Field(description="Which percentile.")
    milliseconds: int = Field(ge=1, le=3_600_000, description="The most that it may be, ms.")


class Objective(ApiModel):
    """What the plan is good for."""

    min_quality: DecimalString = Field(
        description='Least mean judged worth of the answers, "0" to "1": the quality floor.'
    )
    confidence: DecimalString = Field(
        "0.95", description="Probability with which the floor has to hold, given the calibration set."
    )
    minimize: Literal["Latency", "Cost"] = Field("Latency", description="What to make least within the limits.")
    percentile: Literal[50, 90, 95, 99] = Field(95, description="Percentile of end-to-end latency that is minimised.")
    targets: Annotated[list[LatencyTarget], Field(max_length=8)] | None = Field(
        None, description="Latencies that the plan has to meet."
    )
    min_quality_overloaded: DecimalString | None = Field(
        None, description="Lower floor that routers may go down to under overload; absent: never below minQuality."
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "double(self.minQuality) <= 1.0",
            "minQuality is a mean worth between 0 and 1: write 85 % as 0.85",
            lambda o: as_decimal(o.min_quality) <= 1,
            ".minQuality",
        ),
        Rule(
            "double(self.confidence) >= 0.5 && double(self.confidence) < 1.0",
            "confidence must be at least 0.5 and below 1",
            lambda o: 0.5 <= float(o.confidence) < 1,
            ".confidence",
        ),
        Rule(
            "!has(self.minQualityOverloaded) || double(self.minQualityOverloaded) <= double(self.minQuality)",
            "minQualityOverloaded must not be above minQuality",
            lambda o: (
                o.min_quality_overloaded is None or as_decimal(o.min_quality_overloaded) <= as_decimal(o.min_quality)
            ),
            ".minQualityOverloaded",
        ),
    )


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


class TokenLengths(ApiModel):
    """A distribution of token counts, taken as log-normal through these two points."""

    mean: int = Field(ge=1, le=1_000_000, description="Mean, tokens.")
    p95: int = Field(ge=1, le=1_000_000, description="95th percentile, tokens.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.p95 >= self.mean && 10 * self.p95 <= 38 * self.mean",
            "p95 must lie between the mean and 3.8 times the mean: no log-normal distribution has both otherwise",
            lambda t: t.mean <= t.p95 and 10 * t.p95 <= 38 * t.mean,
            ".p95",
        ),
    )


class CapabilityNeeds(ApiModel):
    """Share of requests that need more than text of a model, each independently of the others.

    Requests go to the first stage whose model can do what they need.
    """

    tools: DecimalString | None = Field(None, description="Share of requests with tools, 0 to 1.")
    images: DecimalString | None = Field(None, description="Share of requests with images, 0 to 1.")
    audio: DecimalString | None = Field(None, description="Share of requests with audio, 0 to 1.")
    json_schema: DecimalString | None = Field(
        None, description="Share of requests that want an answer by a JSON schema, 0 to 1."
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "(!has(self.tools) || double(self.tools) <= 1.0) && (!has(self.images) || double(self.images) <= 1.0) && "
            "(!has(self.audio) || double(self.audio) <= 1.0) && "
            "(!has(self.jsonSchema) || double(self.jsonSchema) <= 1.0)",
            "shares of requests must lie between 0 and 1",
            lambda n: all(as_decimal(share) <= 1 for share in n.shares().values()),
        ),
    )

    def shares(self) -> dict[str, str]:
        """Shares that are given, by the capability's name among the routers."""
        named = {"tools": self.tools, "images": self.images, "audio": self.audio, "json-schema": self.json_schema}
        return {word: share for word, share in named.items() if share is not None}


class Workload(ApiModel):
    """The traffic to plan for until real traffic has been seen."""

    requests_per_second: DecimalString = Field(description="Arrival rate of requests, 1/s.")
    input_tokens: TokenLengths = Field(description="Prompt lengths.")
    output_tokens: TokenLengths = Field(description="Answer lengths of the largest model.")
    prefix_cache_hit_percent: int | None = Field(
        None,
        ge=0,
        le=100,
        description="Share of prompt tokens that engines find in their prefix cache, %: planned as not processed "
        "again, the same share of every prompt. They still take room in the cache. None where absent.",
    )
    needs: CapabilityNeeds | None = Field(
        None,
        description="What requests need beyond text, where neither the calibration set nor a trace says it.",
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "double(self.requestsPerSecond) > 0.0",
            "requestsPerSecond must be above 0",
            lambda w: as_decimal(w.requests_per_second) > 0,
            ".requestsPerSecond",
        ),
    )


class Calibration(ApiModel):
    """Requests answered, scored and judged by every model once."""

    config_map_ref: LocalObjectReference = Field(
        description="ConfigMap whose keys ending in `.jsonl` hold calibration lines."
    )


class Replanning(ApiModel):
    """When a new plan is made for changed traffic."""

    mode: Literal["Automatic", "Advisory", "Disabled"] = Field(
        "Automatic", description="Automatic applies a better plan, Advisory proposes it, Disabled does neither."
    )
    interval_seconds: int = Field(60, ge=5, le=86_400, description="Time between looks at the traffic, s.")
    cooldown_seconds: int = Field(600, ge=0, le=86_400, description="Least time between two placements, s.")
    min_improvement_percent: int = Field(
        10, ge=0, le=100, description="Least improvement of the minimised figure that justifies moving replicas, %."
    )


class Rollout(ApiModel):
    """How a new plan replaces the running one."""

    strategy: Literal["InPlace", "MakeBeforeBreak", "Recreate"] = Field(
        "InPlace",
        description="InPlace frees GPUs stage by stage, MakeBeforeBreak adds first where GPUs are free, "
        "Recreate stops everything first.",
    )
    progress_deadline_seconds: int = Field(
        1800, ge=30, le=86_400, description="Time without progress after which the rollout counts as Stalled, s."
    )


class PodTemplate(ApiModel):
    """The part of pods that a platform team may set, for all models of the cascade."""

    labels: LabelMap | None = Field(None, description="More labels on pods.")
    annotations: (
        Annotated[dict[str, Annotated[str, StringConstraints(max_length=1024)]], Field(max_length=32)] | None
    ) = Field(None, description="More annotations on pods.")
    service_account_name: DnsLabel | None = Field(
        None, description="ServiceAccount of the pods; the operator makes one where absent."
    )
    priority_class_name: DnsLabel | None = Field(None, description="PriorityClass of the pods.")
    scheduler_name: Text | None = Field(None, description="Scheduler of the pods.")
    image_pull_secrets: Annotated[list[LocalObjectReference], Field(max_length=8)] | None = Field(
        None, description="Secrets for pulling images."
    )


class CascadeDeploymentSpec(ApiModel):
    """What a cascade is made of and what it has to achieve."""

    models: Annotated[list[Model], Field(min_length=1, max_length=8)] = Field(
        description="The family of models, smallest first: each is a stage of the cascade."
    )
    gpus: Gpus = Field(description="The GPU budget.")
    objective: Objective = Field(description="Quality floor, latency targets and what to minimise.")
    routing: Routing = Field(default_factory=Routing, description="Scoring, escalation and streaming.")
    workload: Workload = Field(description="The traffic to plan for until real traffic has been seen.")
    calibration: Calibration | None = Field(
        None, description="Calibration set; a published prior is assumed where absent, without a quality bound."
    )
    replanning: Replanning = Field(default_factory=Replanning, description="When to plan again.")
    plan_ref: LocalObjectReference | None = Field(
        None, description="Pins the CascadePlan of this name: it is applied and no other."
    )
    rollout: Rollout = Field(default_factory=Rollout, description="How plans replace each other.")
    pod_template: PodTemplate | None = Field(None, description="Labels, accounts and priorities of the pods.")
    paused: bool = Field(False, description="Stop reconciling; what runs keeps running.")
    suspend: bool = Field(False, description="Release all GPUs; the plan and its history stay.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.models.all(m, self.models.exists_one(n, n.name == m.name))",
            "model names must be unique: rename one",
            lambda s: len({m.name for m in s.models}) == len(s.models),
            ".models",
        ),
        Rule(
            "self.models.all(m, !has(m.pools) || m.pools.all(p, self.gpus.pools.exists(q, q.name == p)))",
            "models[].pools must name pools of gpus.pools",
            lambda s: all(p in {q.name for q in s.gpus.pools} for m in s.models for p in m.pools or ()),
            ".models",
        ),
        Rule(
            "self.objective.minimize != 'Cost' || self.gpus.pools.all(p, has(p.pricePerGpuHour))",
            "minimize: Cost needs pricePerGpuHour on every pool",
            lambda s: s.objective.minimize != "Cost" or all(p.price_per_gpu_hour for p in s.gpus.pools),
            ".gpus",
        ),
    )


class ObjectMeta(ApiModel):
    """The part of a manifest's metadata that Cascadia reads; the rest is kept as it is."""

    model_config = ApiModel.model_config | {"extra": "allow"}

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", min_length=1)]
    namespace: str | None = None
    uid: str | None = None
    generation: int | None = None


class CascadeDeployment(ApiModel):
    """An ordered family of language models served as one endpoint within a GPU budget and a quality floor."""

    api_version: Literal["cascadia.dev/v1alpha1"]
    kind: Literal["CascadeDeployment"]
    metadata: ObjectMeta
    spec: CascadeDeploymentSpec = Field(description="What the cascade is made of and what it has to achieve.")
    status: dict[str, Any] | None = None

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"size(self.metadata.name) <= {CASCADE_NAME_MAX}",
            f"metadata.name must have at most {CASCADE_NAME_MAX} characters: longer StatefulSet names create no pods",
            lambda c: len(c.metadata.name) <= CASCADE_NAME_MAX,
            "",
        ),
    )
