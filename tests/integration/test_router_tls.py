"""TLS at the client port, with real certificates: what is spoken, and rotations under load."""

import asyncio
import contextlib
import json
import ssl
from collections import Counter
from pathlib import Path

import pytest

from cascadia_api.errors import InputError
from cascadia_api.policy import TlsFiles
from cascadia_router.certificate import Certificate
from tests.support.certificates import Authority
from tests.support.mounted_secret import MountedSecret
from tests.support.router_chain import Chain, Reply, StageOf, chain_of, eventually, http, read_reply
from tests.support.scripted_engine import ScriptedEngine, answer

BODY = json.dumps({"model": "chat", "messages": []}).encode()
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def mount(tmp_path: Path, authority: Authority) -> MountedSecret:
    mount = MountedSecret(tmp_path / "tls")
    renew(mount, authority, "first")
    return mount


def renew(mount: MountedSecret, authority: Authority, name: str) -> None:
    certificate, key = authority.issue(name)
    mount.put(**{"tls.crt": certificate, "tls.key": key})


def files(mount: MountedSecret) -> TlsFiles:
    return TlsFiles(certificate=str(mount.path / "tls.crt"), key=str(mount.path / "tls.key"))


def trusting(authority: Authority, **versions: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=authority.certificate.decode())
    context.set_alpn_protocols(["h2", "http/1.1"])
    for name, version in versions.items():
        setattr(context, name, version)
    return context


class Connection:
    """A client's TLS connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        handshake = writer.get_extra_info("ssl_object")
        self.version = handshake.version()
        self.protocol = handshake.selected_alpn_protocol()
        self.name = dict(field[0] for field in handshake.getpeercert()["subject"])["commonName"]

    @classmethod
    async def to(cls, chain: Chain, context: ssl.SSLContext, name: str | None = None) -> "Connection":
        host, _, port = chain.client("only").rpartition(":")
        async with asyncio.timeout(20):
            return cls(*await asyncio.open_connection(host, int(port), ssl=context, server_hostname=name or host))

    async def ask(self) -> Reply:
        self.writer.write(POST)
        async with asyncio.timeout(20):
            return await read_reply(self.reader)

    def close(self) -> None:
        self.writer.transport.abort()


async def test_what_is_spoken(tmp_path: Path, mount: MountedSecret, authority: Authority) -> None:
    stage = StageOf("only", None, [ScriptedEngine("only", answer())])
    async with chain_of(tmp_path, stage, config={"tls": files(mount)}) as chain:
        for version, spoken in ((ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")):
            client = await Connection.to(chain, trusting(authority, maximum_version=version), "localhost")
            assert (client.version, client.protocol, client.name) == (spoken, "http/1.1", "first")
            assert [(await client.ask()).status for _ in range(3)] == [200] * 3
            client.close()
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await Connection.to(chain, old)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await http(chain.client("only"), "/healthz")
        assert (await http(chain.admin("only"), "/readyz")).status == 200, "probes stay plain"


async def test_rotation_under_load_closes_nothing(tmp_path: Path, mount: MountedSecret, authority: Authority) -> None:
    stage = StageOf("only", None, [ScriptedEngine("only", answer())])
    async with chain_of(tmp_path, stage, config={"tls": files(mount)}) as chain:
        certificate = chain.router("only")._certificate
        assert certificate is not None
        context = trusting(authority)
        kept, names, replies = await Connection.to(chain, context), Counter[str](), Counter[int]()

        async def call_on() -> None:
            while True:
                client = await Connection.to(chain, context)
                names[client.name] += 1
                replies[(await client.ask()).status] += 1
                client.close()

        callers = [asyncio.create_task(call_on()) for _ in range(3)]
        try:
            for rotation, name in enumerate(("second", "third"), 1):
                await eventually(lambda: replies.total() > 5, "requests before")
                renew(mount, authority, name)
                await eventually(lambda n=rotation: certificate.rotations == n, "the new certificate is taken")  # type: ignore[misc]
                await eventually(lambda n=name: names[n] > 5, "requests after")  # type: ignore[misc]
                assert (await kept.ask()).status == 200
        finally:
            for caller in callers:
                caller.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*callers)
        assert set(replies) == {200}
        assert set(names) == {"first", "second", "third"}
        kept.close()


async def test_a_slow_reader_and_a_broken_hello_harm_nobody(
    tmp_path: Path, mount: MountedSecret, authority: Authority
) -> None:
    stage = StageOf("only", None, [ScriptedEngine("only", answer())])
    async with chain_of(tmp_path, stage, config={"tls": files(mount)}) as chain:
        host, _, port = chain.client("only").rpartition(":")
        for hello in (b"", b"\x16\x03\x01\xff\xff", b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", b"\x80" * 3000):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(hello)
            await writer.drain()
            writer.transport.abort()
        client = await Connection.to(chain, trusting(authority))
        client.writer.write(POST[:-3] + b"\xff\xfe\xfd")
        assert (await read_reply(client.reader)).status == 400
        assert (await client.ask()).status == 200
        client.close()


def test_what_does_not_fit_changes_nothing(mount: MountedSecret, authority: Authority) -> None:
    certificate = Certificate(files(mount))
    first, _ = authority.issue("other")
    _, key = authority.issue("another")
    for entries in ({"tls.crt": first, "tls.key": key}, {"tls.crt": first}, {"tls.crt": b"", "tls.key": b"x"}):
        mount.put(**entries)
        certificate.read()
        assert certificate.rotations == 0
    renew(mount, authority, "good")
    certificate.read()
    assert certificate.rotations == 1


def test_a_router_without_a_certificate_does_not_start(tmp_path: Path, mount: MountedSecret) -> None:
    for wrong in (str(tmp_path / "none"), str(mount.path / "tls.key")):
        with pytest.raises(InputError, match="tls"):
            Certificate(TlsFiles(certificate=wrong, key=str(mount.path / "tls.key")))
