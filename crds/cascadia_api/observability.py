"""What routers tell of each request: the part of the manifest that is about observing them.

`access_log_policy` says the same to routers.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from cascadia_api import policy
from cascadia_api.schema import ApiModel, DecimalString, Rule, as_decimal

__all__ = ["AccessLog", "access_log_policy"]


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


def access_log_policy(log: AccessLog | None) -> policy.AccessLogPolicy | None:
    """What routers are told of the access log."""
    return None if log is None else policy.AccessLogPolicy(share=float(log.percent) / 100)
