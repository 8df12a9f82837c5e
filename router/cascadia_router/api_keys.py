"""Clients' API keys: read from files, kept as SHA-256 digests, read again when the files change.

A source is a file or a folder of files, as a Secret is mounted. A line of a file is a key, or
``sha256:`` and the hex digest of one, so that the file itself need not hold the secret; empty lines and
lines that begin with ``#`` do not count. The file's name is the key's id: what metrics and limits know it
by. Several lines of a file are several keys of the same id, so a client's key is changed without a pause
by a second line, and later by taking the first one out.

Polling sees every way in which a file is replaced (`policy_file`). A source that cannot be read leaves
the keys as they were; one that is read and holds none lets nobody in.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from cascadia_router.json_log import fields

__all__ = ["A_KEY", "LEAST_KEY_CHARACTERS", "MOST_KEYS", "ApiKeys", "digest_of", "holds_a_key"]

log = logging.getLogger("cascadia.router.keys")

LEAST_KEY_CHARACTERS = 16
"""A digest of a shorter key could be found by trying."""
MOST_KEYS = 10_000
_MOST_FILE_BYTES = 1024 * 1024
_DIGEST = re.compile(rb"sha256:([0-9a-fA-F]{64})")
_KEY = re.compile(rb"[!-~]{%d,512}" % LEAST_KEY_CHARACTERS)
A_KEY = f"a key of {LEAST_KEY_CHARACTERS} to 512 visible ASCII characters, or sha256: and 64 hex digits"
_Stamp: TypeAlias = tuple[tuple[str, int, int, int], ...]


def digest_of(key: bytes) -> bytes:
    """What a key is known by.

    A look-up by digest takes no longer for a key that is nearly right: which bytes of a digest agree tells
    nothing about the key. Keys are long and random, so they need no salt and no slow hash.
    """
    return hashlib.sha256(key).digest()


class ApiKeys:
    """The keys of all sources.

    Attributes:
        ids: The id of each key, by the key's digest.
        known: Whether the sources have been read; before, it is not known who may come in.
    """

    POLL_SECONDS = 0.5
    """Wall s: a file system runs at the machine's speed."""

    def __init__(self, sources: Sequence[str]) -> None:
        self.ids: dict[bytes, str] = {}
        self.known = False
        self._sources = [Path(source) for source in sources]
        self._seen: _Stamp | None = None
        self._failing = ""

    def read(self) -> None:
        """Take the keys if a file has changed."""
        try:
            files = [file for source in self._sources for file in _files(source)]
            stamp = _stamp(files)
            if stamp == self._seen and self.known:
                return
            ids = _read(files)
            if _stamp(files) != stamp:  # replaced while it was read: the next look takes it
                return
        except OSError as error:
            reason = f"{error.filename}: {error.strerror}"
            if reason != self._failing:
                self._failing = reason
                log.error("API keys cannot be read", extra=fields(reason=reason, inForce=len(self.ids)))  # noqa: TRY400
            return
        self._failing = ""
        self._seen = stamp
        self.known = True
        self.ids = ids
        level = logging.INFO if ids else logging.ERROR
        log.log(level, "API keys read", extra=fields(keys=len(ids), clients=sorted(set(ids.values()))[:100]))

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await asyncio.sleep(self.POLL_SECONDS)
            self.read()


def _files(source: Path) -> list[Path]:
    """The files of a source; names that begin with a dot are kubelet's own.

    Raises:
        OSError: It is not there.
    """
    if not source.is_dir():
        source.stat()
        return [source]
    return sorted(file for file in source.iterdir() if not file.name.startswith(".") and file.is_file())


def _stamp(files: Sequence[Path]) -> _Stamp:
    status = [(str(file), file.stat()) for file in files]
    return tuple((name, each.st_ino, each.st_mtime_ns, each.st_size) for name, each in status)


def holds_a_key(source: Path) -> bool:
    """Whether a source holds a key at all.

    Raises:
        OSError: It cannot be read.
    """
    return any(digest is not None for file in _files(source) for _, digest in _lines(file))


def _read(files: Sequence[Path]) -> dict[bytes, str]:
    ids: dict[bytes, str] = {}
    for file in files:
        for number, digest in _lines(file):
            if digest is None or len(ids) >= MOST_KEYS:
                reason = f"not {A_KEY}" if digest is None else f"more than {MOST_KEYS} keys"
                log.error("API key refused", extra=fields(file=file.name, line=number, reason=reason))
            else:
                ids[digest] = file.name
    return ids


def _lines(file: Path) -> Iterator[tuple[int, bytes | None]]:
    """The numbers of the lines that should hold a key, each with the key's digest if it does."""
    with file.open("rb") as opened:
        lines = opened.read(_MOST_FILE_BYTES).splitlines()
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text and not text.startswith(b"#"):
            yield number, _digest(text)


def _digest(text: bytes) -> bytes | None:
    """Digest of the key that a line holds or names; None if it does neither."""
    if text.startswith(b"sha256:"):
        named = _DIGEST.fullmatch(text)
        return bytes.fromhex(named[1].decode()) if named is not None else None
    return digest_of(text) if _KEY.fullmatch(text) else None
