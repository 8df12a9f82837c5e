"""Messages that came whole in one read, which is what nearly all are: read without llhttp's callbacks.

Both functions take the plain case only and say so with None otherwise; llhttp then reads the same bytes.
So they must never take what llhttp would refuse or read differently, and need not take all that it takes.
"""

from __future__ import annotations

import httptools

__all__ = ["PlainRequests", "header_fields", "plain_answer"]


def header_fields(head: bytes) -> dict[bytes, bytes]:
    """Header values by lower-case name; the last of equal names wins.

    Args:
        head: A message's valid head: the first line, then one line a header.
    """
    fields = {}
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        fields[name.lower()] = value.strip(b" \t")
    return fields


class PlainRequests:
    """Reads a request that is all of one read.

    llhttp judges the bytes, with callbacks for the body and the end alone; what the head says is looked
    up in it afterwards. One reader serves every connection: no request leaves a trace in it.
    """

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""
        self._ends = 0
        self._keep_alive = False

    def on_body(self, data: bytes) -> None:
        """A piece of the body: only one is taken."""
        self._body = data

    def on_message_complete(self) -> None:
        """A request is complete: only one is taken."""
        self._ends += 1
        self._keep_alive = self._parser.should_keep_alive()

    def read(self, data: bytes, most_headers: int) -> tuple[bytes, bytes, bytes, bytes] | None:
        """Read a POST over HTTP/1.1 with a Content-Length, on a connection that is to be kept.

        Args:
            data: All bytes of one read.
            most_headers: Most headers that are taken.

        Returns:
            Target, head, head in lower case, and body; None if the bytes are anything else.
        """
        end = data.find(b"\r\n\r\n")
        if end < 0 or not data.startswith(b"POST /"):
            return None
        head = data[:end]
        line = head.find(b"\r\n")
        lower = head.lower()
        if (
            not head.endswith(b" HTTP/1.1", 0, line)
            or b"\r\ncontent-length:" not in lower
            or b"\r\ntransfer-encoding" in lower
            or b"\r\n " in head
            or b"\r\n\t" in head
            or head.count(b"\r\n") > most_headers
        ):
            return None
        self._ends = 0
        self._body = b""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._ends = 0
        if self._ends != 1 or len(self._body) != len(data) - end - 4:
            self._parser = httptools.HttpRequestParser(self)  # it may be in the middle of something
            return None
        return (head[5 : line - 9], head, lower, self._body) if self._keep_alive else None


def _is_clean(head: bytes) -> bool:
    """Whether lines end in CRLF alone and none goes on in the next."""
    lines = head.count(b"\r\n")
    return (
        head.count(b"\n") == lines
        and head.count(b"\r") == lines
        and b"\n " not in head
        and b"\n\t" not in head
        and b"\0" not in head
    )


def plain_answer(data: bytes) -> tuple[bytes, bytes] | None:
    """Read a 200 answer over HTTP/1.1 that is all of one read, on a connection that is to be kept.

    Only the length decides where the answer ends, and it must be where the read ended.

    Returns:
        Head and body; None if the bytes are anything else.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0 or not data.startswith(b"HTTP/1.1 200 "):
        return None
    head = data[:end]
    lower = head.lower()
    at = lower.find(b"\r\ncontent-length:")
    if (
        at < 0
        or lower.find(b"\r\ncontent-length", at + 2) >= 0
        or b"\r\ntransfer-encoding" in lower
        or b"\r\nconnection" in lower
        or b"\r\nupgrade" in lower
        or not _is_clean(head)
    ):
        return None
    stop = lower.find(b"\r\n", at + 17)
    digits = lower[at + 17 : stop if stop >= 0 else end].strip(b" ")
    if not digits.isdigit() or int(digits) != len(data) - end - 4:
        return None
    return head, data[end + 4 :]
