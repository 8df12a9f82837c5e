"""What engine processes say: one JSON line an event, on standard error."""

from __future__ import annotations

import sys

import msgspec

__all__ = ["log"]


def log(event: str, **fields: object) -> None:
    """Write one event: ``listening``, ``ready``, ``draining`` or ``stopped``, with its numbers."""
    sys.stderr.buffer.write(msgspec.json.encode({"event": event, **fields}) + b"\n")
    sys.stderr.buffer.flush()
