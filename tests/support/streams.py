"""Streams of two stages: how they are asked for, and what came."""

from __future__ import annotations

from typing import Any

from tests.support.router_chain import Reply, StageOf
from tests.support.scripted_engine import Behaviour, ScriptedEngine, answer

__all__ = ["CHAT", "chat", "text", "two_stages"]

CHAT = "/v1/chat/completions"


def chat(**extra: Any) -> dict[str, Any]:
    """A request for a stream."""
    return {"model": "chat", "stream": True, "messages": [{"role": "user", "content": "hello"}], **extra}


def two_stages(first: Behaviour | None = None, second: Behaviour | None = None) -> tuple[StageOf, StageOf]:
    """Two stages whose engines are sure of their answers unless told otherwise."""
    return (
        StageOf("small", 0.8, [ScriptedEngine("small", first or answer())]),
        StageOf("large", None, [ScriptedEngine("large", second or answer())]),
    )


def text(reply: Reply) -> str:
    """What the stream says."""
    pieces = [event["choices"][0]["delta"]["content"] for event in reply.events[:-1] if event.get("choices")]
    return "".join(pieces)
