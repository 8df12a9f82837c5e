"""What a client may ask of one request in headers: no stage after this one, no longer than this."""

from __future__ import annotations

import re
from typing import NamedTuple

from cascadia_router.policy_store import Cascade
from cascadia_router.stage import Stage

__all__ = ["DEADLINE", "MAX_STAGE", "BoundError", "Bounds", "read_bounds"]

MAX_STAGE = b"x-cascadia-max-stage"
DEADLINE = b"x-cascadia-deadline-ms"
_MILLISECONDS = re.compile(rb"[0-9]{1,9}")


class BoundError(ValueError):
    """A bound that makes no sense.

    Attributes:
        header: The header at fault.
    """

    def __init__(self, header: bytes, message: str) -> None:
        self.header = header.decode()
        super().__init__(f"`{self.header}` {message}")


class Bounds(NamedTuple):
    """Bounds of one request.

    Attributes:
        end: Index of the first stage that must not be asked.
        seconds: Until its deadline, service s.
    """

    end: int
    seconds: float


def read_bounds(headers: dict[bytes, bytes], cascade: Cascade, pinned: Stage | None) -> Bounds:
    """Bounds of a request: what its headers ask for, within what the policy allows.

    Args:
        headers: The request's, names in lower case.
        cascade: The policy in force.
        pinned: The only stage that may answer, if the client asked for one.

    Raises:
        BoundError: A value cannot be followed; the message says which ones can.
    """
    end, seconds = len(cascade.stages), cascade.policy.request_timeout_seconds
    name = headers.get(MAX_STAGE)
    if name is not None:
        stage = cascade.by_name.get(name.decode("utf-8", "replace"))
        if stage is None:
            live = ", ".join(cascade.by_name)
            raise BoundError(MAX_STAGE, f"must name a live stage of the cascade: {live}.")
        if pinned is not None and pinned.index > stage.index:
            raise BoundError(MAX_STAGE, f"excludes stage {pinned.name!r}, which `model` asks for.")
        end = stage.index + 1
    value = headers.get(DEADLINE)
    if value is not None:
        if _MILLISECONDS.fullmatch(value) is None or int(value) == 0:
            raise BoundError(DEADLINE, "must be a whole number of milliseconds from 1 to 999999999.")
        seconds = min(seconds, int(value) / 1000)
    return Bounds(end, seconds)
