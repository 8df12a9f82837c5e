"""A router as kubelet, the operator and a shell see it: probes, drain, signals, configuration, policy file."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cascadia_api.policy import encode_policy
from cascadia_api.report import WorkloadReport
from cascadia_router import json_log
from cascadia_router.main import main
from cascadia_router.server import Router
from tests.support.router_chain import Chain, StageOf, chain_of, eventually, http
from tests.support.scripted_engine import ScriptedEngine, answer, hang

CHAT = "/v1/chat/completions"
BODY = {"model": "chat", "messages": [{"role": "user", "content": "hello"}]}


def stages(first: Any = None) -> tuple[StageOf, StageOf]:
    return (
        StageOf("small", 0.8, [ScriptedEngine("small", first or answer())]),
        StageOf("large", None, [ScriptedEngine("large")]),
    )


async def status_of(address: str, path: str) -> int:
    return (await http(address, path)).status


async def test_probes_follow_the_engine_and_the_policy(tmp_path: Path) -> None:
    engine = ScriptedEngine("small", ready=503)
    async with chain_of(tmp_path, StageOf("small", None, [engine]), clock_scale=10.0, wait=False) as chain:
        admin, router = chain.admin("small"), chain.router("small")
        own = router.node.own
        assert own is not None
        assert await status_of(admin, "/healthz") == 200
        assert (await http(admin, "/readyz")).body == b"the engine is not ready\n"
        assert await status_of(admin, "/engine/started") == 503
        assert await status_of(admin, "/engine/live") == 503
        engine.ready = 200
        await eventually(lambda: own.ready, "the engine is seen ready")
        for path in ("/readyz", "/engine/started", "/engine/live"):
            assert await status_of(admin, path) == 200
        assert (await http(admin, "/engine/metrics")).body == b"sglang:num_running_reqs 3\n"
        engine.healthy = 503
        assert await status_of(admin, "/engine/live") == 503
        assert await status_of(admin, "/readyz") == 200
        await engine.stop()
        await eventually(lambda: not own.ready, "the engine is seen gone")
        assert await status_of(admin, "/readyz") == 503
        assert await status_of(admin, "/engine/metrics") == 503
        assert await status_of(admin, "/engine/started") == 200, "a start-up probe is about the past"
        assert await status_of(admin, "/healthz") == 200


async def test_an_engine_without_ready_is_asked_for_its_health(tmp_path: Path) -> None:
    """llama.cpp's server has no `/ready`."""
    async with chain_of(tmp_path, StageOf("small", None, [ScriptedEngine("small", ready=404)])) as chain:
        assert await status_of(chain.admin("small"), "/readyz") == 200


async def test_entry_routers_and_followers_have_probes_too(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *stages()) as chain:
        entry = await chain.add_entry()
        assert await status_of(entry.addresses["admin"], "/readyz") == 200
        assert await status_of(entry.addresses["admin"], "/engine/live") == 404
        bare = chain.make_policy(2)
        for stage in bare.stages:
            stage.endpoints.clear()
        chain.put(bare)
        assert await status_of(entry.addresses["admin"], "/readyz") == 503

        config = msgspec.structs.replace(
            chain.config("small", "small-0", chain.engine("small").address), role="Follower"
        )
        follower = Router(config)
        await follower.start()
        chain.entries.append(follower)
        assert set(follower.addresses) == {"admin"}
        admin = follower.addresses["admin"]
        chain.engine("small").ready = 404  # as a rank above 0 of SGLang
        for path in ("/healthz", "/readyz", "/engine/started", "/engine/live", "/drain"):
            assert await status_of(admin, path) == 200
        chain.engine("small").healthy = 503
        assert await status_of(admin, "/engine/live") == 503


async def test_metrics_and_policy_in_force(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *stages(), ladder=[[0.9, None], [0.8, None]]) as chain:
        await http(chain.client("small"), CHAT, BODY)
        await http(chain.client("small"), CHAT, b"{")
        text = (await http(chain.admin("small"), "/metrics")).body.decode()
        for line in (
            'cascadia_router_requests_total{port="client",stage="small",outcome="answered"} 1',
            'cascadia_router_refused_total{reason="bad_body"} 1',
            'cascadia_router_scores_bucket{stage="small",le="+Inf"} 1',
            'cascadia_router_request_seconds_count{port="client"} 1',
            "cascadia_router_in_flight 0",
            "cascadia_router_policy_revision 1",
            "cascadia_router_ladder_position 1",
            'cascadia_router_endpoint_outstanding{stage="large",replica="large-0"} 0',
        ):
            assert line in text.splitlines()
        documented = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
        families = {line.split(" ")[2] for line in text.splitlines() if line.startswith("# TYPE")}
        assert not [family for family in families if f"`{family}`" not in documented]
        policy = (await http(chain.admin("small"), "/cascade/policy")).json
        assert policy == {
            "cascade": "chat", "policyRevision": 1, "planId": "plan-1", "ladderPosition": 1,
            "stages": [
                {"name": "small", "threshold": 0.8, "replicas": 1}, {"name": "large", "threshold": None, "replicas": 1},
            ],
        }  # fmt: skip
        report = (await http(chain.admin("small"), "/cascade/report")).body
        assert msgspec.json.decode(report, type=WorkloadReport).arrivals == 2


async def test_drain_waits_for_what_is_in_flight_escalated_requests_included(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def wait(engine: ScriptedEngine, seen: Any, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await answer()(engine, seen, writer)

    async with chain_of(tmp_path, *stages(answer(logprob=-1.0))) as chain:
        chain.engine("large").behaviour = wait
        request = asyncio.create_task(http(chain.client("small"), CHAT, BODY))
        await eventually(lambda: chain.engine("large").seen, "the request has escalated")
        drain = asyncio.create_task(http(chain.admin("small"), "/drain"))
        await eventually(lambda: chain.router("small").node.draining, "draining")
        assert (await http(chain.admin("small"), "/readyz")).body == b"draining\n"
        late = asyncio.create_task(http(chain.client("small"), CHAT, BODY))
        await eventually(lambda: len(chain.engine("large").seen) == 2, "a late request is served too")
        assert not drain.done()
        gate.set()
        assert (await drain).status == 200
        for reply in (await request, await late):
            assert reply.status == 200
            assert reply.headers["connection"] == "close"
        assert (await http(chain.admin("small"), "/drain?quietSeconds=0.1", method="POST")).status == 200


async def test_drain_waits_for_those_that_wait_for_room(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def wait(engine: ScriptedEngine, seen: Any, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await answer()(engine, seen, writer)

    async with chain_of(tmp_path, *stages(wait), max_in_flight=1) as chain:
        node = chain.router("small").node
        held = asyncio.create_task(http(chain.client("small"), CHAT, BODY))
        await eventually(lambda: node.exchanges, "one is held")
        waiting = asyncio.create_task(http(chain.client("small"), CHAT, BODY))
        room = node.room
        assert room is not None
        await eventually(lambda: room.waiting, "one waits")
        drain = asyncio.create_task(http(chain.admin("small"), "/drain"))
        await eventually(lambda: node.draining, "draining")
        assert not drain.done()
        gate.set()
        assert [(await each).status for each in (held, waiting, drain)] == [200, 200, 200]


async def test_drain_gives_up_with_the_request_timeout(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *stages(hang), clock_scale=20.0, request_timeout_seconds=600) as chain:
        request = asyncio.create_task(http(chain.client("small"), CHAT, BODY))
        await eventually(lambda: chain.engine("small").seen, "a request is held")
        chain.put(chain.make_policy(2, request_timeout_seconds=2))  # the request in flight keeps its own deadline
        assert (await http(chain.admin("small"), "/drain")).status == 503
        request.cancel()


async def test_the_policy_file_is_watched(tmp_path: Path) -> None:
    """Replaced by rename, by kubelet's link swap, broken, removed: the newest valid revision stays in force."""
    async with chain_of(tmp_path, *stages()) as chain:
        router, file = chain.router("small"), tmp_path / "policy.json"
        policies = router.node.policies

        def revision() -> int:
            return policies.current.revision if policies.current else 0

        fresh = tmp_path / "new.json"
        fresh.write_bytes(encode_policy(chain.make_policy(5)))
        fresh.rename(file)
        await eventually(lambda: revision() == 5, "revision 5")

        data = [tmp_path / "..data-1", tmp_path / "..data-2"]
        for number, folder in enumerate(data):
            folder.mkdir()
            (folder / "policy.json").write_bytes(encode_policy(chain.make_policy(6 + number)))
        link = tmp_path / "..data"
        link.symlink_to(data[0])
        file.unlink()
        file.symlink_to(link / "policy.json")
        await eventually(lambda: revision() == 6, "revision 6")
        swapped = tmp_path / "..data-tmp"
        swapped.symlink_to(data[1])
        swapped.rename(link)
        await eventually(lambda: revision() == 7, "revision 7")

        for broken in (b"{", b'{"cascade": "chat"}', b"\xff\xfe"):
            before = policies.rejected
            (data[1] / "policy.json").write_bytes(broken)
            await eventually(lambda before=before: policies.rejected > before, "it is refused")  # type: ignore[misc]
        assert revision() == 7
        (data[1] / "policy.json").write_bytes(encode_policy(chain.make_policy(3)))
        file.unlink()
        (data[1] / "policy.json").write_bytes(encode_policy(chain.make_policy(8)))
        file.symlink_to(link / "policy.json")
        await eventually(lambda: revision() == 8, "revision 8")
        assert (await http(chain.client("small"), CHAT, BODY)).headers["x-cascadia-plan"] == "plan-8"


@contextlib.asynccontextmanager
async def process(folder: Path, **config: Any) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, Any]]]:
    """A router process and the line with which it says where it listens."""
    (folder / "config.json").write_text(json.dumps(config))
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cascadia_router", "--config", str(folder / "config.json"), stderr=asyncio.subprocess.PIPE
    )
    assert started.stderr is not None
    try:
        listening: dict[str, Any] = {}
        async with asyncio.timeout(20):
            while listening.get("event") != "listening":
                listening = json.loads(await started.stderr.readline())
        yield started, listening
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()


async def test_a_router_says_whether_it_is_compiled(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * 32)
    ports = dict.fromkeys(("client", "admin"), "127.0.0.1:0")
    async with process(tmp_path, **ports, policyFile="none", peerSecretFile=str(secret)) as (_, listening):
        assert listening["compiled"] is bool(os.environ.get("CASCADIA_COMPILED"))


def own_config(chain: Chain) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(
        msgspec.json.encode(chain.config("small", "small-0", chain.engine("small").address))
    )
    return config


def resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


async def becomes(admin: str, status: int) -> None:
    """Wait until `/readyz` of another process says so."""
    async with asyncio.timeout(10):
        while await status_of(admin, "/readyz") != status:  # noqa: ASYNC110 - another process tells no event
            await asyncio.sleep(0.02)


async def test_sigterm_finishes_what_is_in_flight(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def wait(engine: ScriptedEngine, seen: Any, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await answer()(engine, seen, writer)

    async with chain_of(tmp_path, *stages(wait)) as chain:
        (tmp_path / "policy.json").write_bytes(encode_policy(chain.make_policy(1)))
        async with process(tmp_path, **own_config(chain)) as (router, where):
            assert resident_kib(router.pid) < 60 * 1024
            await becomes(where["admin"], 200)
            request = asyncio.create_task(http(where["client"], CHAT, BODY))
            await eventually(lambda: chain.engine("small").seen, "the engine is asked")
            os.kill(router.pid, signal.SIGTERM)
            await becomes(where["admin"], 503)
            with pytest.raises(OSError):  # noqa: PT011  # refused, or reset: no new connection is served
                await http(where["client"], "/healthz")
            assert not request.done()
            gate.set()
            assert (await request).status == 200
            assert await router.wait() == 0
            last = (await lines_of(router))[-1]
            assert (last["event"], last["answered"], last["cut_off"]) == ("stopped", {"small": 1}, 0)


async def lines_of(router: asyncio.subprocess.Process) -> list[dict[str, Any]]:
    assert router.stderr is not None
    return [json.loads(line) for line in (await router.stderr.read()).splitlines()]


async def test_only_another_ctrl_c_cuts_off_what_is_in_flight(tmp_path: Path) -> None:
    """Kubelet may send SIGTERM twice: that changes nothing."""
    async with chain_of(tmp_path, *stages(hang)) as chain:
        (tmp_path / "policy.json").write_bytes(encode_policy(chain.make_policy(1)))
        async with process(tmp_path, **own_config(chain)) as (router, where):
            await becomes(where["admin"], 200)
            request = asyncio.create_task(http(where["client"], CHAT, BODY))
            await eventually(lambda: chain.engine("small").seen, "the engine is asked")
            for _ in range(2):
                os.kill(router.pid, signal.SIGTERM)
                await becomes(where["admin"], 503)
            os.kill(router.pid, signal.SIGINT)
            assert await router.wait() == 0
            with pytest.raises((OSError, asyncio.IncompleteReadError)):  # closed without an answer
                await request
            *_, warning, last = await lines_of(router)
            assert (warning["event"], warning["requests"]) == ("stopping with requests in flight", 1)
            assert (last["event"], last["answered"], last["cut_off"]) == ("stopped", {}, 1)


async def test_a_killed_router_leaves_its_requests_to_others(tmp_path: Path) -> None:
    """SIGKILL in the middle of a request that it has escalated from: its caller asks the next stage."""
    async with chain_of(tmp_path, *stages(hang)) as chain:
        config = own_config(chain)
        (tmp_path / "policy.json").write_bytes(encode_policy(chain.make_policy(1)))
        async with process(tmp_path, **config) as (router, where):
            policy = chain.make_policy(2)
            policy.stages[0].endpoints[0] = msgspec.structs.replace(
                policy.stages[0].endpoints[0], address=where["peers"]
            )
            chain.put(policy)
            request = asyncio.create_task(http(chain.client("large"), CHAT, BODY))
            await eventually(lambda: chain.engine("small").seen, "the process is asked")
            router.kill()
            reply = await request
            assert (reply.status, reply.headers["x-cascadia-path"]) == (200, "large")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"admin": None}, "admin"),
        ({"admin": "nowhere"}, "admin"),
        ({"stage": None}, "engine"),
        ({"peerSecretFile": None}, "peerSecretFile"),
        ({"peerSecretFile": "/nowhere"}, "peerSecretFile"),
        ({"client": None, "peers": None}, "client"),
        ({"policyFile": None}, "policyFile"),
        ({"policyFile": None, "policyConfigMap": "no-slash"}, "policyConfigMap"),
        ({"policyFile": None, "policyConfigMap": "a/b"}, "policyConfigMap"),
        ({"clockScale": 0}, "clockScale"),
        ({"client": "192.0.2.1:80"}, "client"),
    ],
)
def test_a_wrong_configuration_is_one_clear_line(
    tmp_path: Path,
    change: dict[str, Any],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(json_log, "configure", lambda: None)  # it would take pytest's handlers away
    (tmp_path / "secret").write_bytes(b"x" * 32)
    config: dict[str, Any] = {
        "stage": "small", "replica": "small-0", "engine": "127.0.0.1:9", "client": "127.0.0.1:0",
        "peers": "127.0.0.1:0", "admin": "127.0.0.1:0", "policyFile": "policy.json",
        "peerSecretFile": str(tmp_path / "secret"),
    }  # fmt: skip
    config |= change
    file = tmp_path / "config.json"
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    assert main(["--config", str(file)]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"cascadia router: {file}: ")
    assert says in line


def test_a_missing_configuration_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(tmp_path / "none.json")]) == 2
    assert "No such file" in capsys.readouterr().err
