"""One OpenAI-compatible endpoint: chat completions with a deadline each and bounded retries with back-off."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from cascadia_api.errors import CascadiaError, InputError, Problem

try:
    import openai
except ImportError as error:
    raise InputError("calibrate needs the OpenAI client: pip install 'cascadia[local]'") from error

__all__ = ["AskError", "Endpoint", "UnusableAnswerError", "base_url", "together"]

T = TypeVar("T")

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 20.0
_TRANSIENT = frozenset({408, 409, 425, 429})
"""Statuses below 500 after which the same request may succeed."""
_HOPELESS = frozenset({401, 403, 404, 405})
"""Statuses that the next request would get too."""


class AskError(CascadiaError):
    """An endpoint gave no answer that can be used.

    Attributes:
        refused: Whether the endpoint found this request wrong, as one that exceeds its context window.
        hopeless: Whether every other request would fail alike, so that there is no use in going on.
    """

    def __init__(self, message: str, *, refused: bool = False, hopeless: bool = False) -> None:
        self.refused = refused
        self.hopeless = hopeless
        super().__init__(message)

    def of(self, who: str) -> AskError:
        """The same error, saying who was asked."""
        return AskError(f"{who}: {self}", refused=self.refused, hopeless=self.hopeless)


class UnusableAnswerError(Exception):
    """An answer came, but lacks something; asking again may help."""


class Endpoint:
    """A client of one endpoint.

    Args:
        url: Base URL, as `base_url` returns it.
        api_key: Sent as bearer token; None where the endpoint wants none.
        timeout_s: Longest wait for one answer.
        attempts: Times that one request is sent at most.
    """

    def __init__(self, url: str, *, api_key: str | None, timeout_s: float, attempts: int) -> None:
        self.url = url
        self._timeout_s = timeout_s
        self._attempts = attempts
        # A proxy of the environment must not come between this machine and itself.
        loopback = urlsplit(url).hostname in {"localhost", "127.0.0.1", "::1"}
        self._client = openai.AsyncOpenAI(
            base_url=url,
            api_key=api_key or "not-needed",
            max_retries=0,
            timeout=timeout_s,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=not loopback),
        )

    async def close(self) -> None:
        """Close its connections."""
        await self._client.close()

    async def ask(self, body: dict[str, Any], read: Callable[[bytes], T]) -> T:
        """Ask for a chat completion until one can be read.

        Args:
            body: The request.
            read: Reads the answer; raises `UnusableAnswerError` if it cannot.

        Raises:
            AskError: Every attempt failed, or one so that no other would succeed.
        """
        completions = self._client.chat.completions.with_raw_response

        async def attempt() -> T:
            # As extra_body, which is sent as it is: the client knows a part of what engines take.
            answer = await completions.create(model=body["model"], messages=[], extra_body=body)
            try:
                return read(answer.content)
            except RecursionError:
                raise UnusableAnswerError("an answer that is nested too deeply") from None

        return await self._repeat(attempt)

    async def models(self) -> list[str]:
        """The models that the endpoint lists.

        Raises:
            AskError: It lists none.
        """

        async def attempt() -> list[str]:
            answer = await self._client.models.with_raw_response.list()
            try:
                listed = msgspec.json.decode(answer.content)["data"]
                return [str(model["id"]) for model in listed]
            except (msgspec.DecodeError, KeyError, TypeError):
                raise UnusableAnswerError("its /models is no list of models") from None

        return await self._repeat(attempt)

    async def _repeat(self, attempt: Callable[[], Coroutine[Any, Any, T]]) -> T:
        pause, failure = _FIRST_PAUSE_S, ""
        for number in range(1, self._attempts + 1):
            wait = pause * random.uniform(0.5, 1)  # noqa: S311 - spreads retries, keeps no secret
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await attempt()
            except openai.APIStatusError as error:
                failure = f"HTTP {error.status_code}: {_said(error)}"
                if error.status_code < 500 and error.status_code not in _TRANSIENT:
                    hopeless = error.status_code in _HOPELESS
                    raise AskError(f"{self.url}: {failure}", refused=not hopeless, hopeless=hopeless) from None
                wait = max(wait, _retry_after(error))
            except (TimeoutError, openai.APITimeoutError):
                failure = f"no answer within {self._timeout_s:g} s"
            except openai.APIConnectionError as error:
                failure = f"no connection: {error.__cause__ or error}"
            except UnusableAnswerError as error:
                failure = str(error)
            if number < self._attempts:
                await asyncio.sleep(min(wait, _LONGEST_PAUSE_S))
                pause *= 2
        times = "once" if self._attempts == 1 else f"{self._attempts} times"
        raise AskError(f"{self.url}: {failure} (tried {times})")


def base_url(flag: str, url: str) -> str:
    """Base URL of an endpoint as the client wants it: ``/v1`` is added where there is no path.

    Raises:
        InputError: It is no HTTP URL; names the flag.
    """
    try:
        parts = urlsplit(url)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise InputError(Problem(flag, f"{url!r} is not a URL, as in http://127.0.0.1:8080/v1"))
    path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


async def together(*tasks: Coroutine[Any, Any, T]) -> list[T]:
    """Run coroutines at once and return their results in order; the first failure ends them all and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(task) for task in tasks]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in running]


def _said(error: openai.APIStatusError) -> str:
    """The endpoint's own words, in OpenAI's shape of errors or SGLang's."""
    body = error.body
    if isinstance(body, dict):
        inner = body.get("error")
        body = inner.get("message") if isinstance(inner, dict) else body.get("message", inner)
    return " ".join(str(body or error.response.reason_phrase).split())[:300]


def _retry_after(error: openai.APIStatusError) -> float:
    try:
        return max(0.0, float(error.response.headers.get("retry-after", "0")))
    except ValueError:  # a date
        return 0.0
