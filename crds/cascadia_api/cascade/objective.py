"""What a plan has to achieve: the quality floor, the latency targets, and what is made least."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from cascadia_api.schema import ApiModel, DecimalString, Rule, as_decimal

__all__ = ["LatencyTarget", "Objective"]


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
