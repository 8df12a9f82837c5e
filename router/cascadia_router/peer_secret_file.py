"""The file with the routers' secrets: one a line, the first one signs. It is read again when it changes."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from cascadia_api.errors import InputError, Problem
from cascadia_router.json_log import fields
from cascadia_router.signing import PeerSecrets

__all__ = ["PeerSecretFile"]

log = logging.getLogger("cascadia.router.secrets")

LEAST_SECRET_BYTES = 16
MOST_SECRETS = 4


class PeerSecretFile:
    """One watched file.

    Attributes:
        secrets: What it holds, or held when it was last in order.
    """

    POLL_SECONDS = 1.0
    """Wall s: a file system runs at the machine's speed."""

    def __init__(self, path: str) -> None:
        """Read it for the first time.

        Raises:
            InputError: It cannot be read, or a secret is too short.
        """
        self._path = Path(path)
        self._text = self._read()
        self._failing = ""
        self.secrets = PeerSecrets(self._text.split(b"\n"))

    def _read(self) -> bytes:
        try:
            text = self._path.read_bytes()
        except OSError as error:
            raise InputError(Problem("peerSecretFile", f"cannot read {self._path}: {error.strerror}")) from None
        lines = text.split(b"\n")
        secrets = [line.strip() for line in lines if line.strip()]
        if not 1 <= len(secrets) <= MOST_SECRETS:
            message = f"{self._path} has {len(secrets)} secrets: give 1 to {MOST_SECRETS}, one a line"
            raise InputError(Problem("peerSecretFile", message))
        short = min(map(len, secrets))
        if short < LEAST_SECRET_BYTES:
            message = f"a secret in {self._path} has {short} bytes: give at least {LEAST_SECRET_BYTES}"
            raise InputError(Problem("peerSecretFile", message))
        return b"\n".join(secrets)

    def read(self) -> None:
        """Take the secrets if the file has changed; what is not in order changes nothing."""
        try:
            text = self._read()
        except InputError as error:
            reason = str(error.problems[0])
            if reason != self._failing:
                self._failing = reason
                log.error("the routers' secrets cannot be used", extra=fields(reason=reason))  # noqa: TRY400
            return
        self._failing = ""
        if text != self._text:
            self._text = text
            self.secrets.use(text.split(b"\n"))
            log.info("secrets of the routers taken", extra=fields(secrets=text.count(b"\n") + 1))

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await asyncio.sleep(self.POLL_SECONDS)
            self.read()
