"""The prompts that a calibration set is made from: JSON lines.

::

    {"id": "gsm8k-17", "prompt": "How many …?", "reference": "18"}
    {"id": "chat-3", "messages": [{"role": "user", "content": "…"}], "body": {"temperature": 0.7, "max_tokens": 800}}
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Struct

from cascadia_api.errors import InputError, Problem
from cascadia_router.completion_body import BodyError, CompletionRequest

__all__ = ["Prompt", "parse_prompts"]

_CHAT = b"/v1/chat/completions"
_MOST_PROBLEMS = 10
_OURS = {
    "model": "every stage is asked in turn",
    "messages": "give them beside `body`",
    "logprobs": "they are always asked for",
    "top_logprobs": "they are not needed",
    "stream": "answers are taken whole",
    "n": "one answer is scored and judged",
}


class _Line(Struct, forbid_unknown_fields=True):
    id: str
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    reference: str | int | float | list[str | int | float] | None = None
    body: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt.

    Attributes:
        id: Unique in the file.
        body: What every stage is asked, but for `model` and `logprobs`.
        references: Right answers: any of them will do. Empty where none is known.
        digest: Of everything above but the id: tells a changed prompt from one that was answered before.
        needs: What a model must be capable of beyond text, as routers see it: they skip those that lack it.
    """

    id: str
    body: Mapping[str, Any]
    references: tuple[str, ...]
    digest: str
    needs: tuple[str, ...] = ()

    @property
    def question(self) -> str:
        """The conversation as text, for a judge to read."""
        messages = self.body["messages"]
        if len(messages) == 1:
            return _text(messages[0])
        return "\n\n".join(f"{message.get('role', 'user')}: {_text(message)}" for message in messages)


def parse_prompts(lines: Iterable[str], *, need_references: bool) -> list[Prompt]:
    """Read prompts; blank lines are ignored.

    Args:
        lines: JSONL.
        need_references: Whether every prompt must have a `reference`.

    Raises:
        InputError: With one problem for each wrong line, or because there is none.
    """
    decoder = msgspec.json.Decoder(_Line)
    prompts: dict[str, Prompt] = {}
    problems: list[Problem] = []
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            prompt = _prompt(decoder.decode(text), prompts, need_reference=need_references)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            deep = isinstance(error, RecursionError)
            problems.append(Problem(f"line {number}", "it is nested too deeply" if deep else str(error)))
            continue
        prompts[prompt.id] = prompt
    if len(problems) > _MOST_PROBLEMS:
        more = len(problems) - _MOST_PROBLEMS
        problems[_MOST_PROBLEMS:] = [Problem("", f"{more} more lines are wrong")]
    if problems:
        raise InputError(problems)
    if not prompts:
        raise InputError('no prompts: write one JSON object a line, as in {"id": "1", "prompt": "…", "reference": "…"}')
    return list(prompts.values())


def _prompt(line: _Line, earlier: Collection[str], *, need_reference: bool) -> Prompt:
    if not line.id:
        raise ValueError("id is empty")
    if line.id in earlier:
        raise ValueError(f"the id {line.id!r} stands on an earlier line too: ids must be unique")
    if (line.prompt is None) == (line.messages is None):
        raise ValueError("give exactly one of prompt and messages")
    messages = line.messages if line.messages is not None else [{"role": "user", "content": line.prompt}]
    if not messages:
        raise ValueError("messages is empty")
    for name in sorted(line.body.keys() & _OURS):
        raise ValueError(f"body.{name} cannot be given: {_OURS[name]}")
    given = line.reference if isinstance(line.reference, list) else [] if line.reference is None else [line.reference]
    references = tuple(str(reference).strip() for reference in given)
    if not all(references):
        raise ValueError("reference is empty: leave it out, or give the right answer")
    if need_reference and not references:
        raise ValueError("no reference, which --judge Reference compares answers with: add one, or use another --judge")
    body = {**line.body, "messages": messages}
    content = msgspec.json.encode([body, references], order="deterministic")
    digest = hashlib.sha256(content).hexdigest()[:16]
    return Prompt(line.id, body, references, digest, needs=_needs(body))


def _needs(body: Mapping[str, Any]) -> tuple[str, ...]:
    try:
        return tuple(sorted(CompletionRequest(_CHAT, msgspec.json.encode({"model": "any", **body})).needs))
    except BodyError as error:
        raise ValueError(str(error)) from None


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(str(part.get("text", f"[{part.get('type')}]")) for part in parts if isinstance(part, dict))
