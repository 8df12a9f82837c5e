"""The client port's TLS certificate, read again when its files change.

A handshake takes the certificate that is in force when the client's hello arrives; connections that are
there keep theirs, so a rotation closes none. Files that do not fit (half replaced, another key) leave the
certificate as it was until they do.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path
from typing import TypeAlias

from cascadia_api.errors import InputError, Problem
from cascadia_api.policy import TlsFiles
from cascadia_router.json_log import fields

__all__ = ["Certificate"]

log = logging.getLogger("cascadia.router.tls")

_Stamp: TypeAlias = tuple[tuple[str, int, int, int], ...]


class Certificate:
    """A watched certificate with its key.

    Attributes:
        context: For the listener: hands each handshake to the certificate in force.
        rotations: How often another certificate came into force.
    """

    POLL_SECONDS = 0.5
    """Wall s: a file system runs at the machine's speed."""

    def __init__(self, files: TlsFiles) -> None:
        """Read it for the first time.

        Raises:
            InputError: The files cannot be read, or are no certificate and its key.
        """
        self._paths = (Path(files.certificate), Path(files.key))
        self.rotations = 0
        self._failing = ""
        try:
            self._seen = self._stamp()
            self.context = self._in_force = self._load()
        except (OSError, ssl.SSLError) as error:
            message = f"cannot use {files.certificate} and {files.key}: {_reason(error)}"
            raise InputError(Problem("tls", message)) from None
        self.context.sni_callback = self._choose

    def _choose(self, handshake: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:  # noqa: ARG002
        if self._in_force is not self.context:
            handshake.context = self._in_force

    def _stamp(self) -> _Stamp:
        # Where kubelet's links lead: both files of one version of the Secret.
        status = [(str(path.resolve()), path.stat()) for path in self._paths]
        return tuple((name, each.st_ino, each.st_mtime_ns, each.st_size) for name, each in status)

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.set_alpn_protocols(["http/1.1"])
        certificate, key = self._paths
        context.load_cert_chain(certificate.resolve(), key.resolve())
        return context

    def read(self) -> None:
        """Take the certificate if a file has changed."""
        try:
            stamp = self._stamp()
            if stamp == self._seen:
                return
            loaded = self._load()
            if self._stamp() != stamp:  # replaced while it was read: the next look takes it
                return
        except (OSError, ssl.SSLError) as error:
            reason = _reason(error)
            if reason != self._failing:
                self._failing = reason
                log.error("the new certificate cannot be used", extra=fields(reason=reason))  # noqa: TRY400
            return
        self._failing = ""
        self._seen = stamp
        self._in_force = loaded
        self.rotations += 1
        log.info("certificate taken", extra=fields(certificate=str(self._paths[0])))

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await asyncio.sleep(self.POLL_SECONDS)
            self.read()


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"no certificate and its key ({error.reason or error})"
    return f"{error.filename}: {error.strerror}"
