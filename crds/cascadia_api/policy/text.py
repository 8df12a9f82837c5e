"""Texts in what routers are told."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

__all__ = ["Address", "NonEmpty", "SecretFile"]

NonEmpty = Annotated[str, Meta(min_length=1, max_length=253)]
Address = Annotated[str, Meta(pattern=r"^.{1,253}:[0-9]{1,5}$")]
"""``host:port``."""
SecretFile = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][-._A-Za-z0-9]{0,506}$")]
"""Name of a file, without a folder."""
