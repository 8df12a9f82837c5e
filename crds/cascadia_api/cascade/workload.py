"""What a plan is made for and from: the traffic to expect, the calibration set, and where step times come from."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from cascadia_api.cascade.references import LocalObjectReference
from cascadia_api.schema import ApiModel, DecimalString, Rule, as_decimal

__all__ = ["Calibration", "CapabilityNeeds", "Corrections", "Planning", "TokenLengths", "Workload"]


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
        "again, the same share of every prompt. They still take room in the cache. None where absent; "
        "models[].prefixCacheHitPercent goes before it.",
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


class Corrections(ApiModel):
    """What running engines have taught: the file that `cascadia calibrate engine --live` writes."""

    config_map_ref: LocalObjectReference = Field(
        description="ConfigMap with one key ending in `.json` that holds the file."
    )


class Planning(ApiModel):
    """Where the step times of engines come from that plans are made with (docs/cost-model.md)."""

    cost_source: Literal["Roofline", "Measured"] | None = Field(
        None,
        description="Roofline, the default: built in. Measured: aiconfigurator-core's tables; whoever plans needs "
        "the optional extra `measured`.",
    )
    engine_version: Annotated[str, StringConstraints(pattern=r"^[0-9][0-9A-Za-z.+-]*$", max_length=64)] | None = Field(
        None,
        description="Version of SGLang that runs, as in `0.5.23`: plans say where tables are of another one, and "
        "corrections of this one are used.",
    )
    corrections: Corrections | None = Field(
        None, description="Corrections of the step times that running engines have taught; none where absent."
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.engineVersion) || has(self.corrections) || "
            "(has(self.costSource) && self.costSource == 'Measured')",
            "engineVersion says whose tables or corrections to use: set costSource: Measured or corrections, or "
            "remove engineVersion",
            lambda p: p.engine_version is None or p.corrections is not None or p.cost_source == "Measured",
            ".engineVersion",
        ),
    )
