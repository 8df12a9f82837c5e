"""Messages that came whole in one read, which nearly all do: one strict expression instead of llhttp's callbacks.

The expressions take a narrow part of what HTTP allows, and llhttp takes all that they take and reads it
the same; where they do not match, llhttp reads the same bytes from the start. So strictness is nowhere
less than llhttp's: one Content-Length and no other framing, lines that end in CRLF, no folded lines,
names of token characters, values without control characters.
"""

from __future__ import annotations

import re
import sys
from typing import Final

__all__ = ["PLAIN_ANSWER", "PLAIN_POST", "header_fields"]

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_VALUE = rb":[\t -~\x80-\xff]*+\r\n"
_TRACING = rb"(?i:x-request-id|traceparent|tracestate|x-cascadia-max-stage|x-cascadia-deadline-ms|x-cascadia-session)"
_CREDENTIALS = rb"(?i:authorization):"
_STEERING = (
    # How names begin that say more than their value: those above, and those that frame a message or close a connection.
    *((rb"[Aa]", rb"uthorization:"), (rb"[Cc]", rb"on(?:tent-length|nection)"), (rb"[Ee]", rb"xpect")),
    *((rb"[Tt]", rb"ra(?:nsfer-encoding|ceparent|cestate)"), (rb"[Uu]", rb"pgrade")),
    (rb"[Xx]", rb"-(?:request-id|cascadia-(?:max-stage|deadline-ms|session))"),
)
_OTHER = (
    # Most names are seen by their first letter not to be one of those; of the rest most differ in the second.
    rb"(?:[BDF-SVWYZbdf-svwyz]|%s)%s*+%s"
    % (b"|".join(rb"%s(?!(?i:%s))" % begins for begins in _STEERING), _TOKEN, _VALUE)
)
_LENGTH = rb"[Cc]ontent-[Ll]ength: ?+([0-9]{1,9})\r\n"
_DULL = rb"(?:%s|[Cc]onnection: [Kk]eep-[Aa]live\r\n)" % _OTHER
_TOLD = rb"(?:(%s)%s|%s[\t ]*+([\t -~\x80-\xff]*+)\r\n)" % (_TRACING, _VALUE, _CREDENTIALS)
# A possessive repeat with groups inside fails with SystemError before 3.12.8 and 3.13.1 (python/cpython#101955): what
# has groups is repeated in an atomic group. After a possessive repeat, that needs 3.11.5 (python/cpython#106052).
_REQUEST_LINES = (
    rb"%s*+(?>(?:%s%s*+)*)" % (_DULL, _TOLD, _DULL)
    if sys.version_info >= (3, 11, 5)
    else rb"(?>(?:%s|%s)*)" % (_DULL, _TOLD)
)

PLAIN_POST: Final = re.compile(
    rb"POST (/[0-9A-Za-z/._~-]*+) HTTP/1\.1\r\n%s%s%s\r\n" % (_REQUEST_LINES, _LENGTH, _REQUEST_LINES)
)
"""Head of a POST on a connection that is to be kept. Groups: target; a tracing header's name and the value of
the last `Authorization`, if there are any; Content-Length; the two again, of the headers after it.
The headers that bound a request are among the tracing ones."""

_ANSWER_LINES = rb"(?:%s|%s%s|%s%s)*+" % (_OTHER, _TRACING, _VALUE, _CREDENTIALS.rstrip(b":"), _VALUE)
PLAIN_ANSWER: Final = re.compile(rb"HTTP/1\.1 200 [\t -~]*+\r\n%s%s%s\r\n" % (_ANSWER_LINES, _LENGTH, _ANSWER_LINES))
"""Head of a 200 answer on a connection that is to be kept. Group: Content-Length."""


def header_fields(head: bytes) -> dict[bytes, bytes]:
    """Header values by lower-case name; the last of equal names wins.

    Args:
        head: A message's valid head: the first line, then one line a header; what follows an empty line
            is not looked at.
    """
    fields = {}
    for line in head.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        fields[name.lower()] = value.strip(b" \t")
    return fields
