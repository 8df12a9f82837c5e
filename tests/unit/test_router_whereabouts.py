"""Where replicas are: what EndpointSlices, DNS and policies say, and which of them counts."""

import asyncio
import socket
from typing import Any

import msgspec
import pytest

from cascadia_api.policy import Endpoint, RouterPolicy, StagePolicy, encode_policy
from cascadia_router.balancing import Breaker, Replica, ReplicaTable
from cascadia_router.endpoint_names import EndpointNames, is_name
from cascadia_router.endpoint_slices import Slice, places_of
from cascadia_router.http1_client import Upstream
from cascadia_router.policy_store import PolicyStore
from cascadia_router.whereabouts import Place

SERVICE = "chat-small-stage"


def policy(revision: int, replicas: list[str], *, service: str | None = SERVICE, host: str = "{}.dns") -> RouterPolicy:
    endpoints = [Endpoint(replica=name, address=f"{host.format(name)}:8081", weight=3.0) for name in replicas]
    stage = StagePolicy(name="small", served_model_name="m", endpoints=endpoints, service=service)
    return RouterPolicy(cascade="chat", policy_revision=revision, plan_id="p", stages=[stage])


def store_with(*replicas: str, own: Replica | None = None, **changes: Any) -> PolicyStore:
    store = PolicyStore(ReplicaTable(own, "small" if own else None))
    assert store.take(encode_policy(policy(1, list(replicas), **changes)), "test")
    return store


def targets(store: PolicyStore) -> dict[str, tuple[bool, float]]:
    assert store.current is not None
    return {replica.upstream.address: (replica.ready, weight) for replica, weight in store.current.stages[0].live.pairs}


def tell(store: PolicyStore, **places: tuple[str, bool]) -> None:
    store.whereabouts.tell(SERVICE, {name: Place(*place) for name, place in places.items()})
    store.place()


def test_the_policys_addresses_stand_until_the_cluster_has_told() -> None:
    store = store_with("a", "b")
    assert targets(store) == {"a.dns:8081": (True, 3.0), "b.dns:8081": (True, 3.0)}
    store.whereabouts.tell(SERVICE, {})
    store.place()
    assert targets(store) == {"a.dns:8081": (True, 3.0), "b.dns:8081": (True, 3.0)}, "nothing was told"
    tell(store, a=("10.0.0.1:8081", True), stranger=("10.0.0.9:8081", True))
    assert targets(store) == {"10.0.0.1:8081": (True, 3.0), "b.dns:8081": (False, 3.0)}


def test_a_replica_that_moves_becomes_unready_or_goes_is_followed_and_the_last_place_is_kept() -> None:
    store = store_with("a", "b")
    tell(store, a=("10.0.0.1:1", True), b=("10.0.0.2:1", True))
    tell(store, a=("10.0.0.7:1", True), b=("10.0.0.2:1", False))
    assert targets(store) == {"10.0.0.7:1": (True, 3.0), "10.0.0.2:1": (False, 3.0)}
    tell(store)
    assert targets(store) == {"10.0.0.7:1": (False, 3.0), "10.0.0.2:1": (False, 3.0)}, "known, and not ready"
    store.take(encode_policy(policy(2, ["a"])), "test")
    assert targets(store) == {"10.0.0.7:1": (False, 3.0)}
    for revision in range(3, 9):
        store.take(encode_policy(policy(revision, ["a"])), "test")
    assert set(store.whereabouts._of_service[SERVICE]) == {"a"}, "who is gone and unnamed is forgotten"


def test_coming_back_closes_the_breaker_and_nothing_else_does() -> None:
    store = store_with("a")
    tell(store, a=("10.0.0.1:1", True))
    assert store.current is not None
    replica = store.current.stages[0].live.pairs[0][0]
    for _ in range(Breaker.THRESHOLD):
        replica.breaker.failed(5.0)
    tell(store, a=("10.0.0.1:1", True))
    assert not replica.breaker.allows(5.0)
    tell(store, a=("10.0.0.1:1", False))
    assert not replica.breaker.allows(5.0)
    tell(store, a=("10.0.0.1:1", True))
    assert store.current.stages[0].live.pairs[0][0] is replica
    assert replica.breaker.allows(5.0)


def test_the_own_replica_is_its_engines_to_judge() -> None:
    own = Replica("a", Upstream("127.0.0.1:1"), is_own=True)
    own.ready = False
    store = store_with("a", "b", own=own)
    tell(store, a=("10.0.0.1:1", True), b=("10.0.0.2:1", True))
    assert targets(store) == {"127.0.0.1:1": (False, 3.0), "10.0.0.2:1": (True, 3.0)}
    assert store.unplaced() == set()


def piece(name: str, endpoints: list[dict[str, Any]], **changes: Any) -> Slice:
    document = {
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": SERVICE}},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "peers", "port": 8081}],
    }
    return msgspec.convert(document | changes, Slice)


def pod(name: str, ip: str, ready: bool | None = True) -> dict[str, Any]:
    return {"addresses": [ip], "conditions": {"ready": ready}, "targetRef": {"kind": "Pod", "name": name}}


def test_slices_are_read_as_the_api_defines_them() -> None:
    slices = [
        piece("b-new", [pod("r1-0", "10.0.0.1"), pod("r2-0", "10.0.0.3", None), pod("r2-1", "10.0.0.4")]),
        piece("a-old", [pod("r1-0", "10.0.0.1", False), {"addresses": ["10.0.0.5"]}, pod("r3-0", "10.0.0.6", False)]),
        piece("six", [pod("r1-0", "fd00::1"), pod("r4-0", "fd00::4")], addressType="IPv6"),
        piece("names", [pod("r5-0", "host.example")], addressType="FQDN"),
        piece("no-port", [pod("r6-0", "10.0.0.8")], ports=[{"name": "other", "port": 1}]),
        piece("empty", [], ports=None),
    ]
    assert places_of(slices) == {
        "r1": Place("10.0.0.1:8081", ready=True),
        "r2": Place("10.0.0.3:8081", ready=True),
        "r3": Place("10.0.0.6:8081", ready=False),
        "r4": Place("[fd00::4]:8081", ready=True),
    }


@pytest.mark.parametrize(
    ("address", "name"),
    [("127.0.0.1:1", False), ("[::1]:1", False), ("::1:1", False), ("engine:1", True), ("a.b.svc:80", True)],
)
def test_what_has_to_be_resolved(address: str, name: bool) -> None:
    assert is_name(address) is name


async def test_names_are_resolved_and_an_answer_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: dict[str, Any] = {"a.dns": ["10.0.0.1", "10.0.0.2", "fd00::1"], "b.dns": ["fd00::2"], "c.dns": []}

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        if not answers[host]:
            raise socket.gaierror("no such name")
        families = [(socket.AF_INET6 if ":" in ip else socket.AF_INET, ip) for ip in answers[host]]
        return [(family, socket.SOCK_STREAM, 6, "", (ip, port)) for family, ip in families]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    store = store_with("a", "b", "c", service=None)
    names = EndpointNames(store)
    await names.resolve()
    several = {"10.0.0.1:8081": (True, 1.5), "10.0.0.2:8081": (True, 1.5)}
    assert targets(store) == several | {"[fd00::2]:8081": (True, 3.0), "c.dns:8081": (True, 3.0)}
    answers["a.dns"], answers["b.dns"] = ["10.0.0.2"], []
    await names.resolve()
    assert targets(store) == {
        "10.0.0.2:8081": (True, 3.0),
        "[fd00::2]:8081": (True, 3.0),
        "c.dns:8081": (True, 3.0),
    }


def test_a_place_that_is_told_is_not_asked_for() -> None:
    store = store_with("a", "b")
    assert store.unplaced() == {"a.dns:8081", "b.dns:8081"}
    tell(store, a=("10.0.0.1:1", True))
    assert store.unplaced() == set()
