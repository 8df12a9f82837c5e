"""A server that a scorer asks: a bounded number of questions at a time, a deadline each, none while it is down."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from cascadia_api.policy import EndpointPolicy
from cascadia_router.balancing import Breaker
from cascadia_router.collected_answer import CollectedAnswer
from cascadia_router.http1_client import Call, Upstream
from cascadia_router.response_sink import Fault
from cascadia_router.scorers.surroundings import Surroundings

__all__ = ["MAX_ANSWER_BYTES", "Endpoint", "Reply"]

MAX_ANSWER_BYTES = 1024 * 1024
"""Longest answer that is read; a longer one is malformed."""
WAITING_PER_CALL = 8
"""Questions that may wait, for each that may be asked at once; more are told `busy`."""

Reply = bytes | str
"""What became of a question: the answer's body, or why there is none, as a reason of `Unscored`."""


class Endpoint:
    """One server. Create it, and use it, in the event loop.

    Args:
        policy: Where it is, and with which key.
        surroundings: The clock and the secrets.
        deadline: Longest time to wait for an answer, the wait for its turn included, service s.
        concurrency: Most questions at a time.
        key: API key where the policy names no file of one.

    Attributes:
        upstream: Its connections.
    """

    def __init__(
        self,
        policy: EndpointPolicy,
        surroundings: Surroundings,
        *,
        deadline: float,
        concurrency: int,
        key: str | None = None,
    ) -> None:
        url = urlsplit(policy.url)
        self._surroundings = surroundings
        self._policy = policy
        self._tls = url.scheme == "https"
        port = url.port or (443 if self._tls else 80)
        self.upstream = Upstream(
            f"[{url.hostname}]:{port}" if ":" in (url.hostname or "") else f"{url.hostname}:{port}"
        )
        self._base = url.path.rstrip("/").encode()
        self._query = b"?" + url.query.encode() if url.query else b""
        self._host_line = b"host: " + url.netloc.encode() + b"\r\n"
        self._deadline = deadline
        self._concurrency = concurrency
        self._key = key
        self._breaker = Breaker()
        self._asking: set[_Question] = set()
        self._waiting: deque[_Question] = deque()

    def post(self, path: bytes, body: bytes, headers: bytes, tell: Callable[[Reply], None]) -> _Question:
        """Ask.

        Args:
            path: Below the endpoint's URL; empty for that itself.
            body: JSON.
            headers: More header lines.
            tell: Is told what became of it, not before this has returned.

        Returns:
            The question, to abort.
        """
        question = _Question(self, path, body, headers, tell)
        now = self._surroundings.now()
        if not self._breaker.allows(now):
            question.fail_soon("unavailable")
        elif len(self._asking) < self._concurrency:
            self._start(question)
        elif len(self._waiting) < WAITING_PER_CALL * self._concurrency:
            self._waiting.append(question)
        else:
            question.fail_soon("busy")
        return question

    def _start(self, question: _Question) -> None:
        try:
            if self._tls and self.upstream.tls is None:
                self.upstream.tls = ssl.create_default_context(cadata=self._secret(self._policy.ca or None))
            key = self._key_line()
        except (OSError, ValueError):  # ssl.SSLError included
            question.fail_soon("secret")
            return
        self._asking.add(question)
        self._breaker.sent(self._surroundings.now())
        question.send(self.upstream, self._base, self._query, self._host_line + key)

    def _key_line(self) -> bytes:
        """The key is read for each question, so that a new one counts at once: the file is in memory."""
        key = self._secret(self._policy.api_key or None) or self._key
        if key is None:
            return b""
        if not key.isprintable():
            raise ValueError("an API key of several lines")
        return b"authorization: Bearer %s\r\n" % key.encode()

    def _secret(self, file: str | None) -> str | None:
        if file is None:
            return None
        if self._surroundings.secrets is None:
            raise FileNotFoundError(file)
        return (Path(self._surroundings.secrets) / file).read_text().strip()

    def wall(self) -> float:
        """The deadline in seconds of the machine's clock."""
        return self._deadline / self._surroundings.scale

    def is_over(self, question: _Question, worked: bool | None) -> None:
        """A question needs its place no more; None: without telling whether the server works."""
        if question not in self._asking:
            return
        self._asking.discard(question)
        if worked:
            self._breaker.succeeded()
        elif worked is None:
            self._breaker.abandoned()
        else:
            self._breaker.failed(self._surroundings.now())
        while self._waiting and len(self._asking) < self._concurrency:
            following = self._waiting.popleft()
            if following.over:
                continue
            if self._breaker.allows(self._surroundings.now()):
                self._start(following)
            else:
                following.fail_soon("unavailable")


class _Question(CollectedAnswer):
    """One question; takes the answer."""

    def __init__(
        self, endpoint: Endpoint, path: bytes, body: bytes, headers: bytes, tell: Callable[[Reply], None]
    ) -> None:
        super().__init__(MAX_ANSWER_BYTES)
        self._endpoint = endpoint
        self._path = path
        self._body = body
        self._headers = headers
        self._tell = tell
        self._upstream: Upstream | None = None
        self._call: Call | None = None
        self._request = b""
        self.over = False
        self._timer: asyncio.TimerHandle | asyncio.Handle
        self._timer = asyncio.get_running_loop().call_later(endpoint.wall(), self._time_out)

    def send(self, upstream: Upstream, base: bytes, query: bytes, lines: bytes) -> None:
        """Its turn has come."""
        self._upstream = upstream
        self._request = b"POST %s HTTP/1.1\r\n%scontent-type: application/json\r\ncontent-length: %d\r\n%s\r\n%s" % (
            (base + self._path or b"/") + query,
            lines,
            len(self._body),
            self._headers,
            self._body,
        )
        self._call = upstream.send(self._request, self)

    def fail_soon(self, reason: str) -> None:
        """It cannot be asked."""
        self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_soon(self._end, reason, None)

    def abort(self) -> None:
        """See `Pending`."""
        if not self.over:
            self._stop(None)

    def _time_out(self) -> None:
        self._end("timeout", worked=False)

    def _stop(self, worked: bool | None) -> None:
        self.over = True
        self._timer.cancel()
        if self._call is not None and worked is not True:
            self._call.abort()
        self._endpoint.is_over(self, worked)

    def _end(self, reply: Reply, worked: bool | None) -> None:
        if not self.over:
            self._stop(worked)
            self._tell(reply)

    # -- the answer -------------------------------------------------------------------------------

    def answered(self, status: int, body: bytes) -> None:
        """See `CollectedAnswer`."""
        if status == 200:
            self._end(body, worked=True)
        else:
            self._end("status", worked=status < 500 and status != 429)

    def too_long(self, *, complete: bool) -> None:
        """See `CollectedAnswer`."""
        self._end("malformed", worked=True if complete else None)

    def response_fault(self, fault: Fault) -> None:
        """See `ResponseSink`."""
        call, upstream = self._call, self._upstream
        if fault is Fault.LOST and call is not None and call.reused and upstream is not None:
            # The server was closing the idle connection as the question went out.
            self._call = upstream.send(self._request, self, fresh=True)
            return
        self._end({Fault.UNREACHABLE: "unreachable", Fault.MALFORMED: "malformed"}.get(fault, "lost"), worked=False)
