"""The machinery around the reconcile: queue, planning attempts, acknowledgements, retries, flags."""

import asyncio
import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cascadia_api.policy import RouterConfig
from cascadia_operator import router_port
from cascadia_operator.acknowledgement import HttpAcknowledgement
from cascadia_operator.cluster import (
    AlreadyExistsError,
    ClusterError,
    ForbiddenError,
    KubernetesCluster,
    RefusedError,
)
from cascadia_operator.decide.plan_choice import PlanFailure, Trouble
from cascadia_operator.main import parse
from cascadia_operator.manifests.router_config import FOLLOWER_ANNOTATION, LEADER_ANNOTATION, router_annotations
from cascadia_operator.planning import Planner, PlanningJob, PlanningOutcome
from cascadia_operator.work_queue import WorkQueue
from cascadia_operator.world import Key
from cascadia_router.bootstrap import check_config
from tests.support.operator_cases import plan
from tests.support.operator_worlds import world

DEADLINE = 20.0


class Work:
    """Counts pieces of work, and lets a test hold one."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.answers: list[float | Exception | None] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.started = asyncio.Event()
        self.finished = asyncio.Condition()

    async def __call__(self, key: str) -> float | None:
        self.started.set()
        await self.gate.wait()
        async with self.finished:
            self.done.append(key)
            self.finished.notify_all()
        answer = self.answers.pop(0) if self.answers else math.inf
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def until(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE), self.finished:
            await self.finished.wait_for(lambda: len(self.done) >= count)


async def test_events_about_a_waiting_key_are_one_piece_of_work() -> None:
    work = Work()
    queue = WorkQueue[str](work, resync_seconds=100)
    for _ in range(5):
        queue.add("a")
    queue.add("b")
    running = asyncio.create_task(queue.run(1))
    await work.until(2)
    assert work.done == ["a", "b"]
    running.cancel()


async def test_an_event_during_the_work_is_not_lost_and_never_doubles_it() -> None:
    work = Work()
    work.gate.clear()
    queue = WorkQueue[str](work, resync_seconds=100)
    running = asyncio.create_task(queue.run(4))
    queue.add("a")
    await work.started.wait()
    work.started.clear()
    queue.add("a")
    queue.add("a")
    await asyncio.sleep(0)
    assert not work.started.is_set()  # other workers are free, but the key is being worked on
    work.gate.set()
    await work.until(2)
    assert work.done == ["a", "a"]
    running.cancel()


async def test_failures_come_back_and_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cascadia_operator.work_queue._FIRST_RETRY_SECONDS", 0.01)
    work = Work()
    work.answers = [ClusterError("away"), math.inf, ValueError("a defect"), math.inf]
    queue = WorkQueue[str](work, resync_seconds=100)
    running = asyncio.create_task(queue.run(1))
    queue.add("a")
    queue.add("b")
    await work.until(4)
    assert work.done == ["a", "b", "a", "a"]
    running.cancel()


async def test_work_that_asks_for_it_is_done_again_at_once_or_later() -> None:
    work = Work()
    work.answers = [0.0, 0.01, None, math.inf]
    queue = WorkQueue[str](work, resync_seconds=0.01)
    running = asyncio.create_task(queue.run(1))
    queue.add("a")
    await work.until(4)
    running.cancel()


class Pool:
    """Hands out outcomes; counts jobs."""

    def __init__(self, *outcomes: PlanningOutcome) -> None:
        self.outcomes = list(outcomes)
        self.jobs: list[PlanningJob] = []

    async def run(self, job: PlanningJob) -> PlanningOutcome:
        self.jobs.append(job)
        return self.outcomes.pop(0)


def failed(*, final: bool) -> PlanningOutcome:
    return PlanningOutcome(failure=PlanFailure(Trouble("Failed", "no"), final=final))


async def test_a_final_failure_stands_until_other_gpus_are_free() -> None:
    ready: list[Any] = []
    planner = Planner(Pool(failed(final=True)), 1.0, ready.append)
    now = world()
    assert planner.failure(now) is None
    planner.start(now, "Created", "")
    planner.start(now, "Created", "")
    assert planner.running(now)
    await asyncio.sleep(0)
    assert ready == [("serving", "chat")]
    assert planner.failure(now) is not None
    assert planner.failure(world(available={"h100": 8})) is None
    assert planner.failure(world(inputs="other")) is None
    assert planner.made(now) is None


async def test_a_failure_that_may_pass_is_tried_again_later_and_later(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("cascadia_operator.planning.time.monotonic", lambda: clock[0])
    planner = Planner(Pool(failed(final=False), failed(final=False)), 1.0, lambda _: None)
    now = world()
    planner.start(now, "Created", "")
    await asyncio.sleep(0)
    clock[0] = 59
    assert planner.failure(now) is not None
    clock[0] = 61
    assert planner.failure(now) is None
    planner.start(now, "Created", "")
    await asyncio.sleep(0)
    clock[0] = 61 + 119
    assert planner.failure(now) is not None
    clock[0] = 61 + 121
    assert planner.failure(now) is None


async def test_a_plan_for_inputs_that_changed_meanwhile_is_not_used() -> None:
    made = PlanningOutcome(plan=plan({"small": [(1, 1, 1)], "large": [(8, 1, 1)]}).for_json())
    planner = Planner(Pool(made), 1.0, lambda _: None)
    now = world()
    planner.start(now, "Created", "first")
    await asyncio.sleep(0)
    found = planner.made(now)
    assert found is not None
    assert found[1:] == ("Created", "first", {})
    assert planner.made(world(inputs="other")) is None
    planner.forget(Key("serving", "chat"))
    assert planner.made(now) is None


class Answers(BaseHTTPRequestHandler):
    """Answers every request with the next of the server's answers; the last one stays."""

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.server.requests.append((self.command, self.path, self.rfile.read(length)))  # type: ignore[attr-defined]
        answers = self.server.answers  # type: ignore[attr-defined]
        status, body = answers.pop(0) if len(answers) > 1 else answers[0]
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815 - the base class looks them up

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    running: Any = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    running.daemon_threads = True
    running.answers, running.requests = [(200, {})], []
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


async def test_routers_are_asked_once_for_a_revision(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_port, "ADMIN_PORT", server.server_port)
    server.answers = [(503, {}), (200, {"policyRevision": 4}), (200, {"policyRevision": 5})]
    leader: Any = {"metadata": {"name": "chat-small-1-0", "uid": "u"}, "status": {"podIP": "127.0.0.1"}}
    routers = HttpAcknowledgement()
    assert await routers.lacking(5, [leader]) == ["chat-small-1-0"]
    assert await routers.lacking(5, [leader]) == ["chat-small-1-0"]
    assert await routers.lacking(5, [leader]) == []
    assert await routers.lacking(5, [leader]) == []
    assert await routers.lacking(3, [leader]) == []
    assert [path for _, path, _ in server.requests] == ["/cascade/policy"] * 3
    # A pod that came back is another router.
    assert await routers.lacking(6, [leader]) == ["chat-small-1-0"]


async def test_what_answers_no_http_lacks_the_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as stranger:
        monkeypatch.setattr(router_port, "ADMIN_PORT", stranger.sockets[0].getsockname()[1])
        leader: Any = {"metadata": {"name": "chat-small-1-0", "uid": "u"}, "status": {"podIP": "127.0.0.1"}}
        assert await HttpAcknowledgement().lacking(1, [leader]) == ["chat-small-1-0"]


@pytest.fixture
def cluster(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesCluster]:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        json.dumps(
            {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
                "users": [{"name": "u", "user": {}}],
            }
        )
    )
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("cascadia_operator.cluster._FIRST_BACKOFF_SECONDS", 0.001)
    made = KubernetesCluster(threads=2)
    yield made
    made.close()


MANIFEST: dict[str, Any] = {"kind": "ConfigMap", "metadata": {"name": "a", "namespace": "n"}}


async def test_what_passes_is_tried_again(server: Any, cluster: KubernetesCluster) -> None:
    server.answers = [(429, {}), (503, {}), (200, {"kind": "ConfigMap"})]
    assert await cluster.apply(MANIFEST) == {"kind": "ConfigMap"}
    assert len(server.requests) == 3
    method, path, body = server.requests[0]
    assert (method, json.loads(body)) == ("PATCH", MANIFEST)
    assert path == "/api/v1/namespaces/n/configmaps/a?fieldManager=cascadia-operator&force=true"


@pytest.mark.parametrize(
    ("status", "body", "error", "requests"),
    [
        (500, {"message": "etcd is away"}, ClusterError, 5),
        (403, {"message": "no"}, ForbiddenError, 1),
        (409, {"reason": "AlreadyExists", "message": "there"}, AlreadyExistsError, 1),
        (422, {"message": "spec.x is wrong"}, RefusedError, 1),
    ],
)
async def test_what_does_not_pass_is_told(
    server: Any, cluster: KubernetesCluster, status: int, body: Any, error: type[Exception], requests: int
) -> None:
    server.answers = [(status, body)]
    with pytest.raises(error, match=body["message"]):
        await cluster.create(MANIFEST)
    assert len(server.requests) == requests


async def test_lists_are_read_page_by_page(server: Any, cluster: KubernetesCluster) -> None:
    server.answers = [
        (200, {"items": [{"a": 1}], "metadata": {"continue": "next"}}),
        (200, {"items": [{"a": 2}], "metadata": {}}),
    ]
    assert await cluster.list("Pod", "n", labels="x=y") == [{"a": 1}, {"a": 2}]
    assert "labelSelector=x%3Dy" in server.requests[1][1]
    assert "continue=next" in server.requests[1][1]


async def test_what_is_gone_is_gone(server: Any, cluster: KubernetesCluster) -> None:
    server.answers = [(404, {})]
    assert await cluster.get("ConfigMap", "n", "a") is None
    await cluster.delete("ConfigMap", "n", "a")
    await cluster.apply_status(MANIFEST)


async def test_an_api_server_that_is_away_is_an_error_to_try_later(server: Any, cluster: KubernetesCluster) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(ClusterError, match="cannot be reached"):
        await cluster.get("ConfigMap", "n", "a")


def test_routers_take_their_configuration() -> None:
    annotations = router_annotations(
        stage="large",
        replica="chat-large-1",
        policy="serving/chat-policy",
        nodes=2,
        api_keys=True,
        tls=True,
        secrets=True,
    )
    roles = []
    for annotation in (LEADER_ANNOTATION, FOLLOWER_ANNOTATION):
        config = msgspec.json.decode(annotations[annotation], type=RouterConfig)
        check_config(config)
        roles.append(config.role)
    assert roles == ["Leader", "Follower"]


@pytest.mark.parametrize(
    "argv", [["--workers", "0"], ["--resync-seconds", "nan?"], ["-A", "-n", "x"], ["--router-acknowledgement", "maybe"]]
)
def test_wrong_flags_exit_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(argv)
    assert ended.value.code == 2
    assert argv[0] in capsys.readouterr().err
