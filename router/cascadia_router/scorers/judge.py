"""Another model as a judge, behind any OpenAI-compatible endpoint."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import UNSET

from cascadia_api.policy import JudgePolicy
from cascadia_router.said import Said, said_by
from cascadia_router.scorers.asking import Asking
from cascadia_router.scorers.endpoint import Endpoint
from cascadia_router.scorers.protocol import Case
from cascadia_router.scorers.question import Asked, fill_in
from cascadia_router.scorers.surroundings import Surroundings
from cascadia_router.scorers.yes_no import probability_of_yes, yes_no_fields

__all__ = ["Judge"]

_NUMBER = re.compile(r"(?<![\w.])\d{1,6}(?:\.\d{1,6})?")
_NUMBER_TOKENS = 16
"""A number, and a few words before it."""


class Judge(Asking):
    """See `JudgePolicy`."""

    def __init__(self, identifier: str, policy: JudgePolicy, endpoint: Endpoint, surroundings: Surroundings) -> None:
        super().__init__(identifier, endpoint, b"/chat/completions", surroundings)
        self._policy = policy

    def question(self, case: Case, asked: Asked, said: Said) -> bytes | None:  # noqa: ARG002
        """See `Asking`."""
        text = asked.text
        if text is None:
            return None
        policy = self._policy
        body: dict[str, Any] = {
            "model": policy.model,
            "messages": [{"role": "user", "content": fill_in(policy.prompt, text, said.as_text)}],
            "max_tokens": _NUMBER_TOKENS,
            "temperature": 0,
            "stream": False,
        }
        if policy.reply == "YesNo":
            body |= yes_no_fields()
        if policy.max_completion_tokens is not UNSET:
            del body["max_tokens"], body["temperature"]
            body["max_completion_tokens"] = policy.max_completion_tokens
        return msgspec.json.encode(body)

    def read(self, document: bytes) -> float | None:
        """See `Asking`."""
        if self._policy.reply == "YesNo":
            return probability_of_yes(document)
        choices = said_by(document)
        number = _NUMBER.search(choices[0].text) if choices else None
        return float(number[0]) / self._policy.maximum if number is not None else None
