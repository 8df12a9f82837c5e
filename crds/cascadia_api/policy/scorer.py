"""What routers are told of a scorer, and of the servers that it asks."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from cascadia_api.policy.text import NonEmpty, SecretFile

__all__ = ["EndpointPolicy", "HttpPolicy", "JudgePolicy", "ScorerPolicy", "SelfVerifyPolicy", "ValidatorPolicy"]


class EndpointPolicy(Struct, frozen=True, rename="camel", kw_only=True):
    """A server that a scorer asks.

    Attributes:
        url: Its URL; of an OpenAI-compatible endpoint the base, as in ``https://judge.example.com/v1``.
        api_key: File with its API key, in `RouterConfig.secrets`.
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
        max_completion_tokens: Sent by that name, in the place of `max_tokens` and `temperature`, which models
            that think before they answer refuse; unset: these are sent.
    """

    at: EndpointPolicy
    model: NonEmpty
    reply: Literal["Number", "YesNo"] = "Number"
    maximum: Annotated[float, Meta(gt=0)] = 10.0
    prompt: Annotated[str, Meta(min_length=1)]
    max_completion_tokens: Annotated[int, Meta(ge=1)] | UnsetType = UNSET


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
