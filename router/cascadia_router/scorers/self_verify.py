"""The model that answered, asked whether its answer is right.

The question follows the answer in the same conversation, so that the engine's prefix cache has all but the
question. The score is the probability of yes: one token, whatever the answer's length.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw

from cascadia_api.policy import SelfVerifyPolicy
from cascadia_router.said import Said
from cascadia_router.scorers.asking import Asking
from cascadia_router.scorers.endpoint import Endpoint
from cascadia_router.scorers.protocol import Case
from cascadia_router.scorers.question import Asked
from cascadia_router.scorers.surroundings import Surroundings
from cascadia_router.scorers.yes_no import probability_of_yes, yes_no_fields

__all__ = ["SelfVerify"]

_messages_decoder = msgspec.json.Decoder(dict[str, Raw])


class SelfVerify(Asking):
    """See the module."""

    def __init__(
        self, identifier: str, policy: SelfVerifyPolicy, endpoint: Endpoint, surroundings: Surroundings
    ) -> None:
        super().__init__(identifier, endpoint, b"/chat/completions", surroundings)
        self._prompt = policy.prompt

    def question(self, case: Case, asked: Asked, said: Said) -> bytes | None:
        """See `Asking`."""
        if asked.messages is not None:
            before = msgspec.json.decode(_messages_decoder.decode(case.request.body)["messages"], type=list[Raw])
        elif asked.text is not None:
            before = [Raw(msgspec.json.encode({"role": "user", "content": asked.text}))]
        else:
            return None
        answer = {"role": "assistant", "content": said.as_text}
        messages = [*before, answer, {"role": "user", "content": self._prompt}]
        return msgspec.json.encode({"model": case.served_model, "messages": messages} | yes_no_fields())

    def read(self, document: bytes) -> float | None:
        """See `Asking`."""
        return probability_of_yes(document)
