"""What the two ports that take completions have in common: refusals."""

from __future__ import annotations

import re
from typing import Final

from cascadia_router.completion_body import BodyError
from cascadia_router.http1_request import Answering, Request
from cascadia_router.node import Node
from cascadia_router.openai_errors import error_body
from cascadia_router.policy_store import Cascade

__all__ = ["COMPLETIONS", "RETRY_SOON", "Port"]

COMPLETIONS: Final = frozenset({b"/v1/chat/completions", b"/v1/completions"})
_REQUEST_ID: Final = re.compile(rb"[!-~]{1,128}")
RETRY_SOON: Final = b"retry-after: 1\r\n"


class Port:
    """Common to both ports."""

    name = ""
    """As in the metrics' label `port`."""

    def __init__(self, node: Node) -> None:
        self.node = node

    @property
    def closing(self) -> bool:
        """See `Application`."""
        return self.node.draining

    def expects(self, target: bytes, authorization: bytes) -> bool:  # noqa: ARG002
        """See `Application`."""
        return True

    def _refuse(
        self,
        connection: Answering,
        request: Request,
        status: int,
        message: str,
        code: str,
        *,
        param: str | None = None,
        head: bytes = b"",
    ) -> None:
        """Answer with an error a request that is not begun."""
        request_id = self._named(request.headers.get(b"x-request-id", b"") if request.traced else b"")
        head += b"x-request-id: %s\r\n" % request_id
        connection.respond(status, error_body(status, message, code=code, param=param), head=head)
        self._tell(request, request_id, status, code)

    def turned_away(self, status: int, code: str, given_id: bytes) -> bytes:
        """See `Application`."""
        request_id = self._named(given_id)
        self._tell(None, request_id, status, code)
        return b"x-request-id: %s\r\n" % request_id

    def _named(self, given: bytes) -> bytes:
        """The id of a request: the one that it came with, if that can be one."""
        return given if _REQUEST_ID.fullmatch(given) else self.node.new_request_id()

    def _tell(self, request: Request | None, request_id: bytes, status: int, code: str) -> None:
        """Tell the access log of a refusal."""
        node = self.node
        cascade = node.policies.entry
        if cascade is not None and cascade.access_log is not None:
            node.access_log.refused(
                request, port=self.name, request_id=request_id.decode(), status=status, reason=code, now=node.now()
            )

    def _turn_away(
        self, connection: Answering, request: Request, cascade: Cascade | None, retry_seconds: int = 1
    ) -> None:
        """Refuse a request for which there is no policy or no room."""
        node = self.node
        if cascade is None:
            node.metrics.refused["no_policy"] += 1
            message = "The router has not received a policy yet: try again."
            self._refuse(connection, request, 503, message, "no_policy", head=RETRY_SOON)
        else:
            node.metrics.refused["overloaded"] += 1
            message = f"The router holds {cascade.policy.max_in_flight} requests already: try again later."
            self._refuse(
                connection, request, 429, message, "too_many_requests", head=b"retry-after: %d\r\n" % retry_seconds
            )

    def _refuse_body(self, connection: Answering, request: Request, error: BodyError) -> None:
        self.node.metrics.refused["bad_body"] += 1
        self._refuse(connection, request, 400, str(error), "invalid_body", param=error.param)
