"""The stages of a cascade as endpoints, and their answers, scored by the router's own code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from msgspec import Struct, field

from cascadia_api.errors import InputError, Problem
from cascadia_cli.calibrating.endpoint import AskError, Endpoint, UnusableAnswerError, base_url
from cascadia_cli.calibrating.prompts import Prompt
from cascadia_cli.calibrating.scoring import Scoring
from cascadia_router.completion_body import Usage

__all__ = ["Stage", "StageAddress", "StageAnswer", "check_stages", "stage_addresses"]


@dataclass(frozen=True, slots=True)
class StageAddress:
    """Where one stage is asked.

    Attributes:
        name: The stage.
        url: Base URL.
        model: The `model` to ask for; None to ask the endpoint for its only one.
        pinned: Whether the endpoint is a cascade's, where the stage's name as `model` asks that stage alone.
    """

    name: str
    url: str
    model: str | None
    pinned: bool


def stage_addresses(names: Sequence[str], endpoint: str | None, flags: Sequence[str]) -> list[StageAddress]:
    """Where each stage of a cascade is asked.

    Args:
        names: The stages, smallest first.
        endpoint: URL of the running cascade, for stages without a flag.
        flags: ``NAME=URL`` or ``NAME=URL#MODEL``: a stage's own endpoint.

    Raises:
        InputError: A flag is wrong, or a stage has neither.
    """
    given: dict[str, StageAddress] = {}
    for flag in flags:
        name, separator, url = flag.partition("=")
        if not separator or not url:
            raise InputError(Problem("--stage", f"{flag!r} is not NAME=URL, as in small=http://127.0.0.1:30000/v1"))
        if name not in names:
            raise InputError(Problem("--stage", f"{name!r} is not a model of the manifest: it has {', '.join(names)}"))
        if name in given:
            raise InputError(Problem("--stage", f"the stage {name!r} is given twice: remove one"))
        url, _, model = url.partition("#")
        given[name] = StageAddress(name, base_url("--stage", url), model or None, pinned=False)
    if endpoint is not None:
        url = base_url("--endpoint", endpoint)
        return [given.get(name, StageAddress(name, url, name, pinned=True)) for name in names]
    if missing := [name for name in names if name not in given]:
        raise InputError(
            Problem(
                "--endpoint",
                f"where does {' and '.join(missing)} run? Give the running cascade's URL with --endpoint, "
                f"or an engine's with --stage {missing[0]}=URL",
            )
        )
    return [given[name] for name in names]


@dataclass(frozen=True, slots=True)
class StageAnswer:
    """A stage's answer to one prompt.

    Attributes:
        text: What it said; empty if it only called tools.
        scores: By scorer id; `…@64` is that of the first 64 tokens.
        input_tokens: Tokens of the prompt, as the engine counted them.
        output_tokens: Tokens of the answer.
        cut: Whether it ended at a length limit.
    """

    text: str
    scores: dict[str, float]
    input_tokens: int
    output_tokens: int
    cut: bool


class _Message(Struct):
    content: str | None = None


class _Choice(Struct):
    message: _Message = field(default_factory=_Message)
    finish_reason: str | None = None


class _Decision(Struct):
    stage: str = ""


class _Reply(Struct):
    choices: list[_Choice] = field(default_factory=list)
    usage: Usage | None = None
    cascadia: _Decision | None = None


_decoder = msgspec.json.Decoder(_Reply)


class Stage:
    """A stage that can be asked.

    Args:
        name: Its name.
        endpoint: Where.
        model: The `model` to ask for.
        scoring: Scores its answers.
    """

    def __init__(self, name: str, endpoint: Endpoint, model: str, scoring: Scoring) -> None:
        self.name = name
        self._endpoint = endpoint
        self._model = model
        self._scoring = scoring

    async def ask(self, prompt: Prompt) -> StageAnswer:
        """Ask this stage alone.

        Raises:
            AskError: It gave no answer that can be used.
        """
        body: dict[str, Any] = {**prompt.body, "model": self._model, "logprobs": True}
        if self._scoring.candidates:
            body["top_logprobs"] = max(self._scoring.candidates, int(body.get("top_logprobs") or 0))
        try:
            document, answer = await self._endpoint.ask(body, self._read)
            request = msgspec.json.encode(body)
            scores = await self._scoring.of_scorer(request, document, prompt.id, self._model)
        except AskError as error:
            raise error.of(f"stage {self.name}") from None
        return replace(answer, scores=answer.scores | scores)

    def _read(self, document: bytes) -> tuple[bytes, StageAnswer]:
        try:
            reply = _decoder.decode(document)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UnusableAnswerError(f"not a chat completion: {error}") from None
        if not reply.choices:
            raise UnusableAnswerError("an answer without choices")
        if reply.cascadia is not None and reply.cascadia.stage != self.name:
            raise AskError(
                f"{self._endpoint.url}: asked for stage {self.name!r}, {reply.cascadia.stage!r} answered: a stage that "
                f"is named as the cascade cannot be asked alone; give its engine with --stage {self.name}=URL",
                hopeless=True,
            )
        scored = self._scoring.of_tokens(document)
        usage = reply.usage
        if usage is None or usage.prompt_tokens < 1 or usage.completion_tokens < 1:
            raise UnusableAnswerError("an answer without `usage`, its count of tokens")
        first = reply.choices[0]
        return document, StageAnswer(
            first.message.content or "",
            scored,
            usage.prompt_tokens,
            usage.completion_tokens,
            first.finish_reason == "length",
        )


async def check_stages(
    addresses: Sequence[StageAddress], endpoints: Mapping[str, Endpoint], scorings: Mapping[str, Scoring]
) -> list[Stage]:
    """Find out which model to ask each endpoint for, and that a running cascade has every stage.

    Args:
        addresses: The stages'.
        endpoints: By base URL.
        scorings: What scores the answers, by base URL.

    Raises:
        AskError: An endpoint does not answer.
        InputError: It does not have the model, or has several and none was named.
    """
    return [await _checked(address, endpoints[address.url], scorings[address.url]) for address in addresses]


async def _checked(address: StageAddress, endpoint: Endpoint, scoring: Scoring) -> Stage:
    if address.model is not None and not address.pinned:
        return Stage(address.name, endpoint, address.model, scoring)
    listed = await endpoint.models()
    has = ", ".join(listed) or "no model"
    if not address.pinned:
        if len(listed) != 1:
            message = f"{address.url} serves {has}: say which, as in {address.name}={address.url}#MODEL"
            raise InputError(Problem("--stage", message))
        return Stage(address.name, endpoint, listed[0], scoring)
    if address.name not in listed:
        message = (
            f"{address.url} serves {has}, not the stage {address.name!r}: its plan has dropped that stage or its "
            f"routers pin none; give the stage's engine with --stage {address.name}=URL"
        )
        raise InputError(Problem("--endpoint", message))
    return Stage(address.name, endpoint, address.name, scoring)
