"""Kubernetes objects, listed and watched through the API.

The protocol is the usual one: list, then watch from the list's resource version; when the watch ends,
watch on; when its version is too old (410), or after an error, list again; and list again every few
minutes, whatever happens. Kubernetes' own client would cost more memory than the rest of the router
together, so this is a few lines over asyncio's streams.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Protocol
from urllib.parse import quote, urlsplit

import httptools
import msgspec
from msgspec import Struct

from cascadia_api.errors import InputError, Problem
from cascadia_router.json_log import fields

__all__ = ["ApiServer", "ListWatch", "Watcher"]

log = logging.getLogger("cascadia.router.watch")

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_MAX_LINE = 4 * 1024 * 1024
"""Longest watch event that is taken; etcd holds objects of at most 1.5 MiB."""
_MAX_LIST = 64 * 1024 * 1024
"""Longest list that is taken."""


@dataclass(frozen=True, slots=True)
class ApiServer:
    """Where the API server is and how to speak to it.

    In a pod all of it is found where kubelet puts it. Outside, the environment names it:
    ``CASCADIA_API_SERVER`` (a URL), ``CASCADIA_API_TOKEN_FILE``, ``CASCADIA_API_CA_FILE``,
    ``CASCADIA_API_CLIENT_CERT_FILE`` and ``CASCADIA_API_CLIENT_KEY_FILE``.

    Attributes:
        url: ``https://host:port``, or http.
        token_file: File with a bearer token, read anew for each connection, since it is rotated.
        ca_file: Certificate authority of the server.
        cert_file: Client certificate.
        key_file: Its key.
    """

    url: str
    token_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> ApiServer:
        """Find the API server.

        Raises:
            InputError: This is no pod, and the environment does not name a server.
        """
        url = environment.get("CASCADIA_API_SERVER")
        host = environment.get("KUBERNETES_SERVICE_HOST")
        if url:

            def named(variable: str) -> Path | None:
                value = environment.get(variable)
                return Path(value) if value else None

            return cls(
                url,
                named("CASCADIA_API_TOKEN_FILE"),
                named("CASCADIA_API_CA_FILE"),
                named("CASCADIA_API_CLIENT_CERT_FILE"),
                named("CASCADIA_API_CLIENT_KEY_FILE"),
            )
        if not host:
            message = "needs a pod's service account, or CASCADIA_API_SERVER in the environment"
            raise InputError(Problem("policyConfigMap", message))
        if ":" in host:
            host = f"[{host}]"
        port = environment.get("KUBERNETES_SERVICE_PORT", "443")
        return cls(f"https://{host}:{port}", _ACCOUNT / "token", _ACCOUNT / "ca.crt")

    def tls(self) -> ssl.SSLContext | None:
        """TLS settings; None for http.

        Raises:
            OSError: A certificate or key cannot be read.
        """
        if not self.url.startswith("https:"):
            return None
        context = ssl.create_default_context(cafile=str(self.ca_file) if self.ca_file else None)
        if self.cert_file is not None:
            context.load_cert_chain(str(self.cert_file), str(self.key_file) if self.key_file else None)
        return context


class _Metadata(Struct, rename="camel"):
    resource_version: str = ""


class _Object(Struct):
    metadata: _Metadata


class _List(Struct):
    metadata: _Metadata
    items: list[msgspec.Raw]


class _Event(Struct):
    type: str
    object: msgspec.Raw


class _Status(Struct):
    code: int = 500


class _ApiError(Exception):
    """The API server refused."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"the API server answered {status}")


class _Reply:
    """Takes an HTTP answer apart."""

    def __init__(self) -> None:
        self.complete = False
        self.body = bytearray()

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.complete = True


class Watcher(Protocol):
    """Takes what a `ListWatch` finds. Objects are JSON; one that cannot be decoded has the list made anew."""

    def listed(self, items: list[msgspec.Raw]) -> None:
        """All objects that there are."""

    def changed(self, kind: str, item: msgspec.Raw) -> None:
        """One object was ``ADDED``, ``MODIFIED`` or ``DELETED``."""


class ListWatch:
    """Keeps a watcher at what the API server says."""

    WATCH_SECONDS = 300
    """How long the server keeps one watch open."""
    SILENCE_SECONDS = 330.0
    """Silence after which a watch counts as dead: the server should have closed it."""
    RELIST_SECONDS = 900.0
    """Longest trust in watches alone: then, at the end of one, everything is listed again."""
    ANSWER_SECONDS = 10.0
    """Longest wait for a connection, or for a list."""
    PAUSE_SECONDS = 0.1
    """Between watches, and the base of the back-off after errors."""
    LONGEST_BACK_OFF_SECONDS = 30.0

    def __init__(self, server: ApiServer, path: str, watcher: Watcher, what: str) -> None:
        """Prepare.

        Args:
            server: The API server.
            path: Collection to list, with a query that holds a selector.
            watcher: Takes what is found.
            what: What it is, for the log.
        """
        self._server = server
        self._path = path
        self._watcher = watcher
        self._what = what

    async def run(self) -> None:
        """List and watch until cancelled; every error is waited out."""
        failures = 0
        version: str | None = None
        listed_at = 0.0
        while True:
            try:
                if version is None or monotonic() - listed_at > self.RELIST_SECONDS:
                    version = await self._list()
                    listed_at = monotonic()
                async for seen in self._watch(version):
                    version = seen
                    failures = 0
                await asyncio.sleep(self.PAUSE_SECONDS)
            except (OSError, _ApiError, msgspec.DecodeError, httptools.HttpParserError, EOFError) as error:
                version = None
                failures += 1
                back_off = min(self.PAUSE_SECONDS * 2 ** min(failures, 16), self.LONGEST_BACK_OFF_SECONDS)
                log.warning(
                    "watch interrupted",
                    extra=fields(watched=self._what, reason=str(error), retrySeconds=back_off),
                )
                # Spread the routers, which all lose the same server.
                await asyncio.sleep(back_off * random.uniform(0.5, 1.0))  # noqa: S311

    async def _list(self) -> str:
        """Take all objects as they are; return the list's resource version."""
        document = bytearray()
        async for piece in self._get(self._path, self.ANSWER_SECONDS):
            document += piece
            if len(document) > _MAX_LIST:
                raise EOFError("a list is too long")
        found = msgspec.json.decode(document, type=_List)
        self._watcher.listed(found.items)
        return found.metadata.resource_version

    async def _watch(self, version: str) -> AsyncIterator[str]:
        """Follow changes from a resource version on; yield each event's version."""
        path = (
            f"{self._path}&watch=1&allowWatchBookmarks=true&resourceVersion={quote(version)}"
            f"&timeoutSeconds={self.WATCH_SECONDS}"
        )
        rest = b""
        async for piece in self._get(path, self.SILENCE_SECONDS):
            *lines, rest = (rest + piece).split(b"\n")
            if len(rest) > _MAX_LINE:
                raise EOFError("a watch event is too long")
            for line in lines:
                event = msgspec.json.decode(line, type=_Event)
                if event.type == "ERROR":
                    raise _ApiError(msgspec.json.decode(event.object, type=_Status).code)
                if event.type != "BOOKMARK":
                    self._watcher.changed(event.type, event.object)
                yield msgspec.json.decode(event.object, type=_Object).metadata.resource_version

    async def _get(self, path: str, silence: float) -> AsyncIterator[bytes]:
        """GET a path; yield the body as it comes.

        Args:
            path: Target.
            silence: Longest wait for the next bytes, s.

        Raises:
            OSError: The server cannot be reached, or is silent too long.
            _ApiError: It refused.
            EOFError: It broke off.
        """
        url = urlsplit(self._server.url)
        tls = self._server.tls()
        port = url.port or (443 if tls else 80)
        async with asyncio.timeout(self.ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(url.hostname, port, ssl=tls)
        try:
            lines = [f"GET {path} HTTP/1.1", f"Host: {url.netloc}", "Accept: application/json", "Connection: close"]
            if self._server.token_file is not None:
                lines.append(f"Authorization: Bearer {self._server.token_file.read_text().strip()}")
            writer.write("\r\n".join((*lines, "", "")).encode())
            reply = _Reply()
            parser = httptools.HttpResponseParser(reply)
            while not reply.complete:
                async with asyncio.timeout(silence):
                    data = await reader.read(65536)
                if not data:
                    raise EOFError("the API server broke off")
                parser.feed_data(data)
                status = parser.get_status_code()
                if status and status != 200:
                    raise _ApiError(status)
                if reply.body:
                    yield bytes(reply.body)
                    reply.body.clear()
        finally:
            writer.transport.abort()
