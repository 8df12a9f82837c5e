"""Which conversation a request belongs to: what its engine's prefix cache, and the session latch, go by.

A conversation is known by how it begins: by its messages up to the first of the user, or by the beginning of
a prompt. That stays the same while a conversation grows. A client that names it (`x-cascadia-session`) is
believed, within its own API key.
"""

from __future__ import annotations

import re
from hashlib import blake2b

import msgspec
from msgspec import Raw, Struct

__all__ = ["SESSION", "beginning_key", "session_key"]

SESSION = b"x-cascadia-session"
_NAMED = re.compile(rb"[!-~]{1,128}")


class _Message(Struct, gc=False):
    role: str
    content: Raw = Raw(b"")


_messages_decoder = msgspec.json.Decoder(list[_Message])


def _key(*parts: bytes) -> int:
    return int.from_bytes(blake2b(b"\0".join(parts), digest_size=8).digest())


def beginning_key(content: bytes, most: int) -> int:
    """Key of how a conversation begins.

    Args:
        content: JSON of its messages, or of its prompt.
        most: Bytes of it that count.
    """
    begun = bytearray()
    try:
        messages = _messages_decoder.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError):  # a prompt, or what the engine will refuse
        return _key(content[:most])
    for message in messages:
        begun += b"%s\0%s\0" % (message.role.encode(), bytes(message.content))
        if message.role == "user" or len(begun) >= most:
            break
    return _key(bytes(begun[:most]))


def session_key(content: bytes, most: int, named: bytes | None, client: str) -> int:
    """Key of a conversation of one client.

    Args:
        content: JSON of its messages, or of its prompt.
        most: Bytes of it that count.
        named: What the client calls it, if it says so.
        client: Id of its API key; empty where there are none.
    """
    if named is not None and _NAMED.fullmatch(named):
        return _key(b"named", client.encode(), named)
    return _key(b"begun", client.encode(), beginning_key(content, most).to_bytes(8))
