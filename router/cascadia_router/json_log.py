"""Log lines as JSON on stderr, one object a line.

What is logged is what the router decided and what went wrong around it, never a prompt, an answer, a
header of a client or a secret.
"""

from __future__ import annotations

import datetime as dt
import logging
import sys
from typing import Any

import msgspec

__all__ = ["configure", "fields"]


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        entry.update(getattr(record, "fields", {}))
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(entry).decode()


def configure() -> None:
    """Send every log record of the process to stderr as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)


def fields(**values: str | float | bool | list[str] | None) -> dict[str, Any]:
    """Named values of a log line: `log.info("policy taken", extra=fields(revision=3))`."""
    return {"fields": values}
