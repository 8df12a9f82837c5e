"""Base of the API models: strict pydantic models whose rules are CEL rules too.

A rule is written once, as a CEL expression for the API server and as a Python predicate for
`cascadia validate`, under one message: both refuse the same manifests in the same words. A test runs
every broken example through both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

__all__ = [
    "DECIMAL_PATTERN",
    "ApiModel",
    "DecimalString",
    "DnsLabel",
    "Figure",
    "LabelMap",
    "LabelValue",
    "Milliseconds",
    "Money",
    "Rule",
    "Text",
    "as_decimal",
]


@dataclass(frozen=True, slots=True)
class Rule:
    """One validation rule of a model.

    Attributes:
        cel: Expression over ``self``; true means valid.
        message: What is wrong and how to mend it.
        holds: The same check in Python, given the model.
        field: Field below the model that the error points at, as in ``.models``; empty for the model.
    """

    cel: str
    message: str
    holds: Callable[[Any], bool]
    field: str = ""


class ApiModel(BaseModel):
    """A model of the API: camelCase on the wire, unknown fields refused, immutable."""

    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, extra="forbid", frozen=True
    )

    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _rules_hold(self) -> Any:
        for rule in type(self).rules:
            if not rule.holds(self):
                raise PydanticCustomError("rule", "{text}", {"text": rule.message, "field": rule.field})
        return self


def _decimal_text(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    if not math.isfinite(value):
        raise PydanticCustomError("decimal_string", "must be a number, as in '12.5'")
    raise PydanticCustomError(
        "decimal_string", 'must be a decimal string: write it in quotes, "{value}"', {"value": str(value)}
    )


DECIMAL_PATTERN = r"^[0-9]{1,9}(\.[0-9]{1,6})?$"

DecimalString = Annotated[
    str, BeforeValidator(_decimal_text), StringConstraints(pattern=DECIMAL_PATTERN, max_length=16)
]
"""A non-negative decimal number in quotes: Kubernetes APIs hold no floats."""

DnsLabel = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", min_length=1, max_length=63)]
"""A DNS-1123 label."""

Text = Annotated[str, StringConstraints(min_length=1, max_length=253)]
"""A name or another short text, as long as a DNS name may be."""

LabelValue = Annotated[str, StringConstraints(max_length=63)]
LabelMap = Annotated[dict[str, LabelValue], Field(max_length=32)]
"""Labels of a Kubernetes object."""


def as_decimal(text: str) -> Decimal:
    """Value of a decimal string: ``0.85`` equals ``0.850``."""
    try:
        return Decimal(text)
    except InvalidOperation as error:
        raise ValueError(f"{text!r} is not a decimal number") from error


def _figure(value: object) -> object:
    return float(value) if isinstance(value, str) else value


def _figure_out(value: float, info: Any) -> float | str:
    if not (info.context and info.context.get("kubernetes")):
        return value
    return repr(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))


Figure = Annotated[
    float,
    BeforeValidator(_figure),
    PlainSerializer(_figure_out, when_used="always"),
]
"""A number of a plan: a JSON number in files and on the command line, a decimal string in Kubernetes objects
(serialise with ``context={"kubernetes": True}``) with all its digits: a threshold is some answer's very score."""

Milliseconds = Annotated[Figure, AfterValidator(lambda value: round(value, 1))]
"""A predicted time, ms, to a tenth: more digits than a prediction has."""

Money = Annotated[Figure, AfterValidator(lambda value: round(value, 6))]
"""A price, to a millionth: sums of decimal prices are decimals."""
