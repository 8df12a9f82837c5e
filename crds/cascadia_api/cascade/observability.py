"""What routers tell of each request: the part of the manifest that is about observing them."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints

from cascadia_api.cascade.references import SecretKeyReference
from cascadia_api.schema import ApiModel, DecimalString, Rule, as_decimal

__all__ = ["AccessLog", "Tracing", "tracing_secrets"]


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
    headers_secret_ref: SecretKeyReference | None = Field(
        None,
        description="Secret key that holds the headers that the collector wants: name=value pairs between commas or "
        "line ends, as in OTEL_EXPORTER_OTLP_HEADERS.",
    )
    ca_secret_ref: SecretKeyReference | None = Field(
        None, description="Secret key that holds the certificates (PEM) to trust; the public ones where absent."
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "double(self.percent) <= 100.0",
            "percent must be between 0 and 100",
            lambda tracing: as_decimal(tracing.percent) <= 100,
            ".percent",
        ),
    )


def tracing_secrets(tracing: Tracing | None) -> list[SecretKeyReference]:
    """Every secret that the collector's address needs, each once."""
    if tracing is None:
        return []
    found: list[SecretKeyReference] = []
    for reference in (tracing.headers_secret_ref, tracing.ca_secret_ref):
        if reference is not None and reference not in found:
            found.append(reference)
    return found
