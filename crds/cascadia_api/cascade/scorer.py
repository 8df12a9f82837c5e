"""The scorer of a `CascadeDeployment`, as a user writes it.

A scorer is one of five that score by themselves, or a `Composite` of those. Its id is made from what its
scores depend on: a calibration set of one id is no use to another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from cascadia_api.cascade.references import SecretKeyReference
from cascadia_api.schema import ApiModel, DecimalString, Rule, Text, as_decimal

__all__ = [
    "CalibrationPoint",
    "HttpScorer",
    "Judge",
    "Scorer",
    "ScorerPart",
    "SelfVerify",
    "Validator",
    "scorer_secrets",
    "secret_file",
]

ScorerId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", min_length=1, max_length=52)]
Url = Annotated[str, StringConstraints(pattern=r"^https?://[A-Za-z0-9.:_\[\]-]+(/[!-~]*)?$", max_length=512)]
Prompt = Annotated[str, StringConstraints(min_length=1, max_length=8192)]


class SelfVerify(ApiModel):
    """The model that answered is asked whether its answer is right: the score is its probability of yes."""

    prompt: Prompt | None = Field(
        None, description="Asked after the answer, in the same conversation, for a Yes or No; a default where absent."
    )


class Judge(ApiModel):
    """Another model, behind an OpenAI-compatible endpoint, reads the request and the answer."""

    url: Url = Field(description="Base URL, as in `https://judge.example.com/v1`.")
    model: Text = Field(description="The `model` to ask for.")
    reply: Literal["Number", "YesNo"] | None = Field(
        None,
        description="Number: the first number of its reply, out of maximum. YesNo: its probability of yes, from the "
        "log-probabilities of its first token. Number where absent.",
    )
    maximum: int | None = Field(None, ge=1, le=1000, description="The best Number; 10 where absent.")
    prompt: Prompt | None = Field(
        None, description="What it is asked: {question} and {answer} are filled in; a default where absent."
    )
    max_completion_tokens: int | None = Field(
        None,
        ge=1,
        le=65_536,
        description="For a model that thinks before it answers, or refuses max_tokens: sent as max_completion_tokens "
        "in place of max_tokens (16; 1 for YesNo) and of temperature 0. Leave room to think.",
    )
    api_key_secret_ref: SecretKeyReference | None = Field(None, description="Secret key that holds its API key.")
    ca_secret_ref: SecretKeyReference | None = Field(
        None, description="Secret key that holds the certificates (PEM) to trust; the public ones where absent."
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.prompt) || self.prompt.contains('{answer}')",
            "prompt must contain {answer}, where the answer is filled in",
            lambda j: j.prompt is None or "{answer}" in j.prompt,
            ".prompt",
        ),
        Rule(
            "!has(self.maximum) || !has(self.reply) || self.reply == 'Number'",
            "maximum is for reply: Number: remove it",
            lambda j: j.maximum is None or j.reply in {None, "Number"},
            ".maximum",
        ),
    )


class HttpScorer(ApiModel):
    """Your own service: it is sent the request and the answer by POST, and returns the score (docs/scorers.md)."""

    url: Url = Field(description="Where to POST to.")
    api_key_secret_ref: SecretKeyReference | None = Field(None, description="Secret key that holds a bearer token.")
    ca_secret_ref: SecretKeyReference | None = Field(
        None, description="Secret key that holds the certificates (PEM) to trust; the public ones where absent."
    )


def _usable_schema(text: str) -> str:
    """Refuse a schema that routers would refuse: a policy that none takes would hold up every plan."""
    try:
        _compile(json.loads(text))
    except ValueError as error:
        reason = str(error).partition("\n")[0]
        raise PydanticCustomError("json_schema", "is no usable JSON Schema: {reason}", {"reason": reason}) from None
    return text


def _usable_pattern(text: str) -> str:
    try:
        _compile({"type": "string", "pattern": text})
    except ValueError:
        message = "is no usable regular expression: mind brackets, and that there is no look-around or back-reference"
        raise PydanticCustomError("pattern", message) from None
    return text


def _compile(schema: Any) -> None:
    import jsonschema_rs

    def fetch_nothing(uri: str) -> Any:
        raise ValueError(f"{uri}: references to other documents are not followed")

    jsonschema_rs.validator_for(schema, retriever=fetch_nothing, pattern_options=jsonschema_rs.RegexOptions())


class Validator(ApiModel):
    """Checks of the answer's form: the score is 1 if all hold, else 0. At least one must be set."""

    json_schema: (
        Annotated[str, StringConstraints(min_length=2, max_length=16384), AfterValidator(_usable_schema)] | None
    ) = Field(None, description="JSON Schema, as JSON, that the answer's text must fit; it must then be JSON.")
    request_schema: bool | None = Field(
        None,
        description="Whether the text must fit the schema of the request's own `response_format`; requests without one "
        "pass.",
    )
    pattern: (
        Annotated[str, StringConstraints(min_length=1, max_length=1024), AfterValidator(_usable_pattern)] | None
    ) = Field(None, description="Regular expression that must match somewhere in the text; no look-around.")
    tool_calls: bool | None = Field(
        None,
        description="Whether tool calls must name a tool of the request, with arguments that are JSON and fit the "
        "tool's schema; answers without tool calls pass unless the request demands one.",
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.jsonSchema) || has(self.pattern) || (has(self.requestSchema) && self.requestSchema) || "
            "(has(self.toolCalls) && self.toolCalls)",
            "set at least one of jsonSchema, requestSchema, pattern and toolCalls: nothing would be checked",
            lambda v: bool(v.json_schema or v.request_schema or v.pattern or v.tool_calls),
        ),
    )


class CalibrationPoint(ApiModel):
    """One point of the curve from a part's raw scores to calibrated values."""

    score: DecimalString = Field(description="Raw score.")
    worth: DecimalString = Field(description='Expected worth of answers with that score, "0" to "1".')


_LATENCY_MS = {"LogProb": 0, "Validator": 0, "SelfVerify": 100, "Judge": 1000, "Http": 100}

_OPTIONS = (("Validator", "validator"), ("SelfVerify", "selfVerify"), ("Judge", "judge"), ("Http", "http"))


def _options_fit(scorer: ScorerPart) -> bool:
    given = {
        "Validator": scorer.validator,
        "SelfVerify": scorer.self_verify,
        "Judge": scorer.judge,
        "Http": scorer.http,
    }
    return all(
        options is None if name != scorer.type else options is not None or name == "SelfVerify"
        for name, options in given.items()
    )


_PART_RULES: tuple[Rule, ...] = (
    Rule(
        "!has(self.quantile) || (has(self.statistic) && self.statistic == 'Quantile' && double(self.quantile) <= 1.0)",
        "quantile is for statistic: Quantile, and at most 1: remove it, or set the statistic",
        lambda s: s.quantile is None or (s.statistic == "Quantile" and as_decimal(s.quantile) <= 1),
        ".quantile",
    ),
    Rule(
        "!(self.type in ['LogProb', 'Validator', 'Composite']) || (!has(self.deadlineMs) && !has(self.maxConcurrency))",
        "deadlineMs and maxConcurrency are for scorers that ask somebody (SelfVerify, Judge, Http): remove them, or "
        "set them on the parts of a Composite",
        lambda s: (
            s.type not in {"LogProb", "Validator", "Composite"} or (s.deadline_ms is None and s.max_concurrency is None)
        ),
    ),
    Rule(
        "self.type == 'LogProb' || !has(self.statistic) || self.statistic == 'Mean'",
        "statistic is for type: LogProb: remove it",
        lambda s: s.type == "LogProb" or s.statistic in {None, "Mean"},
        ".statistic",
    ),
    Rule(
        " && ".join(
            f"(self.type == '{name}' ? {'true' if name == 'SelfVerify' else f'has(self.{field})'} : !has(self.{field}))"
            for name, field in _OPTIONS
        ),
        "give the options of the scorer's own type (validator, judge or http; selfVerify may be left out), and of no "
        "other",
        _options_fit,
    ),
)


class ScorerPart(ApiModel):
    """What scores an answer by itself, within a Composite."""

    type: Literal["LogProb", "SelfVerify", "Judge", "Http", "Validator"] = Field(
        description="LogProb: the engine's own token log-probabilities. SelfVerify: the model is asked about its own "
        "answer. Judge: another model is asked. Http: your service is asked. Validator: the answer's form."
    )
    given_id: ScorerId | None = Field(
        None,
        alias="id",
        description="Key of its scores in calibration sets; made from the type and its options where absent. Give one "
        "only to keep a set whose scores still hold although an option has changed.",
    )
    statistic: Literal["Mean", "Minimum", "Quantile", "Margin"] | None = Field(
        None,
        description="LogProb. Mean: exp of the mean token log-probability. Minimum: the least token probability. "
        "Quantile: the given quantile of the token probabilities. Margin: mean difference in probability of the two "
        "likeliest candidates for each token. Mean where absent.",
    )
    quantile: DecimalString | None = Field(None, description='For Quantile, "0" to "1"; "0.1" where absent.')
    self_verify: SelfVerify | None = Field(None, description="Options of SelfVerify.")
    judge: Judge | None = Field(None, description="Options of Judge.")
    http: HttpScorer | None = Field(None, description="Options of Http.")
    validator: Validator | None = Field(None, description="Options of Validator.")
    deadline_ms: int | None = Field(
        None,
        ge=1,
        le=600_000,
        description="Longest time to wait for a score, ms; where absent 5000 for SelfVerify, 10000 for Judge, 2000 for "
        "Http.",
    )
    max_concurrency: int | None = Field(
        None, ge=1, le=4096, description="Most answers that one router has scored at once; 64 where absent."
    )
    latency_ms: int | None = Field(
        None,
        ge=0,
        le=600_000,
        description="Time that scoring adds to an answer, for planning, ms; where absent 0 for LogProb and Validator, "
        "100 for SelfVerify and Http, 1000 for Judge.",
    )
    weight: DecimalString | None = Field(None, description='Weight in a WeightedMean; "1" where absent.')
    calibration: Annotated[list[CalibrationPoint], Field(min_length=1, max_length=16)] | None = Field(
        None,
        description="Curve from its raw scores to calibrated values, linear between the points; `cascadia calibrate "
        "fit` prints it. The raw score where absent.",
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        *_PART_RULES,
        Rule(
            "!has(self.calibration) || self.calibration.all(p, double(p.score) <= 1.0 && double(p.worth) <= 1.0 && "
            "self.calibration.all(q, double(p.score) >= double(q.score) || double(p.worth) <= double(q.worth)))",
            "calibration: scores and worths are at most 1, and a higher score must not have a lower worth",
            lambda s: _is_monotone(s.calibration or ()),
            ".calibration",
        ),
    )

    @property
    def id(self) -> str:
        """Key of its scores in calibration sets."""
        if self.given_id is not None:
            return self.given_id
        if self.type == "LogProb":
            if self.statistic == "Quantile":
                return f"logprob-q{float(100 * as_decimal(self.quantile or '0.1')):g}"
            return {"Minimum": "logprob-min", "Margin": "logprob-margin"}.get(self.statistic or "Mean", "logprob-mean")
        return f"{_KEBAB[self.type]}-{_digest(self._content())}"

    def _content(self) -> Any:
        """What its scores depend on: not where a judge runs, nor how long it may take."""
        chosen = {"Validator": self.validator, "SelfVerify": self.self_verify, "Judge": self.judge, "Http": self.http}
        options = chosen.get(self.type)
        dropped = {"api_key_secret_ref", "ca_secret_ref"} | ({"url"} if self.type == "Judge" else set())
        return options.model_dump(mode="json", exclude_none=True, exclude=dropped) if options else {}

    @property
    def planned_latency_ms(self) -> int:
        """Time that scoring adds to an answer, for planning, ms."""
        return self.latency_ms if self.latency_ms is not None else _LATENCY_MS[self.type]


class Scorer(ScorerPart):
    """What scores an answer."""

    # A part is never a Composite, so its field is the narrower one: sound, for models are frozen.
    type: Literal["LogProb", "SelfVerify", "Judge", "Http", "Validator", "Composite"] = Field(  # type: ignore[assignment]
        "LogProb",
        description="LogProb: the engine's own token log-probabilities. SelfVerify: the model is asked about its own "
        "answer. Judge: another model is asked. Http: your service is asked. Validator: the answer's form. Composite: "
        "several of these.",
    )
    statistic: Literal["Mean", "Minimum", "Quantile", "Margin"] = Field(
        "Mean",
        description="LogProb. Mean: exp of the mean token log-probability. Minimum: the least token probability. "
        "Quantile: the given quantile of the token probabilities. Margin: mean difference in probability of the two "
        "likeliest candidates for each token.",
    )
    combine: Literal["All", "Minimum", "WeightedMean"] | None = Field(
        None,
        description="Composite, of the parts' calibrated values. All: their product, as if each were the chance that "
        "the answer is good and they were independent. Minimum: the least. WeightedMean: by the parts' weights. With "
        "All and Minimum a part of 0 decides alone, and no part that has to ask somebody is asked then.",
    )
    parts: Annotated[list[ScorerPart], Field(min_length=2, max_length=4)] | None = Field(
        None, description="Scorers of a Composite."
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        *_PART_RULES,
        Rule(
            "(self.type == 'Composite') == has(self.parts) && (self.type == 'Composite') == has(self.combine)",
            "type: Composite needs combine and parts, and no other type takes them",
            lambda s: (s.type == "Composite") == (s.parts is not None) == (s.combine is not None),
        ),
        Rule(
            "!has(self.weight) && !has(self.calibration)",
            "weight and calibration are for the parts of a Composite: thresholds are on raw scores",
            lambda s: s.weight is None and s.calibration is None,
        ),
        Rule(
            "!has(self.parts) || self.parts.all(p, !has(p.weight) || self.combine == 'WeightedMean')",
            "parts[].weight is for combine: WeightedMean: remove it",
            lambda s: s.combine == "WeightedMean" or all(part.weight is None for part in s.parts or ()),
            ".parts",
        ),
    )

    def _content(self) -> Any:
        if self.parts is None:
            return super()._content()
        fields = {"weight", "calibration"}
        parts = [
            {"id": part.id, **part.model_dump(mode="json", exclude_none=True, include=fields)} for part in self.parts
        ]
        return {"combine": self.combine, "parts": parts}

    @property
    def planned_latency_ms(self) -> int:
        """Time that scoring adds to an answer, for planning, ms: parts are asked at the same time."""
        if self.latency_ms is None and self.parts:
            return max(part.planned_latency_ms for part in self.parts)
        return self.latency_ms if self.latency_ms is not None else _LATENCY_MS[self.type]


_KEBAB = {
    "SelfVerify": "self-verify",
    "Judge": "judge",
    "Http": "http",
    "Validator": "validator",
    "Composite": "composite",
}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def _is_monotone(points: Sequence[CalibrationPoint]) -> bool:
    curve = [(as_decimal(point.score), as_decimal(point.worth)) for point in points]
    bounded = all(score <= 1 and worth <= 1 for score, worth in curve)
    return bounded and all(s >= t or w <= v for s, w in curve for t, v in curve)


def secret_file(reference: SecretKeyReference) -> str:
    """Name of the file that holds a secret for those whom routers call, in the folder that routers are told."""
    return f"{reference.name}.{reference.key}"


def scorer_secrets(scorer: ScorerPart) -> list[SecretKeyReference]:
    """Every secret that the scorer needs, each once, in order of appearance."""
    found: dict[str, SecretKeyReference] = {}
    parts: Sequence[ScorerPart] = scorer.parts or () if isinstance(scorer, Scorer) else ()
    for each in (scorer, *parts):
        for options in (each.judge, each.http):
            for reference in (options.api_key_secret_ref, options.ca_secret_ref) if options is not None else ():
                if reference is not None:
                    found[secret_file(reference)] = reference
    return list(found.values())
