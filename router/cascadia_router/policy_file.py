"""The policy from a file, watched by polling what its path leads to.

Polling sees every way in which a file is replaced: rename, and the swap of a directory's symbolic link
by which kubelet refreshes a mounted ConfigMap, which inotify on the file misses.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from cascadia_router.json_log import fields
from cascadia_router.policy_store import PolicyStore

__all__ = ["PolicyFile"]

log = logging.getLogger("cascadia.router.policy")


class PolicyFile:
    """One watched file."""

    POLL_SECONDS = 0.25
    """Wall s: a file system runs at the machine's speed."""

    def __init__(self, path: str, policies: PolicyStore) -> None:
        self._path = Path(path)
        self._policies = policies
        self._seen: tuple[int, int, int] | None = None

    def read(self) -> None:
        """Take the file's policy if the file has changed; a missing file changes nothing."""
        try:
            status = self._path.stat()
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
            if seen == self._seen:
                return
            document = self._path.read_bytes()
        except OSError as error:
            if self._seen is not None:
                self._seen = None
                log.warning("policy file cannot be read", extra=fields(path=str(self._path), reason=str(error)))
            return
        self._seen = seen
        self._policies.take(document, str(self._path))

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            self.read()
            await asyncio.sleep(self.POLL_SECONDS)
