"""Choosing replicas, breaking circuits, budgeting escalations, signing hops, remembering policies."""

import json
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_api.policy import Endpoint, RouterPolicy, StagePolicy, encode_policy
from cascadia_router.answer_times import AnswerTimes
from cascadia_router.balancing import Breaker, Replica, ReplicaTable, Targets, choose, least_loaded
from cascadia_router.completion_body import CompletionRequest
from cascadia_router.http1_client import Upstream
from cascadia_router.policy_store import REMEMBERED, PolicyStore
from cascadia_router.share_budget import ShareBudget
from cascadia_router.signing import MAX_SKEW_SECONDS, Hop, PeerSecrets, SignatureError

few = settings(max_examples=50, deadline=None)


def replica(name: str = "r", outstanding: int = 0, *, own: bool = False) -> Replica:
    made = Replica(name, Upstream("127.0.0.1:1"), is_own=own)
    made.outstanding = outstanding
    return made


@few
@given(st.lists(st.tuples(st.integers(0, 20), st.floats(0.1, 10)), min_size=1, max_size=6))
def test_the_least_outstanding_over_weight_is_chosen(loads: list[tuple[int, float]]) -> None:
    targets = [(replica(str(index), outstanding), weight) for index, (outstanding, weight) in enumerate(loads)]
    chosen = least_loaded(targets, 0.0)
    assert chosen is not None
    assert min(outstanding / weight for outstanding, weight in loads) == min(
        each.outstanding / weight for each, weight in targets if each is chosen
    )


def test_ties_go_to_the_own_replica() -> None:
    heavy, light, own = replica("heavy"), replica("light"), replica("own", own=True)
    for order in ([(light, 1.0), (heavy, 2.0), (own, 0.5)], [(own, 0.5), (heavy, 2.0), (light, 1.0)]):
        assert least_loaded(order, 0.0) is own
    own.outstanding = 1
    assert least_loaded([(light, 1.0), (own, 1.0)], 0.0) is light


def test_other_ties_go_by_lot_in_proportion_to_weight() -> None:
    targets = [(replica(str(weight)), weight) for weight in (1.0, 2.0, 5.0)]
    drawn = Counter(least_loaded(targets, 0.0) for _ in range(4000))
    for each, weight in targets:
        assert drawn[each] == pytest.approx(500 * weight, abs=130), "five standard deviations"


def test_of_many_replicas_the_own_and_two_by_weight_are_compared() -> None:
    targets = Targets((replica(str(index), index), 1.0 + index % 2) for index in range(20))
    seen = Counter(each for _ in range(2000) for each, _ in targets.candidates())
    assert sum(seen.values()) == 4000
    assert len(seen) == len(targets.pairs)
    heavy = sum(count for each, count in seen.items() if int(each.name) % 2)
    assert heavy == pytest.approx(4000 * 2 / 3, abs=150)
    own = replica("own", own=True)
    with_own = Targets((*targets.pairs, (own, 1.0)))
    assert all(choose(with_own, 0.0) is own for _ in range(50)), "it holds nothing"
    own.ready = False
    assert choose(with_own, 0.0) is not own
    free, _ = targets.pairs[0]
    busy = [each for each, _ in targets.pairs if each is not free]
    assert all(choose(targets, 0.0, exclude=busy) is free for _ in range(50)), "whoever is left is found"
    assert choose(targets, 0.0, exclude=[each for each, _ in targets.pairs]) is None


def test_routers_that_know_only_their_own_requests_do_not_herd() -> None:
    """Forty routers with one request each: nobody knows of the others, and still nobody is overrun."""
    for replicas in (4, 20):
        taken: Counter[str] = Counter()
        for _ in range(40):
            chosen = choose(Targets((replica(str(index)), 1.0) for index in range(replicas)), 0.0)
            assert chosen is not None
            taken[chosen.name] += 1
        assert max(taken.values()) <= 40 / replicas + 20


def test_replicas_tried_or_out_are_left_out() -> None:
    first, second, own = replica("a"), replica("b", 5), replica("own", own=True)
    own.ready = False
    targets = [(first, 1.0), (second, 1.0), (own, 1.0)]
    assert least_loaded(targets, 0.0, exclude=[first]) is second
    assert least_loaded(targets, 0.0, exclude=[first, second]) is None
    assert least_loaded(targets, 0.0, exclude=[first, second], even_open=True) is own


def test_a_breaker_opens_tries_and_closes() -> None:
    breaker = Breaker()
    for _ in range(Breaker.THRESHOLD - 1):
        breaker.failed(0.0)
    assert breaker.allows(0.0)
    breaker.succeeded()
    for _ in range(Breaker.THRESHOLD):
        breaker.failed(10.0)
    assert not breaker.allows(10.9)
    assert breaker.allows(11.0)
    breaker.sent(11.0)
    assert not breaker.allows(11.0), "one trial at a time"
    breaker.failed(11.5)
    assert not breaker.allows(13.4), "the back-off has doubled"
    assert breaker.allows(13.5)
    breaker.sent(13.5)
    breaker.abandoned()
    assert breaker.allows(13.6), "a trial that told nothing leaves its place to the next"
    breaker.sent(13.6)
    breaker.succeeded()
    assert breaker.allows(13.6)
    assert breaker.failures == 0


def test_back_off_is_bounded() -> None:
    breaker, now = Breaker(), 0.0
    for _ in range(Breaker.THRESHOLD):
        breaker.failed(now)
    for _ in range(40):
        now = breaker.open_until
        breaker.sent(now)
        breaker.failed(now)
        assert breaker.open_until - now <= Breaker.LONGEST_SECONDS


@few
@given(st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=80), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_scorer_errors_escalate_no_more_than_their_share(steps: list[tuple[float, bool]], share: float) -> None:
    budget, now = ShareBudget(), 0.0
    requests, escalated = [], []
    for pause, error in steps:
        now += pause
        budget.count(now)
        requests.append(now)
        if error and budget.spend(now, share):
            escalated.append(now)
        window = now - budget.seconds + budget.seconds / budget.SLICES
        recent = sum(1 for when in escalated if when > window)
        assert recent <= max(1 if share else 0, share * len(requests))
    if share == 1.0:
        assert len(escalated) == sum(1 for _, error in steps if error)


@few
@given(st.lists(st.floats(0, 0.5), max_size=120), st.sampled_from([0.0, 0.2]))
def test_repeats_are_a_share_of_requests_or_a_few(pauses: list[float], share: float) -> None:
    budget, now, spent = ShareBudget(seconds=10.0, least=5.0), 0.0, []
    for pause in pauses:
        now += pause
        budget.count(now)
        if budget.spend(now, share):
            spent.append(now)
        assert sum(1 for when in spent if when > now - 8) <= max(5, share * len(pauses))
    if share and len(pauses) >= 5:
        assert len(spent) >= 5


def test_what_is_typical_is_told_of_late_and_enough_answers() -> None:
    times = AnswerTimes()
    for index in range(AnswerTimes.FEWEST - 1):
        times.observe(index, 1.0 + index)
    assert times.typical(10.0) is None
    times.observe(11.0, 100.0)
    assert times.typical(10.5) is None, "an estimate is used for a while"
    assert times.typical(11.5) == 4.5
    assert times.typical(11.5 + AnswerTimes.SECONDS) is None, "what is long ago says nothing"


def make_hop(**changes: Any) -> Hop:
    values: dict[str, Any] = {
        "request_id": "r-1", "revision": 3, "plan_id": "plan ü", "stage": "large", "path": ("small",),
        "escalations_left": 2, "remaining": 1.5, "signed_at": time.time(), "pinned": False, "lost": 0,
    }  # fmt: skip
    return Hop(**(values | changes))


def headers_of(lines: bytes) -> dict[bytes, bytes]:
    lines_ = [line.partition(b": ") for line in lines.strip().split(b"\r\n")]
    return {name: value for name, _, value in lines_}


@few
@given(st.text(max_size=20), st.binary(max_size=40), st.integers(0, 10**6), st.data())
def test_what_was_signed_is_read_and_nothing_else(plan: str, body: bytes, place: int, data: st.DataObject) -> None:
    secret, path = b"0123456789abcdef", b"/v1/completions"
    hop = make_hop(plan_id=plan)
    headers = headers_of(PeerSecrets([secret]).sign(hop, path, body))

    def verify(headers: dict[bytes, bytes], path: bytes, body: bytes, secret: bytes, now: float) -> Hop:
        return PeerSecrets([secret]).verify(headers, path, body, now)

    now = time.time()
    assert verify(headers, path, body, secret, now) == hop
    name = data.draw(st.sampled_from(sorted(headers)))
    value = bytearray(headers[name])
    value[place % len(value)] ^= 1
    for wrong in (
        (headers | {name: bytes(value)}, path, body, secret, now),
        (headers, path + b"s", body, secret, now),
        (headers, path, body + b"x", secret, now),
        (headers, path, body, secret + b"x", now),
        (headers, path, body, secret, now + MAX_SKEW_SECONDS + 1),
        (headers, path, body, secret, now - MAX_SKEW_SECONDS - 1),
        ({}, path, body, secret, now),
    ):
        with pytest.raises(SignatureError):
            verify(*wrong)


def test_a_hop_is_taken_once_and_by_any_secret_that_is_believed() -> None:
    old, new, path = b"an old secret of some length", b"a new secret of some length", b"/v1/completions"
    receiver = PeerSecrets([new, old])
    hops = [headers_of(PeerSecrets([secret]).sign(make_hop(), path, b"{}")) for secret in (old, new)]
    for headers in hops:
        assert receiver.verify(headers, path, b"{}", time.time()).request_id == make_hop().request_id
        with pytest.raises(SignatureError, match="before"):
            receiver.verify(headers, path, b"{}", time.time())
    receiver.use([new])
    with pytest.raises(SignatureError, match="wrong"):
        receiver.verify(hops[0], path, b"{}", time.time())
    for number in range(70_000):  # what is remembered is bounded
        receiver._take_once(b"%d" % number)
    assert len(receiver._seen) + len(receiver._seen_before) <= 2 * 16_384


def policy(revision: int, *, window: int | None = None, port: int = 1) -> RouterPolicy:
    stages = [
        StagePolicy(
            name=name, served_model_name=name, threshold=threshold, context_window=limit,
            endpoints=[Endpoint(replica=f"{name}-0", address=f"127.0.0.1:{port}")],
        )
        for name, threshold, limit in (("small", 0.5, window), ("large", None, None))
    ]  # fmt: skip
    return RouterPolicy(cascade="chat", policy_revision=revision, plan_id=f"plan-{revision}", stages=stages)


def test_only_newer_valid_policies_are_taken() -> None:
    store = PolicyStore(ReplicaTable(None, None))
    assert store.take(encode_policy(policy(2)), "test")
    assert not store.take(encode_policy(policy(2)), "test")
    assert not store.take(encode_policy(policy(1)), "test")
    wrong = json.loads(encode_policy(policy(3)))
    wrong["stages"][1]["threshold"] = 0.5
    for document in (b"", b"{", b"{}", b"\xff\xfe", json.dumps(wrong).encode(), b'{"schemaVersion": 9}'):
        assert not store.take(document, "test")
    assert store.rejected == 6
    assert store.current is not None
    assert store.current.revision == 2


def test_the_last_few_policies_are_remembered() -> None:
    table = ReplicaTable(None, None)
    store = PolicyStore(table)
    for revision in range(1, 8):
        store.take(encode_policy(policy(revision, port=revision)), "test")
    assert [store.at(revision).revision for revision in (7, 6, 5, 4)] == [7, 6, 5, 4]  # type: ignore[union-attr]
    assert store.at(3) is store.current, "unknown revisions follow the one in force"
    assert store.at(99) is store.current
    assert len(table.all()) == 2 * REMEMBERED, "replicas that no policy names are forgotten"
    old = store.at(4)
    assert old is not None
    assert [each.upstream.address for each, _ in old.stages[0].live.pairs] == ["127.0.0.1:7"]


def test_a_replica_keeps_its_state_across_policies() -> None:
    table = ReplicaTable(None, None)
    store = PolicyStore(table)
    store.take(encode_policy(policy(1)), "test")
    assert store.current is not None
    first = store.current.stages[0].targets.pairs[0][0]
    first.outstanding = 3
    store.take(encode_policy(policy(2)), "test")
    assert store.current.stages[0].targets.pairs[0][0] is first
    for revision in range(3, 3 + REMEMBERED):
        store.take(encode_policy(policy(revision, port=9)), "test")
    assert first in [each for _, each in table.all()], "it still holds requests"


def test_able_stages_fall_back_to_the_last() -> None:
    store = PolicyStore(ReplicaTable(None, None))
    store.take(encode_policy(policy(1, window=100)), "test")
    cascade = store.current
    assert cascade is not None

    def able(first: int, end: int = 2, **extra: Any) -> list[str]:
        body = json.dumps({"model": "chat", "messages": [], **extra}).encode()
        request = CompletionRequest(b"/v1/chat/completions", body)
        return [stage.name for stage in cascade.able_from(first, end, request)]

    assert able(0) == ["small", "large"]
    assert able(0, max_tokens=90) == ["large"]
    assert able(0, tools=[{}]) == ["large"], "no stage can: the last one says so"
    assert able(1) == ["large"]
    assert able(2) == []
    assert able(0, 1) == ["small"]
    assert able(0, 1, max_tokens=90) == ["small"], "the last that may be asked says so"
