"""Bodies of completion requests and answers: read little, change little, keep the rest as it came.

Requests and answers are decoded one level deep with the values left raw, so that a long prompt is
scanned, not built. Unknown fields pass through.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw

from cascadia_router.json_shapes import (
    ABSENT,
    NULL,
    Answer,
    Choice,
    RequestHead,
    Usage,
    answer_decoder,
    choices_decoder,
    head_decoder,
)

__all__ = [
    "Answer",
    "BodyError",
    "Choice",
    "CompletionRequest",
    "Usage",
    "keep_candidates",
    "read_answer",
    "strip_logprobs",
    "with_field",
]

_TRUE = Raw(b"true")
_ONE = Raw(b"1")
_EXTRA_CHAT: Final = b',"logprobs":true'
_EXTRA_COMPLETION: Final = b',"logprobs":1'  # to some engines 0 means none

_fields_decoder: Final = msgspec.json.Decoder(dict[str, Raw])
_encoder: Final = msgspec.json.Encoder()
_decode_head: Final = head_decoder.decode
_decode_answer: Final = answer_decoder.decode


class BodyError(ValueError):
    """A body that is not a completion request.

    Attributes:
        param: The field at fault, if one is.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        self.param = param
        super().__init__(message)


class CompletionRequest:
    """One request to `/v1/chat/completions` or `/v1/completions`.

    Attributes:
        chat: Whether it is a chat completion.
        path: The request's path, the same at the engine.
        body: As the client sent it.
        model: The client's `model`.
        stream: Whether the answer is to be streamed.
        wants_logprobs: Whether the client asked for log-probabilities itself.
        wants_usage: Whether the client asked for the usage of a stream.
        tokens: Estimated prompt + answer tokens: a quarter of the body's bytes plus `max_tokens`.
            A body with images or audio counts its `max_tokens` only: their bytes are not text.
        needs: What the model must be capable of, in the words of `StagePolicy.capabilities`.
    """

    __slots__ = ("_head", "body", "chat", "model", "needs", "path", "stream", "tokens", "wants_logprobs")

    def __init__(self, path: bytes, body: bytes) -> None:
        """Read a request.

        Raises:
            BodyError: The body is not a JSON object with a `model` and usable options.
        """
        try:
            if not body.isascii():
                body.decode()  # fields that are not looked at here are passed on as they came
            head = _decode_head(body)
        except msgspec.ValidationError as error:
            param = str(error).rpartition("$.")[2].rstrip("`") if "$." in str(error) else None
            raise BodyError(str(error), param) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BodyError(f"The body is not valid JSON: {error}") from None
        self.chat = chat = path == b"/v1/chat/completions"
        content = head.messages if chat else head.prompt
        if content is ABSENT:
            needed = "messages" if chat else "prompt"
            raise BodyError(f"`{needed}` is required.", needed)
        self._head = head
        self.path = path
        self.body = body
        self.model = head.model
        self.stream = head.stream is True
        logprobs = head.logprobs
        refused = isinstance(logprobs, bool) and not logprobs
        self.wants_logprobs = not (logprobs is UNSET or logprobs is None or refused)
        # An underscore is in `image_url` and in `input_audio`, and one byte is found much faster than a word.
        plain = head.tools is ABSENT and head.response_format is ABSENT and _UNDERSCORE not in bytes(content)
        self.needs = _NOTHING if plain else _needs(head)
        answer = head.max_completion_tokens or head.max_tokens or 0
        self.tokens = answer if self.needs & _NOT_TEXT else len(body) // 4 + answer

    @property
    def content(self) -> bytes:
        """JSON of its messages, or of its prompt."""
        return bytes(self._head.messages if self.chat else self._head.prompt)

    @property
    def wants_usage(self) -> bool:
        """See the class."""
        options = self._head.stream_options
        return options is not None and options.include_usage is True

    @property
    def choices(self) -> int | None:
        """Choices that the answer will have; None if that is not plain from `n`, as for a list of prompts."""
        if not self.chat and not bytes(self._head.prompt).startswith(b'"'):
            return None
        try:
            asked = choices_decoder.decode(self.body).n
        except msgspec.DecodeError:
            return None
        return 1 if asked is None else asked

    def for_engine(self, served_model: str, *, score: bool, candidates: int = 0) -> bytes:
        """Return the body that a stage's engine is sent.

        Args:
            served_model: Replaces `model`.
            score: Whether the answer will be scored by its tokens' log-probabilities.
            candidates: How many of each token's candidates the score needs.
        """
        if score and candidates:
            return self._with_candidates(served_model, candidates)
        adds_logprobs = score and not self.wants_logprobs
        if not self.stream and (self._head.logprobs is UNSET or not adds_logprobs):
            around = self.around_model()
            if around is not None:
                return model_field(served_model, self.chat, adds_logprobs).join(around)
        fields = _fields_decoder.decode(self.body)
        fields["model"] = Raw(_encoder.encode(served_model))
        if adds_logprobs:
            fields["logprobs"] = _TRUE if self.chat else _ONE
        self._ask_usage(fields)
        return _encoder.encode(fields)

    def for_shadow(self, logprobs: int) -> bytes:
        """Return the body that the next stage is sent for comparison: its answer comes whole.

        Args:
            logprobs: See `Scorer`.
        """
        fields = _fields_decoder.decode(self.body)
        fields.pop("stream", None)
        fields.pop("stream_options", None)
        if logprobs:
            fields["logprobs"] = _TRUE if self.chat else Raw(b"%d" % max(logprobs, self.candidates))
            if self.chat and logprobs > 1:
                fields["top_logprobs"] = Raw(b"%d" % max(logprobs, self.candidates))
        return _encoder.encode(fields)

    def _with_candidates(self, served_model: str, candidates: int) -> bytes:
        fields = _fields_decoder.decode(self.body)
        fields["model"] = Raw(_encoder.encode(served_model))
        most = Raw(b"%d" % max(candidates, self.candidates))
        if self.chat:
            fields["logprobs"] = _TRUE
            fields["top_logprobs"] = most
        else:
            fields["logprobs"] = most
        self._ask_usage(fields)
        return _encoder.encode(fields)

    def _ask_usage(self, fields: dict[str, Raw]) -> None:
        if self.stream and not self.wants_usage:
            options = fields.get("stream_options", NULL)
            merged = _fields_decoder.decode(options) if bytes(options) != b"null" else {}
            merged["include_usage"] = _TRUE
            fields["stream_options"] = Raw(_encoder.encode(merged))

    @property
    def candidates(self) -> int:
        """How many candidates a token the client asked for, 0 if it asked for none."""
        if not self.wants_logprobs:
            return 0
        asked = self._head.logprobs if not self.chat else _fields_decoder.decode(self.body).get("top_logprobs", NULL)
        if isinstance(asked, Raw):
            try:
                asked = msgspec.json.decode(asked, type=int)
            except msgspec.DecodeError:
                return 0
        return int(asked) if isinstance(asked, int) else 0

    def around_model(self) -> tuple[bytes, bytes] | None:
        """The body before and after its field `model`, found by search alone; None where that could err.

        The body has the field, or it would have been refused. If the key occurs once, and no escape can
        hide another spelling of it, what was found is that field: within strings quotes are escaped.
        """
        body = self.body
        key = body.find(b'"model"')
        value = key + 7
        if key < 0 or body.find(b'"model"', value) >= 0 or (_BACKSLASH in body and b"\\u00" in body):
            return None
        model = b':"%s"' % self.model.encode()
        if not body.startswith(model, value):
            model = b": " + model[1:]
            if not body.startswith(model, value):
                return None
        return body[:key], body[value + len(model) :]


@lru_cache(maxsize=64)
def model_field(served_model: str, chat: bool, scored: bool) -> bytes:
    """The field `model` of a request to an engine, and what asks for log-probabilities if they are needed."""
    extra = b"" if not scored else _EXTRA_CHAT if chat else _EXTRA_COMPLETION
    return b'"model":%s%s' % (_encoder.encode(served_model), extra)


# Bytes to look for, as numbers: looked for as `bytes`, each costs CPython an error that it makes and drops.
_UNDERSCORE: Final = ord("_")
_BACKSLASH: Final = ord("\\")
_NOT_TEXT: Final = frozenset({"images", "audio"})
_NOTHING: Final[frozenset[str]] = frozenset()


def _needs(head: RequestHead) -> frozenset[str]:
    # An unescaped `"image_url"` can only be a whole JSON string: quotes within a text are escaped.
    needs = set()
    content = bytes(head.messages)
    if b'"image_url"' in content:
        needs.add("images")
    if b'"input_audio"' in content:
        needs.add("audio")
    if head.tools is not ABSENT and bytes(head.tools) not in {b"null", b"[]"}:
        needs.add("tools")
    if head.response_format is not ABSENT and b'"json_schema"' in bytes(head.response_format):
        needs.add("json-schema")
    return frozenset(needs) if needs else _NOTHING


def read_answer(document: bytes) -> Answer:
    """Read an answer or a chunk.

    Raises:
        msgspec.DecodeError: It is not JSON, or does not have an answer's shape.
    """
    return _decode_answer(document)


def strip_logprobs(document: bytes, answer: Answer) -> bytes:
    """Return the answer with `logprobs: null` in each choice, as if none had been asked for."""
    pieces: list[bytes] = []
    start = 0
    for choice in answer.choices:
        raw = bytes(choice.logprobs)
        if raw == b"null":
            continue
        found = _value_at(document, raw, start)
        if found < 0:
            return _strip_rebuilding(document)
        pieces += (document[start:found], b"null")
        start = found + len(raw)
    return b"".join((*pieces, document[start:])) if pieces else document


def keep_candidates(document: bytes, count: int) -> bytes:
    """Return an answer or a chunk with at most so many candidates a token: as many as its client asked for.

    Args:
        document: A valid answer.
        count: The number.
    """
    fields = _fields_decoder.decode(document)
    choices = msgspec.json.decode(fields["choices"], type=list[dict[str, Raw]])
    for choice in choices:
        logprobs = msgspec.json.decode(choice.get("logprobs", NULL))
        if not isinstance(logprobs, dict):
            continue
        for token in logprobs.get("content") or ():
            token["top_logprobs"] = (token.get("top_logprobs") or [])[:count]
        if logprobs.get("top_logprobs"):
            logprobs["top_logprobs"] = [
                token and {key: token[key] for key in sorted(token, key=token.__getitem__, reverse=True)[:count]}
                for token in logprobs["top_logprobs"]
            ]
        choice["logprobs"] = Raw(_encoder.encode(logprobs))
    return _encoder.encode({**fields, "choices": choices})


def _value_at(document: bytes, raw: bytes, start: int) -> int:
    """Index at or after `start` of the value `raw` of a key `logprobs`; -1 if it is not found.

    Searching for the short key, not the long value: quotes within strings are escaped, so the key's
    bytes can be nothing else.
    """
    while (start := document.find(b'"logprobs"', start)) >= 0:
        start += 10
        value = start + 1
        if document.startswith(b" ", value):
            value += 1
        if document.startswith(raw, value):
            return value
    return -1


def _strip_rebuilding(document: bytes) -> bytes:
    """Strip by decoding and encoding: for documents with unusual white space."""
    fields: dict[str, Any] = _fields_decoder.decode(document)
    choices = msgspec.json.decode(fields["choices"], type=list[dict[str, Raw]])
    for choice in choices:
        if "logprobs" in choice:
            choice["logprobs"] = NULL
    fields["choices"] = choices
    return _encoder.encode(fields)


def with_field(document: bytes, name: bytes, value: bytes) -> bytes:
    """Return a JSON object with one more field at its end.

    Args:
        document: A valid JSON object with at least one field.
        name: The field's name, without quotes.
        value: Its JSON value.
    """
    return b'%s,"%s":%s}' % (document[: document.rindex(b"}")], name, value)
