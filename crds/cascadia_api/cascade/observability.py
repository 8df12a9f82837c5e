"""What routers tell of each request: the part of the manifest that is about observing them."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints

from cascadia_api.schema import ApiModel, DecimalString, Rule, as_decimal

__all__ = ["AccessLog", "Tracing"]


class AccessLog(ApiModel):
    """One JSON line on the routers' standard output for each request. Never prompts, answers or keys."""

    percent: DecimalString = Field(
        "100", description='Share of answered requests that are logged, %, "0" to "100". Errors always are.'
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "double(self.percent) <= 100.0",
            "percent must be between 0 and 100",
            lambda log: as_decimal(log.percent) <= 100,
            ".percent",
        ),
    )


class Tracing(ApiModel):
    """OpenTelemetry traces of requests, sent as OTLP over HTTP (JSON)."""

    endpoint: Annotated[str, StringConstraints(pattern=r"^https?://[^/?#@]+(/[!-~]*)?$", max_length=512)] = Field(
        description="Base URL of the collector, as in `http://otel-collector.observability:4318`."
    )
    percent: DecimalString = Field(
        "100",
        description='Share of requests that are traced, %, "0" to "100". Where the client sends a W3C trace context, '
        "its sampled flag decides.",
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "double(self.percent) <= 100.0",
            "percent must be between 0 and 100",
            lambda tracing: as_decimal(tracing.percent) <= 100,
            ".percent",
        ),
    )
