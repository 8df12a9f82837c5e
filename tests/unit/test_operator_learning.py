"""What the operator learns from the engines' metrics: what of, how it is kept, said and planned with."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cascadia_api.errors import PlanningTimeoutError
from cascadia_api.names import REPLAN_ANNOTATION
from cascadia_operator import router_port
from cascadia_operator.cluster import Object
from cascadia_operator.learning import learner
from cascadia_operator.learning.engines import Engine, basis_of, engine_version_of, lessons_for
from cascadia_operator.learning.learner import engine_counters
from cascadia_operator.learning.learnt import (
    LEARNT_KEY,
    Learnt,
    Lesson,
    Observed,
    learnt_config_map,
    read_learnt,
    with_windows,
)
from cascadia_operator.manifests.replica import ReplicaIdentity
from cascadia_operator.metrics import ENGINES_ASKED
from cascadia_operator.planning import PlanningJob, plan_job
from cascadia_operator.settings import Images
from cascadia_solver import planner
from cascadia_solver.catalogue.gpus import gpu_facts
from cascadia_solver.catalogue.models import model_facts
from cascadia_solver.engine_window import EngineCounters, EngineWindow, read_counters
from cascadia_solver.inputs import PlanningInputs
from cascadia_solver.live_correction import Correction, CorrectionKey, LiveCorrections, LiveSource
from cascadia_solver.roofline import Roofline, Shape, step_model
from cascadia_solver.sources import cost_source, with_learnt
from tests.support.memory_cluster import MemoryCluster
from tests.support.operator_cases import LARGE, POOL, SMALL, cascade, cascade_document, plan
from tests.support.operator_in_memory import KEY, LOOK_SECONDS, MODELS, HandedOutPlans, Operator, cluster_with_chat
from tests.support.slowed_engine import SlowedEngine

L8, H100 = model_facts("meta-llama/Llama-3.1-8B-Instruct"), gpu_facts("H100-SXM-80GB")
STEP = step_model(L8, H100, Shape(), "bf16")
IMAGE = "lmsysorg/sglang:v0.5.23"
OF_SMALL = CorrectionKey(L8.name, H100.name, "TP1xPP1", "sglang 0.5.23")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
CHAT = cascade(cascade_document([SMALL, LARGE]))
BASIS = basis_of(CHAT, CHAT.spec.models[0], CHAT.spec.gpus.pools[0], IMAGE)


@pytest.mark.parametrize(
    ("image", "version"),
    [
        (IMAGE, "sglang 0.5.23"),
        ("registry:5000/team/sglang:v0.5.23-cu126@sha256:0123456789abcdef", "sglang 0.5.23-cu126"),
        ("sglang:vanilla", "sglang vanilla"),
        ("registry:5000/sglang@sha256:0123456789abcdef", "sglang 0123456789ab"),
        ("registry:5000/sglang", "sglang latest"),
    ],
)
def test_the_version_is_the_images(image: str, version: str) -> None:
    assert engine_version_of(image) == version


def lesson(windows: int = 8, times: float = 0.4, *, basis: str = BASIS, key: CorrectionKey = OF_SMALL) -> Lesson:
    return Lesson(key, basis, Correction((0.0,) * windows, (times,) * windows), NOW)


def learnt(*lessons: Lesson) -> Learnt:
    return Learnt({each.key: each for each in lessons})


def test_what_is_learnt_survives_its_config_map_and_is_a_file_of_corrections() -> None:
    known = Learnt(learnt(lesson()).lessons, ("chat-small-1-0",), {"chat-small-2-0": "its router does not answer"})
    config_map = learnt_config_map(CHAT, known)
    assert (config_map["metadata"]["name"], config_map["metadata"]["ownerReferences"][0]["name"]) == (
        "chat-learnt",
        "chat",
    )
    assert read_learnt(config_map) == known
    text = config_map["data"][LEARNT_KEY]
    assert LiveCorrections.from_json(json.loads(text)).by_key == {OF_SMALL: lesson().correction}
    assert read_learnt(None) == Learnt()
    entry = json.loads(text)["corrections"][0]
    for broken in ("{", "[]", "{}", json.dumps(json.loads(text) | {"corrections": [entry | {"at": 3}]})):
        assert read_learnt(config_map | {"data": {LEARNT_KEY: broken}}) == Learnt()


def observed(times: float, *, basis: str = BASIS, key: CorrectionKey = OF_SMALL) -> Observed:
    """A window of an engine that decodes so many times slower than predicted, at little load."""
    between = times * (STEP.weight_seconds + STEP.overhead_seconds) * 1.1
    window = EngineWindow(0.5, 600.0, 150.0, 0.5 * 150.0 * between, 3.0 * between, between)
    return Observed("chat-small-1-0", key, basis, STEP, window)


def test_windows_add_up_and_another_basis_starts_afresh() -> None:
    lessons: dict[CorrectionKey, Lesson] = {}
    for look in range(9):
        assert not any(each.believed for each in lessons.values()) or look == 8
        lessons = with_windows(lessons, [observed(1.5)], NOW + timedelta(minutes=look))
    [known] = lessons.values()
    assert known.believed
    assert known.at == NOW + timedelta(minutes=8)
    [afresh] = with_windows(lessons, [observed(1.5, basis="other")], NOW).values()
    assert (len(afresh.correction.decode), afresh.believed, afresh.basis) == (1, False, "other")
    # An overloaded engine teaches nothing.
    queue = observed(1.5)
    queue = queue._replace(window=queue.window._replace(first_token_seconds=1e6))
    assert with_windows(lessons, [queue], NOW + timedelta(hours=1)) == lessons


def test_the_latest_kinds_are_kept() -> None:
    kinds = [OF_SMALL._replace(engine_version=f"sglang {k:02}") for k in range(40)]
    lessons: dict[CorrectionKey, Lesson] = {}
    for k, key in enumerate(kinds):
        lessons = with_windows(lessons, [observed(1.0, key=key)], NOW + timedelta(minutes=k))
    assert list(lessons) == kinds[8:]
    full = learnt(*(lesson(64, 0.123456789012345, key=key) for key in kinds[:32]))
    assert len(learnt_config_map(CHAT, full)["data"][LEARNT_KEY]) < 200_000


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({}, True),
        ({"objective": {"minQuality": "0.7"}}, True),
        ({"models": [SMALL | {"engine": {"image": "lmsysorg/sglang:v0.6.0"}}, LARGE]}, False),
        ({"models": [SMALL | {"engine": {"extraArgs": ["--disable-cuda-graph"]}}, LARGE]}, False),
        ({"models": [SMALL | {"precision": "fp8"}, LARGE]}, False),
        ({"models": [SMALL | {"prefixCacheHitPercent": 50}, LARGE]}, False),
        ({"planning": {"costSource": "Measured"}}, False),
        ({"gpus": {"pools": [POOL | {"gpu": "H200-SXM-141GB"}]}}, False),
    ],
)
def test_only_what_was_learnt_of_such_engines_is_planned_with(change: dict[str, Any], kept: bool) -> None:
    document = cascade_document([SMALL, LARGE])
    document["spec"] |= change
    assert bool(lessons_for(cascade(document), learnt(lesson()), Images())) == kept
    assert lessons_for(CHAT, learnt(lesson()), Images(), frozenset({OF_SMALL[:3]})) == ()  # the manifest has its own
    assert lessons_for(CHAT, learnt(lesson(windows=7)), Images()) == ()
    assert lessons_for(CHAT, learnt(lesson()), Images(engine="lmsysorg/sglang:v0.6.0")) == ()


def test_what_a_manifest_names_goes_before_what_was_learnt() -> None:
    other = OF_SMALL._replace(shape="TP2xPP1")
    known = LiveCorrections({OF_SMALL: Correction((), (0.4,) * 8), other: Correction((), (0.5,) * 8)})
    assert with_learnt(Roofline(), LiveCorrections()) == Roofline()
    assert with_learnt(Roofline(), known) == LiveSource(Roofline(), known, "sglang 0.5.23")
    given_key = OF_SMALL._replace(engine_version="sglang 0.5.9")
    given = LiveCorrections({given_key: Correction((), (-0.2,) * 8)})
    both = with_learnt(cost_source(corrections=given), known)
    assert isinstance(both, LiveSource)
    assert both.corrections.by_key == {
        given_key: given.by_key[given_key],
        other._replace(engine_version="sglang 0.5.9"): known.by_key[other],
    }


def test_a_plan_is_made_with_what_was_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[PlanningInputs] = []

    def refuse(inputs: PlanningInputs, **_: object) -> None:
        asked.append(inputs)
        raise PlanningTimeoutError("enough")

    monkeypatch.setattr(planner, "plan_cascade", refuse)
    known = LiveCorrections({OF_SMALL: Correction((0.5,) * 8, (0.5,) * 8)})
    for taught in ({}, known.to_json()):
        assert plan_job(PlanningJob(cascade_document([SMALL, LARGE]), (), {}, 1.0, learnt=taught)).result == "failed"
    assert [inputs.cost for inputs in asked] == [Roofline(), LiveSource(Roofline(), known, "sglang 0.5.23")]


METRICS = SlowedEngine(STEP, 1.0).text.encode()


class Router:
    """What is on a router's admin port: sends some bytes, some of them late, and hangs up."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET /engine/metrics HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionError):
            for part in self.parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.05 if len(self.parts) > 1 else 0)
        writer.close()


@pytest.fixture
async def router(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Router]:
    made = Router()
    async with await asyncio.start_server(made.serve, "127.0.0.1", 0) as server:
        monkeypatch.setattr(router_port, "ADMIN_PORT", server.sockets[0].getsockname()[1])
        yield made


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([b"HTTP/1.1 503 No\r\ncontent-length: 10\r\n\r\nit is gone"], "its router says 503: it is gone"),
        ([b"HTTP/1.1 200 OK\r\n\r\nvllm:x 1\n"], "lack SGLang's histograms"),
        ([b"220 mail.example\r\n"], "its router does not answer: the answer is no HTTP"),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 90000\r\n\r\n" + METRICS], "the answer was cut off"),
        ([b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 300_000], "longer than 200000 bytes"),
    ],
)  # fmt: skip
async def test_what_a_router_may_say(
    router: Router, monkeypatch: pytest.MonkeyPatch, parts: list[bytes], words: str
) -> None:
    monkeypatch.setattr(learner, "_ASK_SECONDS", 30.0)
    monkeypatch.setattr(learner, "_MOST_BYTES", 200_000)
    router.parts = parts
    said = await asyncio.to_thread(engine_counters, engine("127.0.0.1"))
    assert words in str(said)
    router.parts = [b"HTTP/1.1 200 OK\r\n\r\n" + METRICS]
    told = await asyncio.to_thread(engine_counters, engine("127.0.0.1"))
    assert isinstance(told, EngineCounters)
    assert "the pod has no address" in str(engine_counters(engine(None)))


async def test_a_router_that_never_comes_to_an_end_is_given_up(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner, "_ASK_SECONDS", 0.3)
    router.parts = [b"HTTP/1.1 200 OK\r\n\r\n"] + [b"x"] * 100
    said = str(await asyncio.to_thread(engine_counters, engine("127.0.0.1")))
    assert re.search(r"its router does not answer: (the answer took longer than 0.3 s|timed out)", said)


def engine(address: str | None) -> Engine:
    pod = {"metadata": {"name": "chat-small-1-0"}, "status": {"podIP": address}}
    return Engine(pod, "1", ReplicaIdentity("small", "h100", 1, 1, "r"), "sglang 0.5.23", BASIS)


class Engines:
    """The small model's engines, each so many times slower than predicted; a text is said in place of metrics."""

    def __init__(self, cluster: MemoryCluster) -> None:
        self.cluster = cluster
        self.by_life: dict[str, SlowedEngine] = {}
        self.times = 1.5
        self.says = ""
        self.asked: list[str] = []

    def ask(self, engine: Engine) -> EngineCounters | str:
        self.asked.append(engine.name)
        if self.says:
            return self.says
        if engine.identity.stage != "small":
            return EngineCounters(self.cluster.now.timestamp(), 0, 0, 0, 0, 0, 0)
        running = self.by_life.setdefault(engine.life, SlowedEngine(STEP, self.times))
        return read_counters(running.text, self.cluster.now.timestamp()) or "no counters"

    def work(self, seconds: float) -> None:
        for running in self.by_life.values():
            running.serve(seconds)
        self.cluster.advance(seconds)


@pytest.fixture
def cluster() -> Iterator[MemoryCluster]:
    return cluster_with_chat()


FIRST = plan({"small": [(1, 1, 2)], "medium": [(4, 1, 1)], "large": [(8, 1, 1)]})
SECOND = plan({"small": [(1, 1, 2)], "medium": [(4, 1, 1)], "large": [(8, 1, 1)]}, variant=1)


async def served(cluster: MemoryCluster, looks: int = 0) -> tuple[Operator, Engines]:
    """A cascade that is served by engines that have been ready for a while, and some looks at them."""
    engines = Engines(cluster)
    operator = Operator(cluster, HandedOutPlans(FIRST, SECOND), ask=engines.ask)
    await operator.settle()
    cluster.advance(LOOK_SECONDS)
    for _ in range(looks):
        await operator.reconcile()
        engines.work(LOOK_SECONDS)
    return operator, engines


def kept(cluster: MemoryCluster) -> Learnt:
    return read_learnt(cluster.objects.get(("ConfigMap", "serving", "chat-learnt")))


async def test_slow_engines_are_found_kept_said_and_planned_with_but_nothing_is_planned_for_them(
    cluster: MemoryCluster,
) -> None:
    operator, engines = await served(cluster)
    assert engines.asked == []  # they have just been started
    assert operator.condition("MetricsAvailable") == ("Unknown", "NotReadYet")
    assert await operator.reconcile() == LOOK_SECONDS
    assert len(engines.asked) == 4
    for _ in range(6):
        engines.work(LOOK_SECONDS)
        await operator.reconcile()
    assert operator.condition("MetricsAvailable") == ("True", "EnginesDiffer")
    [known] = kept(cluster).lessons.values()
    assert known.key == OF_SMALL
    assert len(known.correction.decode) == 12
    assert known.correction.factor("decode") == pytest.approx(1.5 ** (12 / 16), rel=0.05)
    [said] = operator.status["corrections"]
    assert said["engineVersion"] == "sglang 0.5.23"
    assert float(said["decode"]) == pytest.approx(1.5 ** (10 / 14), rel=0.07)
    assert len(operator.plans.jobs) == 1
    assert operator.plans.jobs[0].learnt == {}

    # Another operator goes on from there: its first look only reads.
    operator.restart()
    await operator.reconcile()
    assert kept(cluster).lessons == {OF_SMALL: known}
    engines.work(LOOK_SECONDS)
    await operator.reconcile()
    assert len(kept(cluster).lessons[OF_SMALL].correction.decode) == 14

    # The next plan, whatever it is made for, is made with it.
    cluster.put(cascade_document(MODELS, objective={"minQuality": "0.8"}))
    await operator.reconcile()
    told = LiveCorrections.from_json(operator.plans.jobs[1].learnt)
    assert list(told.by_key) == [OF_SMALL]
    assert told.by_key[OF_SMALL].factor("decode") > 1.3


def metrics_available(operator: Operator) -> str:
    return str(next(c for c in operator.status["conditions"] if c["type"] == "MetricsAvailable")["message"])


async def test_a_plan_that_was_made_with_other_factors_is_said_to_be_and_made_again_when_asked_for(
    cluster: MemoryCluster,
) -> None:
    operator, engines = await served(cluster, looks=8)
    await operator.reconcile()
    assert operator.condition("MetricsAvailable") == ("True", "EnginesDiffer")
    [said] = operator.status["corrections"]
    assert said["plannedWith"] == "1"
    decodes = f"decodes {float(said['decode']):g} times as long as the cost model says"
    assert f"{decodes}, the plan in force was made with 1; to plan again" in metrics_available(operator)
    assert len(operator.plans.jobs) == 1
    # Asked for with the annotation that the message names, all is planned anew.
    document = cascade_document(MODELS)
    cluster.put(document | {"metadata": document["metadata"] | {"annotations": {REPLAN_ANNOTATION: "once"}}})
    await operator.settle()
    assert len(operator.plans.jobs) == 2
    assert operator.plans.jobs[1].in_force is None
    stored = cluster.objects["CascadePlan", "serving", operator.status["plan"]["name"]]
    assert f"or the annotation {REPLAN_ANNOTATION} changed" in stored["spec"]["triggerMessage"]
    [said] = operator.status["corrections"]
    assert float(said["plannedWith"]) == pytest.approx(float(said["decode"]), rel=0.06)
    assert operator.condition("MetricsAvailable") == ("True", "Collected")
    # An operator that starts again knows what the plan was made with.
    operator.restart()
    await operator.reconcile()
    assert operator.status["corrections"] == [said]
    assert len(operator.plans.jobs) == 2
    # Engines that then become faster are as far from the plan.
    for running in engines.by_life.values():
        running.step = STEP
    for _ in range(14):
        engines.work(LOOK_SECONDS)
        await operator.reconcile()
    assert operator.condition("MetricsAvailable") == ("True", "EnginesDiffer")


async def test_what_the_manifest_gives_itself_is_not_said_to_be_learnt(cluster: MemoryCluster) -> None:
    operator, _ = await served(cluster, looks=6)
    await operator.reconcile()
    assert operator.status["corrections"]
    given = LiveCorrections({OF_SMALL: Correction((0.0,), (0.1,))})
    file = {"kind": "ConfigMap", "metadata": {"name": "mine", "namespace": "serving"}}
    cluster.put(file | {"data": {"live.json": json.dumps(given.to_json())}})
    cluster.put(cascade_document(MODELS, planning={"corrections": {"configMapRef": {"name": "mine"}}}))
    await operator.settle()
    assert "corrections" not in operator.status
    assert operator.plans.jobs[-1].learnt == {}


async def test_a_look_that_teaches_nothing_new_writes_nothing(cluster: MemoryCluster) -> None:
    operator, _ = await served(cluster, looks=4)
    for _ in range(3):  # nobody asks for answers any more
        cluster.advance(LOOK_SECONDS)
        await operator.reconcile()
    cluster.writes.clear()
    cluster.advance(LOOK_SECONDS)
    await operator.reconcile()
    assert cluster.writes == []
    before = kept(cluster)
    cluster.advance(7 * 3600)
    await operator.reconcile()
    assert kept(cluster) == before
    assert "for more than 6 hours the engines have had too little work" in metrics_available(operator)


async def test_figures_in_the_status_stand_until_they_have_moved(cluster: MemoryCluster) -> None:
    operator, engines = await served(cluster, looks=5)
    stated: list[float] = []
    writes = 0
    for look in range(24):
        if look == 6:
            for running in engines.by_life.values():
                running.step = SlowedEngine(STEP, 3.0).step
        cluster.writes.clear()
        await operator.reconcile()
        writes += "apply ConfigMap chat-learnt" in cluster.writes
        figure = float(operator.status["corrections"][0]["decode"])
        if figure not in stated[-1:]:
            assert "status CascadeDeployment chat" in cluster.writes
            stated.append(figure)
        engines.work(LOOK_SECONDS)
    # What is learnt changes with each look, what is said of it in steps; nothing is planned for it.
    assert writes == 24
    assert len(stated) < 10
    assert all(abs(math.log(after / before)) > 0.04 for before, after in itertools.pairwise(stated))
    assert stated[-1] > 1.5 * stated[0]
    assert len(operator.plans.jobs) == 1


async def test_an_engine_that_starts_again_is_another_one(cluster: MemoryCluster) -> None:
    operator, engines = await served(cluster, looks=3)
    await operator.reconcile()
    windows = len(kept(cluster).lessons[OF_SMALL].correction.decode)
    for pod in cluster.kinds("Pod"):
        pod["status"]["containerStatuses"] = [
            {"name": "router", "restartCount": 0},
            {"name": "engine", "restartCount": 1},
        ]
    lives = set(engines.by_life)
    engines.times = 2.5
    engines.work(LOOK_SECONDS)
    await operator.reconcile()  # from what it counted before, nothing is learnt
    assert len(kept(cluster).lessons[OF_SMALL].correction.decode) == windows
    assert not lives & (set(engines.by_life) - lives)
    engines.work(LOOK_SECONDS)
    await operator.reconcile()
    assert len(kept(cluster).lessons[OF_SMALL].correction.decode) == windows + 2


async def test_little_traffic_is_learnt_from_over_several_looks(cluster: MemoryCluster) -> None:
    operator, engines = await served(cluster, looks=1)
    for running in engines.by_life.values():
        running._rate = 10 / LOOK_SECONDS
    counts = []
    for _ in range(6):
        await operator.reconcile()
        known = kept(cluster).lessons.get(OF_SMALL)
        counts.append(len(known.correction.decode) if known else 0)
        engines.work(LOOK_SECONDS)
    assert counts == [2, 2, 4, 4, 6, 6]


async def test_metrics_that_cannot_be_read_are_named_and_change_nothing(cluster: MemoryCluster) -> None:
    operator, engines = await served(cluster, looks=6)
    await operator.reconcile()
    lessons, corrections = kept(cluster).lessons, operator.status["corrections"]
    silent = ENGINES_ASKED.labels("silent")._value.get()
    engines.says = "its router does not answer: timed out"
    for _ in range(2):
        engines.work(LOOK_SECONDS)
        await operator.reconcile()
    assert operator.condition("MetricsAvailable") == ("False", "EnginesSilent")
    assert "its router does not answer: timed out" in metrics_available(operator)
    assert "what was learnt stays" in metrics_available(operator)
    assert ENGINES_ASKED.labels("silent")._value.get() == silent + 8
    assert kept(cluster).lessons == lessons
    assert operator.status["corrections"] == corrections
    assert operator.condition("Ready") == ("True", "Serving")
    engines.says = ""
    cluster.advance(LOOK_SECONDS)
    await operator.reconcile()
    cluster.advance(1)
    await operator.reconcile()
    assert operator.condition("MetricsAvailable")[0] == "True"


async def test_some_of_many_replicas_are_asked(cluster: MemoryCluster) -> None:
    engines = Engines(cluster)
    many = plan({"small": [(1, 1, 9)], "medium": [(2, 1, 3), (4, 1, 1)], "large": [(8, 1, 1)]})
    operator = Operator(cluster, HandedOutPlans(many), ask=engines.ask)
    await operator.settle()
    cluster.advance(LOOK_SECONDS)
    await operator.reconcile()
    assert sorted(name.split("-")[1] for name in engines.asked) == ["large"] + 4 * ["medium"] + 4 * ["small"]
    # Looks are not taken more often than that, whatever happens.
    for _ in range(5):
        cluster.advance(5)
        await operator.reconcile()
    assert len(engines.asked) == 9


async def test_a_paused_cascade_is_not_looked_at(cluster: MemoryCluster) -> None:
    operator, engines = await served(cluster, looks=2)
    asked = len(engines.asked)
    cluster.put(cascade_document(MODELS, paused=True))
    engines.work(LOOK_SECONDS)
    await operator.reconcile()
    assert len(engines.asked) == asked


async def test_a_config_map_of_somebody_else_is_left_alone(cluster: MemoryCluster) -> None:
    theirs: Object = {
        "kind": "ConfigMap",
        "metadata": {"name": "chat-learnt", "namespace": "serving"},
        "data": {"a": "b"},
    }
    cluster.put(theirs)
    operator, engines = await served(cluster, looks=2)
    await operator.reconcile()
    assert operator.condition("MetricsAvailable") == ("Unknown", "NotKept")
    assert "ConfigMap chat-learnt exists and does not belong to this cascade" in metrics_available(operator)
    assert cluster.objects["ConfigMap", "serving", "chat-learnt"]["data"] == {"a": "b"}
    assert operator.condition("Ready") == ("True", "Serving")
    assert engines.asked


async def test_corrections_that_change_every_minute_are_refused(cluster: MemoryCluster) -> None:
    operator, _ = await served(cluster, looks=4)
    cluster.put(cascade_document(MODELS, planning={"corrections": {"configMapRef": {"name": "chat-learnt"}}}))
    await operator.reconcile()
    assert operator.condition("Stalled") == ("True", "CorrectionsNotFound")
    stalled = next(c for c in operator.status["conditions"] if c["type"] == "Stalled")
    assert "one that the operator keeps what it learns in" in stalled["message"]


async def test_a_deleted_cascade_is_forgotten(cluster: MemoryCluster) -> None:
    operator, _ = await served(cluster, looks=2)
    del cluster.objects["CascadeDeployment", *KEY]
    await operator.reconcile()
    assert operator.learner is not None
    assert operator.learner._watched == {}
    await operator.learner.close()
