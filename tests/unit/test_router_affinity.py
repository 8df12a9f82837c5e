"""Conversations: how they are told apart, which replica they go to, which stage they stay with."""

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_api.cascade import Routing
from cascadia_api.policy import BalancingPolicy
from cascadia_api.resilience import balancing_policy
from cascadia_router.affinity import SLACK, nearest
from cascadia_router.balancing import Breaker, Replica
from cascadia_router.conversation import beginning_key, session_key
from cascadia_router.http1_client import Upstream
from cascadia_router.session_latch import SessionLatch

few = settings(max_examples=40, deadline=None)


def replicas(*weights: float) -> list[tuple[Replica, float]]:
    return [(Replica(f"r{index}", Upstream("127.0.0.1:1")), weight) for index, weight in enumerate(weights)]


def messages(*turns: tuple[str, Any]) -> bytes:
    return json.dumps([{"role": role, "content": content} for role, content in turns]).encode()


def test_a_conversation_is_known_by_how_it_begins() -> None:
    first = [("system", "Be brief."), ("user", "Why is the sky blue?")]
    begun = beginning_key(messages(*first), 4096)
    assert begun == beginning_key(messages(*first, ("assistant", "Rayleigh."), ("user", "And at night?")), 4096)
    assert begun != beginning_key(messages(first[0], ("user", "Why is the sea blue?")), 4096)
    assert begun != beginning_key(messages(("user", "Be brief."), first[1]), 4096)
    assert begun == beginning_key(messages(*first).replace(b", ", b",  "), 4096), "spaces between fields say nothing"
    long = "x" * 10_000
    assert beginning_key(messages(("user", long)), 100) == beginning_key(messages(("user", long + "y")), 100)
    assert beginning_key(b'"a prompt that goes on"', 9) == beginning_key(b'"a prompt of another kind"', 9)
    for odd in (b"[]", b"null", b'[{"content": 1}]', b'"\\ud800"', b"[[1]]"):
        assert beginning_key(odd, 4096) == beginning_key(odd, 4096)


def test_a_session_belongs_to_its_key() -> None:
    content = messages(("user", "hello"))
    keys = {
        session_key(content, 4096, named, client)
        for named in (None, b"a", b"b", b"no good name", b"x" * 200)
        for client in ("", "team-1")
    }
    assert len(keys) == 6, "what is no name is not believed"


@few
@given(st.lists(st.floats(0.2, 8), min_size=2, max_size=12), st.integers(0, 2**64 - 1))
def test_only_the_share_of_a_replica_that_goes_moves(weights: list[float], key: int) -> None:
    targets = replicas(*weights)
    chosen = nearest(targets, key, 0.0)
    assert chosen is nearest(list(reversed(targets)), key, 0.0)
    for gone in targets:
        after = nearest([target for target in targets if target is not gone], key, 0.0)
        assert after is chosen or gone[0] is chosen


def test_conversations_are_shared_out_by_weight() -> None:
    targets = replicas(1.0, 1.0, 2.0)
    taken = Counter(nearest(targets, beginning_key(messages(("user", f"{n}")), 4096), 0.0) for n in range(4000))
    for replica, weight in targets:
        assert taken[replica] == pytest.approx(1000 * weight, abs=150)


@few
@given(st.lists(st.integers(0, 3), min_size=1, max_size=200), st.lists(st.floats(0.5, 4), min_size=2, max_size=6))
def test_the_load_of_a_popular_conversation_is_bounded(keys: list[int], weights: list[float]) -> None:
    targets = replicas(*weights)
    for count, key in enumerate(keys, 1):
        replica = nearest(targets, key, 0.0)
        assert replica is not None
        replica.outstanding += 1
        for each, weight in targets:
            assert each.outstanding < SLACK * count * weight / sum(weights) + 1 + 1e-9


def test_who_does_not_work_is_passed_over() -> None:
    targets = replicas(1.0, 1.0, 1.0)
    first = nearest(targets, 7, 0.0)
    assert first is not None
    second = nearest(targets, 7, 0.0, exclude=[first])
    assert second not in {None, first}
    for _ in range(Breaker.THRESHOLD):
        first.breaker.failed(0.0)
    assert nearest(targets, 7, 0.0) is second
    for replica, _ in targets:
        replica.ready = False
    assert nearest(targets, 7, 0.0) is None


def test_more_turns_find_their_prefix_in_a_cache() -> None:
    """Conversations of six turns on eight replicas, each with a cache of the last 40 conversations."""

    def hits(affine: bool) -> float:
        targets = replicas(*[1.0] * 8)
        caches: dict[Replica, list[int]] = {replica: [] for replica, _ in targets}
        found = turns = 0
        for turn in range(6 * 240):
            key = beginning_key(messages(("user", f"{turn % 240}")), 4096)
            replica = nearest(targets, key, 0.0) if affine else targets[turn % 7 + turn // 240 % 2][0]
            assert replica is not None
            cache = caches[replica]
            found += key in cache
            turns += turn >= 240
            caches[replica] = [*(other for other in cache if other != key), key][-40:]
        return found / turns

    assert hits(affine=True) > 0.9
    assert hits(affine=False) < 0.5


def test_a_latch_holds_while_the_conversation_goes_on() -> None:
    latch = SessionLatch()
    assert latch.stage_of(1, 0.0, 60.0) is None
    latch.note(1, "large", 0.0)
    assert latch.stage_of(1, 50.0, 60.0) == "large"
    assert latch.stage_of(1, 109.0, 60.0) == "large", "each request keeps it"
    assert latch.stage_of(1, 170.0, 60.0) is None
    assert len(latch) == 0


def test_a_latch_remembers_so_many() -> None:
    latch = SessionLatch()
    for session in range(SessionLatch.MOST):
        latch.note(session, "large", 0.0)
    assert latch.stage_of(0, 1.0, 60.0) == "large"
    latch.note(-1, "large", 2.0)
    assert len(latch) == SessionLatch.MOST
    assert latch.stage_of(1, 3.0, 60.0) is None, "the longest unused is forgotten"
    assert latch.stage_of(0, 3.0, 60.0) == "large"


def test_the_manifest_reaches_the_policy() -> None:
    assert balancing_policy(Routing()) == BalancingPolicy()
    written = {"balancing": {"policy": "PrefixAffinity", "prefixBytes": 100, "sessionLatchSeconds": 60}}
    expected = BalancingPolicy(policy="PrefixAffinity", prefix_bytes=100, session_latch_seconds=60.0)
    assert balancing_policy(Routing.model_validate(written)) == expected
