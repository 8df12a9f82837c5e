"""What is read of JSON documents: their shapes, and the decoders of these.

They are apart from the modules that use them because those may be compiled, and msgspec reads the shapes
from annotations that only an interpreted class keeps.
"""

from __future__ import annotations

from msgspec import UNSET, Raw, Struct, UnsetType, field
from msgspec.json import Decoder

__all__ = [
    "ABSENT",
    "NULL",
    "AfterScore",
    "Answer",
    "Choice",
    "RequestHead",
    "Usage",
    "answer_decoder",
    "choices_decoder",
    "choosing_decoder",
    "chunk_head_decoder",
    "head_decoder",
    "logprobs_decoder",
    "rest_decoder",
]

ABSENT = Raw(b"")
NULL = Raw(b"null")


class _StreamOptions(Struct, gc=False):
    include_usage: bool | None = None


class RequestHead(Struct, gc=False):
    """The fields of a request that routing depends on."""

    model: str
    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream_options: _StreamOptions | None = None
    logprobs: bool | int | UnsetType | None = UNSET
    messages: Raw = ABSENT
    prompt: Raw = ABSENT
    tools: Raw = ABSENT
    response_format: Raw = ABSENT


class _Choices(Struct, gc=False):
    n: int | None = None


head_decoder = Decoder(RequestHead)
choices_decoder = Decoder(_Choices)


class Usage(Struct, gc=False):
    """Tokens that the engine counted."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Choice(Struct, gc=False):
    """One choice of an answer, or of a stream's chunk."""

    index: int = 0
    logprobs: Raw = NULL


class Answer(Struct, gc=False):
    """An engine's answer, or one chunk of a streamed one, as far as it is read here.

    Attributes:
        choices: The choices; a stream's usage chunk has none.
        usage: The engine's count of tokens, if it is there.
        error: An engine's error in the place of an answer; `null` otherwise.
    """

    choices: list[Choice] = field(default_factory=list)
    usage: Usage | None = None
    error: Raw = NULL


answer_decoder = Decoder(Answer)


class _RestChoice(Struct, gc=False):
    logprobs: UnsetType | None = UNSET


class _Rest(Struct, gc=False):
    """An answer without the log-probabilities' value."""

    choices: list[_RestChoice]
    usage: Usage | None = None


rest_decoder = Decoder(_Rest)


class _Token(Struct, gc=False):
    logprob: float


class _Logprobs(Struct, gc=False):
    """`logprobs` of a choice: `content` in chat completions, `token_logprobs` in completions."""

    content: list[_Token] | None = None
    token_logprobs: list[float | None] | None = None


class _Candidates(Struct, gc=False):
    logprob: float
    top_logprobs: list[_Token] | None = None


class _Choosing(Struct, gc=False):
    """`logprobs` of a choice with each token's candidates."""

    content: list[_Candidates] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


logprobs_decoder = Decoder(_Logprobs | None)
choosing_decoder = Decoder(_Choosing | None)


class _ChunkHead(Struct):
    """What a stream's own chunk repeats of the engine's."""

    id: Raw = NULL
    object: Raw = NULL
    created: Raw = NULL
    model: Raw = NULL


chunk_head_decoder = Decoder(_ChunkHead)


class AfterScore(Struct, rename="camel"):
    """What the `cascadia` object says after the score, in this order."""

    threshold: float | None
    path: str
    plan: str
    policy_revision: int
    ladder: int | UnsetType = UNSET
