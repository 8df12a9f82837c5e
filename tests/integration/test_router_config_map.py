"""The policy from a watched ConfigMap: on a real API server, and on one that misbehaves."""

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from cascadia_api.errors import InputError
from cascadia_api.policy import Endpoint, RouterConfig, RouterPolicy, StagePolicy, encode_policy
from cascadia_router.config_map_watch import ConfigMapWatch
from cascadia_router.list_watch import ApiServer, ListWatch
from cascadia_router.policy_store import PolicyStore
from cascadia_router.server import Router
from tests.support.control_plane import ControlPlane
from tests.support.router_account import api_server, following, router_token
from tests.support.router_chain import eventually, http
from tests.support.scripted_engine import chunk, http_response


def document(revision: int) -> str:
    stage = StagePolicy(
        name="only", served_model_name="m", endpoints=[Endpoint(replica="only-0", address="127.0.0.1:1")]
    )
    policy = RouterPolicy(cascade="chat", policy_revision=revision, plan_id=f"plan-{revision}", stages=[stage])
    return encode_policy(policy).decode()


def watching(server: ApiServer, name: str) -> contextlib.AbstractAsyncContextManager[PolicyStore]:
    return following(lambda store: ConfigMapWatch(name, store, server).run())


async def revision_is(store: PolicyStore, revision: int) -> None:
    await eventually(
        lambda: store.current is not None and store.current.revision == revision, f"revision {revision}", 20
    )


async def test_a_router_follows_its_config_map(
    control_plane: ControlPlane, api_client: client.ApiClient, namespace: str, tmp_path: Path
) -> None:
    core: Any = client.CoreV1Api(api_client)
    rule = {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["chat-policy"]}
    token = await asyncio.to_thread(router_token, api_client, namespace, rule)
    server = api_server(control_plane, tmp_path, token)

    def config_map(**data: str) -> dict[str, Any]:
        return {"metadata": {"name": "chat-policy"}, "data": data}

    async def replace(**data: str) -> None:
        await asyncio.to_thread(core.replace_namespaced_config_map, "chat-policy", namespace, config_map(**data))

    async with watching(server, f"{namespace}/chat-policy") as store:
        await asyncio.to_thread(
            core.create_namespaced_config_map, namespace, config_map(**{"policy.json": document(1)})
        )
        await revision_is(store, 1)
        other = {"metadata": {"name": "other"}, "data": {"policy.json": document(99)}}
        await asyncio.to_thread(core.create_namespaced_config_map, namespace, other)
        await replace(**{"policy.json": document(2)})
        await revision_is(store, 2)
        await replace(**{"policy.json": '{"policyRevision": 3}'})
        await eventually(lambda: store.rejected == 1, "the invalid one is refused")
        await replace(**{"else": "x"})
        await asyncio.to_thread(core.delete_namespaced_config_map, "chat-policy", namespace)
        await asyncio.to_thread(
            core.create_namespaced_config_map, namespace, config_map(**{"policy.json": document(4)})
        )
        await revision_is(store, 4)
    async with watching(server, f"{namespace}/chat-policy") as store:
        await revision_is(store, 4)  # by listing


class ScriptedApi:
    """An API server that does what a test says: one script a connection, the last one for ever."""

    def __init__(self, *scripts: Any, port: int = 0) -> None:
        self.scripts = list(scripts)
        self._port = port
        self.paths: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> ApiServer:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        return ApiServer(f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}")

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await asyncio.sleep(0)  # a connection that is just being accepted becomes a task, too
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # A task that is cancelled before its first step closes nothing itself.
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.paths.append(head.split(b" ")[1].decode())
            script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
            for piece in script:
                if piece is None or isinstance(piece, asyncio.Event):
                    await (piece or asyncio.Event()).wait()
                    continue
                writer.write(piece)
                await writer.drain()
        finally:
            writer.close()


def listed(revision: int | None, version: str) -> list[bytes]:
    items = [] if revision is None else [{"metadata": {}, "data": {"policy.json": document(revision)}}]
    return [http_response(200, json.dumps({"metadata": {"resourceVersion": version}, "items": items}).encode())]


WATCH_HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def event(kind: str, version: str, revision: int | None = None) -> bytes:
    data = {} if revision is None else {"data": {"policy.json": document(revision)}}
    return json.dumps({"type": kind, "object": {"metadata": {"resourceVersion": version}, **data}}).encode() + b"\n"


async def test_a_watch_goes_on_where_it_ended_and_lists_again_after_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ListWatch, "PAUSE_SECONDS", 0.01)
    expired = b'{"type": "ERROR", "object": {"kind": "Status", "code": 410}}\n'
    split = event("MODIFIED", "12", 2)
    api = ScriptedApi(
        listed(1, "10"),
        [WATCH_HEAD, chunk(event("BOOKMARK", "11") + split[:30]), chunk(split[30:]), b"0\r\n\r\n"],  # ends as it should
        [WATCH_HEAD, chunk(expired)],
        listed(3, "20"),
        [WATCH_HEAD, chunk(b"rubbish\n")],
        [b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"],
        [b"not http at all\r\n\r\n"],
        [],
        [http_response(200, b"{}")],
        listed(None, "30"),
        [WATCH_HEAD, chunk(event("ADDED", "31", 4)), None],
    )
    async with api as server, watching(server, "ns/chat policy") as store:
        await revision_is(store, 4)
    base = "/api/v1/namespaces/ns/configmaps?fieldSelector=metadata.name%3Dchat%20policy"
    versions = [path.partition("resourceVersion=")[2].partition("&")[0] for path in api.paths]
    assert all(path.startswith(base) for path in api.paths)
    assert versions == ["", "10", "12", "", "20", "", "", "", "", "", "30"]


async def test_a_server_that_comes_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ListWatch, "PAUSE_SECONDS", 0.01)
    async with ScriptedApi([]) as gone:
        port = int(gone.url.rpartition(":")[2])
    async with watching(gone, "ns/chat") as store:
        await asyncio.sleep(0)
        async with ScriptedApi(listed(7, "1"), [WATCH_HEAD, None], port=port):
            await revision_is(store, 7)


async def test_a_router_starts_from_its_file_and_follows_the_config_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()
    (tmp_path / "policy.json").write_text(document(1))
    (tmp_path / "secret").write_text("0123456789abcdef")
    async with ScriptedApi(listed(None, "1"), [WATCH_HEAD, gate, chunk(event("ADDED", "2", 5)), None]) as server:
        monkeypatch.setenv("CASCADIA_API_SERVER", server.url)
        config = RouterConfig(
            client="127.0.0.1:0",
            admin="127.0.0.1:0",
            policy_file=str(tmp_path / "policy.json"),
            policy_config_map="ns/chat",
            peer_secret_file=str(tmp_path / "secret"),
        )
        router = Router(config)
        try:
            await router.start()
            assert (await http(router.addresses["admin"], "/cascade/policy")).json["policyRevision"] == 1
            gate.set()
            await revision_is(router.node.policies, 5)
        finally:
            await router.close()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"CASCADIA_API_SERVER": "http://a:1"}, ApiServer("http://a:1")),
        (
            {"CASCADIA_API_SERVER": "https://a:1", "CASCADIA_API_TOKEN_FILE": "t", "CASCADIA_API_CA_FILE": "c"},
            ApiServer("https://a:1", Path("t"), Path("c")),
        ),
        (
            {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"},
            ApiServer(
                "https://[fd00::1]:6443",
                Path("/var/run/secrets/kubernetes.io/serviceaccount/token"),
                Path("/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"),
            ),
        ),
    ],
)
def test_where_the_api_server_is(environment: dict[str, str], expected: ApiServer) -> None:
    assert ApiServer.from_environment(environment) == expected


def test_no_api_server_is_an_input_error() -> None:
    with pytest.raises(InputError, match="CASCADIA_API_SERVER"):
        ApiServer.from_environment({})
