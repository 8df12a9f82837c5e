"""Header lines with which a collector of traces knows a router: from a mounted Secret, and from the environment.

Both are written as OpenTelemetry has it: ``name=value`` pairs between commas (or line ends), values
percent-encoded where they have to be. They are credentials: what is wrong with them is logged without them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

from cascadia_router.json_log import fields

__all__ = ["VARIABLES", "CollectorHeaders", "HeadersError", "parse_headers"]

log = logging.getLogger("cascadia.router.traces")

VARIABLES = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
"""The second one's headers take the place of the first one's."""
_MOST_BYTES = 16 * 1024
_BETWEEN = re.compile(r"[,\n]")
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,128}")
_VALUE = re.compile(r"[ -~\t]*")
_OURS = frozenset({"connection", "content-length", "content-type", "host", "transfer-encoding"})
"""Frame the request: no credential is called so."""


class HeadersError(ValueError):
    """The text is no list of headers; says which pair is wrong, not what stands there."""


def parse_headers(text: str) -> dict[str, str]:
    """Read headers, names in lower case.

    Raises:
        HeadersError: A pair is wrong.
    """
    if len(text) > _MOST_BYTES:
        raise HeadersError(f"longer than {_MOST_BYTES} characters")
    found: dict[str, str] = {}
    for place, pair in enumerate((each for each in _BETWEEN.split(text) if each.strip()), 1):
        name, separator, value = pair.partition("=")
        name, value = name.strip().lower(), unquote(value.strip())
        if not separator:
            raise HeadersError(f"pair {place} has no `=`")
        if not _NAME.fullmatch(name) or name in _OURS:
            raise HeadersError(f"pair {place} has a name that no header of ours may have")
        if not _VALUE.fullmatch(value):
            raise HeadersError(f"pair {place} has a value with characters that no header may have")
        found[name] = value
    return found


class CollectorHeaders:
    """The headers of one router's calls to the collector.

    Args:
        folder: Where the policy's file is; None if there is no such folder.
        environment: The process's variables, read once.
    """

    def __init__(self, folder: str | None, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._wrong = ""  # what was complained of last
        self._own: dict[str, str] = {}
        for variable in VARIABLES:
            try:
                self._own |= parse_headers(environment.get(variable, ""))
            except HeadersError as error:
                self._complain(f"{variable}: {error}")

    def lines(self, file: str | None) -> bytes | None:
        """Header lines of the next call; None if the file with them cannot be used.

        The file is read for each call, so that a new credential counts at once: it is in memory.

        Args:
            file: Name of the file, if the policy names one. Where there is no folder, the environment serves alone.
        """
        headers = self._own
        if file is not None and self._folder is not None:
            try:
                headers = headers | parse_headers((Path(self._folder) / file).read_text())
            except (OSError, UnicodeDecodeError, HeadersError) as error:
                reason = str(error) if isinstance(error, HeadersError) else type(error).__name__
                self._complain(f"{file}: {reason}")
                return None
            self._wrong = ""
        return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()

    def _complain(self, reason: str) -> None:
        if reason != self._wrong:
            self._wrong = reason
            log.error("the headers for the collector of traces cannot be used", extra=fields(reason=reason))
