"""Texts in what routers are told."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

__all__ = ["Address", "NonEmpty", "SecretFile", "check_port"]

_MOST_PORT = 65535
NonEmpty = Annotated[str, Meta(min_length=1, max_length=253)]
Address = Annotated[str, Meta(pattern=r"^.{1,253}:[0-9]{1,5}$")]
"""``host:port``; who holds one calls `check_port`."""
SecretFile = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][-._A-Za-z0-9]{0,506}$")]
"""Name of a file, without a folder."""


def check_port(name: str, address: str | None) -> None:
    """Check what a pattern cannot say of an `Address`.

    Raises:
        ValueError: Its port is above 65535; the message names the field.
    """
    if address is not None and int(address.rpartition(":")[2]) > _MOST_PORT:
        raise ValueError(f"{name}: {address}: a port is at most {_MOST_PORT}")
