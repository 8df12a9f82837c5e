"""Checks of an answer's form as a score: 1 if all hold, 0 if one does not.

Schemas and patterns run in jsonschema-rs, whose regular expressions take linear time: what clients send
must not be able to stop the router. It is imported only where a policy has a Validator (15 MB). A schema
that refers to documents elsewhere is refused: nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NoReturn

import msgspec
from msgspec import UNSET

from cascadia_api.policy import ValidatorPolicy
from cascadia_router.completion_body import CompletionRequest
from cascadia_router.said import UNREADABLE, Said
from cascadia_router.scorers.protocol import Case, Outcome, Scorable, Unscored
from cascadia_router.scorers.question import Asked, asked_by

__all__ = ["Validator", "check_schema"]

MAX_SCHEMA_BYTES = 64 * 1024
"""Longest schema of a request that is compiled."""

_Check = Callable[[Any], bool]


def _fetch_nothing(uri: str) -> NoReturn:
    raise ValueError(f"{uri}: references to other documents are not followed")


class _UncheckableError(Exception):
    """There is something that cannot be checked."""


def _compiled(schema: Any) -> _Check:
    import jsonschema_rs

    is_valid = jsonschema_rs.validator_for(
        schema, retriever=_fetch_nothing, pattern_options=jsonschema_rs.RegexOptions()
    ).is_valid

    def check(value: Any) -> bool:
        try:
            return is_valid(value)
        except ValueError:  # too deep, or not a text that UTF-8 has
            raise _UncheckableError from None

    return check


def check_schema(schema: str | bytes) -> _Check:
    """Compile a schema.

    Raises:
        ValueError: It is no JSON Schema; the message says why.
    """
    try:
        return _compiled(msgspec.json.decode(schema))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not JSON: {error}") from None


@lru_cache(maxsize=64)
def _of_request(schema: bytes) -> _Check | None:
    """Compile a client's schema; None if it is of no use."""
    if len(schema) > MAX_SCHEMA_BYTES:
        return None
    try:
        return check_schema(schema)
    except ValueError:
        return None


def _fits(schema: bytes | None, text: str) -> bool:
    """Whether a text is JSON, and fits a client's schema."""
    check = _of_request(schema) if schema is not None else None
    if schema is not None and check is None:
        raise _UncheckableError
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return check is None or check(value)


class Validator:
    """See the module.

    Raises:
        ValueError: The policy's schema or pattern is wrong.
    """

    def __init__(self, identifier: str, policy: ValidatorPolicy) -> None:
        self.id = identifier
        self.logprobs = 0
        self._schema = None if policy.json_schema is UNSET else check_schema(policy.json_schema)
        self._pattern = None if policy.pattern is UNSET else _compiled({"type": "string", "pattern": policy.pattern})
        self._request_schema = policy.request_schema
        self._tool_calls = policy.tool_calls

    def at_once(self, request: CompletionRequest, answer: Scorable) -> Outcome | None:
        """See `Scorer`."""
        asked = asked_by(request) if self._request_schema or self._tool_calls else Asked()
        if asked is None:
            return Unscored(self.id, "unsupported")
        try:
            return float(all(self._holds(asked, said) for said in answer.said()))
        except (_UncheckableError, *UNREADABLE):
            return Unscored(self.id, "unsupported")

    def _holds(self, asked: Asked, said: Said) -> bool:
        if self._tool_calls and not self._calls_well(asked, said):
            return False
        if said.tool_calls and not said.text:
            return True  # what follows is of the text
        if self._pattern is not None and not self._pattern(said.text):
            return False
        if self._request_schema and asked.schema is not None and not _fits(asked.schema, said.text):
            return False
        return self._schema is None or self._fits_own(said.text)

    def _fits_own(self, text: str) -> bool:
        assert self._schema is not None
        try:
            return self._schema(msgspec.json.decode(text))
        except (msgspec.DecodeError, RecursionError):
            return False

    @staticmethod
    def _calls_well(asked: Asked, said: Said) -> bool:
        if not said.tool_calls:
            return not asked.must_call
        known = asked.parameters
        return all(call.name in known and _fits(known[call.name], call.arguments or "{}") for call in said.tool_calls)

    def ask(self, case: Case, answer: Scorable) -> NoReturn:  # noqa: ARG002
        """See `Scorer`: never called."""
        raise AssertionError("an answer's form needs no asking")
