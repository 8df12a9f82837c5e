"""What is thrown at the router: HTTP that is nearly right, and bodies that are nearly completions."""

from __future__ import annotations

import itertools
import json
from typing import Any

from hypothesis import strategies as st

__all__ = ["answers", "bodies", "cut", "hops", "request_streams"]

_NAMES = [b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"upgrade", b"te", b"trailer"]
_NAMES += [b"authorization", b"x-request-id", b"traceparent", b"x-cascadia-max-stage", b"x-cascadia-deadline-ms", b"x"]
_VALUES = [b"a", b"0", b"5", b"05", b"+5", b"5, 5", b"99999999999", b"chunked", b"identity", b"gzip, chunked", b"close"]
_VALUES += [b"keep-alive", b"100-continue", b"h2c", b"Bearer x", b"1\xe9", b"a\x00b", b"a\rb", b"a\nb", b"", b"  x\t"]
_ENDS = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\r\n", b"\r\n ", b" \r\n"])
_COLONS = st.sampled_from([b": "] * 12 + [b":", b" : ", b":\t", b"", b"::"])

_methods = st.sampled_from([b"POST"] * 4 + [b"GET", b"HEAD", b"PUT", b"CONNECT", b"PRI", b"post", b"\x80"])
_targets = st.sampled_from(
    [b"/v1/chat/completions"] * 6
    + [
        b"/v1/completions",
        b"/v1/models",
        b"/healthz",
        b"/v1/responses",
        b"*",
        b"http://a/b",
        b"/a?b#c",
        b"/%00",
        b"/\xff",
    ]
)
_versions = st.sampled_from([b"HTTP/1.1"] * 8 + [b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/1.2", b"http/1.1", b""])
_names = st.sampled_from(_NAMES) | st.binary(min_size=1, max_size=6)
_field = st.tuples(_names, _COLONS, st.sampled_from(_VALUES) | st.binary(max_size=12), _ENDS).map(b"".join)
_sizes = st.sampled_from([b"%x", b"%X", b"0%x", b"%x;a=b", b'%x;a="b"', b" %x", b"%x ", b"0x%x", b"+%x", b"-%x"])


@st.composite
def _chunks(draw: st.DrawFn, content: bytes) -> bytes:
    sent, rest = b"", content
    while rest:
        size = draw(st.integers(1, len(rest)))
        said = draw(st.sampled_from([size] * 12 + [size + 1, size - 1, 2**64]))
        shape = draw(st.sampled_from([b"%x"] * 10) | _sizes)
        sent += shape % said + draw(_ENDS) + rest[:size] + draw(_ENDS)
        rest = rest[size:]
    return sent + b"0" + draw(_ENDS) + b"".join(draw(st.lists(_field, max_size=2))) + draw(_ENDS)


@st.composite
def _message(draw: st.DrawFn, content: bytes) -> bytes:
    """A request with this body, by and large."""
    fields = draw(st.lists(_field, max_size=4))
    fields.append(b"host: a\r\n")
    if draw(st.booleans()):
        fields.append(b"content-length: %d\r\n" % (len(content) + draw(st.sampled_from([0] * 12 + [1, -1]))))
        framed = content
    else:
        fields.append(b"transfer-encoding: chunked\r\n")
        framed = draw(_chunks(content))
    first = draw(_methods) + b" " + draw(_targets) + b" " + draw(_versions) + draw(_ENDS)
    return first + b"".join(draw(st.permutations(fields))) + draw(_ENDS) + framed


_CLIENT_LINES = [b"Host: a", b"Accept: */*", b"Content-Type: application/json", b"Connection: keep-alive"]
_CLIENT_LINES += [b"Authorization: Bearer sk-1", b"X-Request-Id: r-1", b"traceparent: 00-1", b"x-cascadia-max-stage: a"]


@st.composite
def _clients(draw: st.DrawFn) -> bytes:
    """A request as clients send them, its lines in any order: it is read in one go."""
    body = draw(st.binary(max_size=20))
    lines = [*draw(st.lists(st.sampled_from(_CLIENT_LINES), max_size=6)), b"Content-Length: %d" % len(body)]
    return b"\r\n".join((b"POST /v1/completions HTTP/1.1", *draw(st.permutations(lines)), b"", body))


_contents = st.sampled_from([b"", b"hello", b"0\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"]) | st.binary(max_size=20)
_GOOD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello"
request_streams = st.lists(
    _contents.flatmap(_message) | _clients() | st.just(_GOOD) | st.binary(max_size=24), min_size=1, max_size=4
).map(b"".join)
"""What a client sends on one connection."""


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The data in pieces."""
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


_scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=12)
_json = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from(["chat", "small", "large", "", "chat\r\nx: y", "nobody", '"', "\x00"]) | _json,
    "messages": st.just([{"role": "user", "content": "hi"}])
    | st.just([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}])
    | _json,
    "prompt": st.just("hi") | _json,
    "stream": st.booleans() | _json,
    "stream_options": st.just({"include_usage": True}) | _json,
    "logprobs": st.sampled_from([True, False, 0, 5, None]) | _json,
    "top_logprobs": st.integers(0, 20) | _json,
    "max_tokens": st.integers(-5, 10**12) | _json,
    "max_completion_tokens": st.integers(-5, 10**12) | _json,
    "tools": st.just([{"type": "function", "function": {"name": "f"}}]) | _json,
    "response_format": st.just({"type": "json_schema", "json_schema": {}}) | _json,
    "n": st.integers(-2, 300) | _json,
    "input": st.just("hi") | _json,
    "user": _json,
}


@st.composite
def _objects(draw: st.DrawFn) -> bytes:
    names = draw(st.lists(st.sampled_from(sorted(_FIELDS)), max_size=6))
    pairs = [
        (name, draw(_FIELDS[name]))
        for name in (*draw(st.sampled_from([("model", "messages"), ("model", "prompt"), ()])), *names)
    ]
    text = draw(st.sampled_from([", ", ",", " ,\n"])).join(
        f"{json.dumps(name)}{draw(st.sampled_from([':', ': ', ' : ']))}{json.dumps(value)}" for name, value in pairs
    )
    return ("{" + text + "}").encode("utf-8", "surrogatepass")


@st.composite
def _mutated(draw: st.DrawFn) -> bytes:
    body = bytearray(draw(_objects()))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(body)))
        body[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(body)


bodies = (
    _objects()
    | _mutated()
    | st.binary(max_size=60)
    | _json.map(lambda value: json.dumps(value).encode())
    | st.integers(1, 3000).map(lambda depth: b'{"model":"chat","messages":' + b"[" * depth)
)
"""Bodies of completion requests."""

_PIECES = [
    b"HTTP/1.1 200 OK\r\n",
    b"content-length: 2\r\n\r\n{}",
    b"transfer-encoding: chunked\r\n",
    b"\r\n",
    b"0\r\n\r\n",
]
_PIECES += [b"5\r\nhello\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 204 No\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n"]
_PIECES += [b"HTTP/1.1 500 E\r\ncontent-length: 0\r\n\r\n", b"content-type: text/event-stream\r\n", b"data: {}\n\n"]
_PIECES += [
    b"data: [DONE]\n\n",
    b": comment\n\n",
    b'data: {"choices":[{"index":0,"delta":{}}]}\n\n',
    b"\x00",
    b"content-length: 9\r\n",
]
_engine_bodies = (
    _json.map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries(
        {},
        optional={
            "choices": st.lists(
                st.fixed_dictionaries(
                    {}, optional={"index": _json, "message": _json, "text": _json, "logprobs": _json}
                ),
                max_size=3,
            )
            | _json,
            "usage": st.fixed_dictionaries({}, optional={"prompt_tokens": _json, "completion_tokens": _json}) | _json,
            "error": _json,
        },
    ).map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=40)
)


@st.composite
def _framed(draw: st.DrawFn) -> bytes:
    body = draw(_engine_bodies)
    head = b"HTTP/1.1 %d X\r\n" % draw(
        st.sampled_from([200] * 8 + [201, 204, 304, 307, 400, 404, 418, 429, 499, 500, 503, 600])
    )
    head += b"".join(draw(st.lists(_field, max_size=2)))
    kind = draw(st.sampled_from([b"application/json", b"text/event-stream", b"text/html"]))
    return head + b"content-type: %s\r\ncontent-length: %d\r\n\r\n%s" % (kind, len(body), body)


answers = _framed() | st.lists(st.sampled_from(_PIECES) | st.binary(max_size=12), max_size=6).map(b"".join)
"""What an engine sends in answer to one request."""

hops = st.dictionaries(
    st.sampled_from([b"x-cascadia-hop", b"x-cascadia-signature"]),
    st.binary(max_size=60) | st.just(b"WyJyIiwxXQ==") | st.just(b"0" * 64),
)
"""Headers that pretend to be signed."""
