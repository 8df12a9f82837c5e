"""What clients may ask for: never more than a minute's worth at once, and the rate after that."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascadia_api.policy import RateLimit, RateLimits, RouterPolicy, StagePolicy
from cascadia_router.clients import Client, Denial
from cascadia_router.decision import DecisionText, tokens_said
from cascadia_router.rate_limit import Rate


def ask(client: Client, now: float, tokens: int) -> Denial | None:
    denial = client.denial(now)
    if denial is None:
        client.take(now, tokens)
    return denial


def policy(**default: int) -> RouterPolicy:
    stages = [StagePolicy(name="only", served_model_name="m")]
    limits = RateLimits(default=RateLimit(**default), keys={"free": RateLimit()})
    return RouterPolicy(cascade="chat", policy_revision=1, plan_id="p", stages=stages, rate_limits=limits)


@given(st.integers(1, 200), st.lists(st.floats(0, 30), max_size=120))
def test_no_window_has_more_than_its_minutes_and_one_burst(limit: int, pauses: list[float]) -> None:
    rate, now, taken = Rate(limit), 0.0, []
    for pause in pauses:
        now += pause
        assert rate.left(now) <= limit + 1e-6
        if rate.left(now) >= 1:
            rate.take(now, 1)
            taken.append(now)
        else:
            wait = rate.wait(now, 1)
            assert wait > 0
            assert rate.left(now + wait) == pytest.approx(1)
    for first, begun in enumerate(taken):
        for last, ended in enumerate(taken[first:], first):
            assert last - first + 1 <= limit + (ended - begun) / 60 * limit + 1e-6


def test_a_minutes_requests_at_once_then_one_by_one() -> None:
    client = Client("team")
    client.follow(policy(requests_per_minute=6), 1.0, 0.0)
    assert [ask(client, 0.0, 0) for _ in range(6)] == [None] * 6
    denial = ask(client, 0.0, 0)
    assert denial is not None
    assert (denial.of, denial.limit, denial.seconds) == ("requests", 6, pytest.approx(10))
    assert ask(client, 10.1, 0) is None
    assert ask(client, 10.1, 0) is not None
    assert (client.admitted, client.denied) == (7, {"requests": 2, "tokens": 0})
    assert client.lines(10.1, 1.0).splitlines()[:2] == [
        b"x-ratelimit-limit-requests: 6",
        b"x-ratelimit-remaining-requests: 0",
    ]


def test_tokens_are_charged_as_expected_first_and_as_taken_later() -> None:
    client = Client("team")
    client.follow(policy(tokens_per_minute=600), 1.0, 0.0)
    assert ask(client, 0.0, 5000) is None, "a request larger than the budget is let in while any is left"
    denial = ask(client, 0.0, 1)
    assert denial is not None
    assert denial.of == "tokens"
    client.settle(0.0, 5000, 100)
    assert ask(client, 0.0, 450) is None
    assert b"x-ratelimit-remaining-tokens: 50\r\nx-ratelimit-reset-tokens: 55000ms" in client.lines(0.0, 1.0)
    client.settle(0.0, 450, 950)
    assert ask(client, 0.0, 1) is not None
    assert ask(client, 46.0, 1) is None
    assert client.tokens == 1050


def test_limits_are_shared_changed_and_lifted() -> None:
    client, free = Client("team"), Client("free")
    client.follow(policy(requests_per_minute=8), 1 / 4, 0.0)
    assert [ask(client, 0.0, 0) is None for _ in range(3)] == [True, True, False]
    client.follow(policy(requests_per_minute=16), 1 / 4, 0.0)
    assert [ask(client, 0.0, 0) is None for _ in range(3)] == [True, True, False], "two of four were taken"
    client.follow(policy(requests_per_minute=1), 1 / 64, 1000.0)
    assert [ask(client, 1000.0, 0) is None for _ in range(2)] == [True, False], "one request whatever the share"
    client.follow(policy(), 1.0, 1000.0)
    assert ask(client, 1000.0, 0) is None
    assert not client.limited
    free.follow(policy(requests_per_minute=1), 1.0, 0.0)
    assert not free.limited


def test_tokens_are_read_from_the_answers_own_account() -> None:
    said = DecisionText("large", None, ("small",), "p", 1).document(None, None, (("small", 7, 3),))
    trap = (
        b'{"choices":[{"message":{"content":"\\"usage\\":{\\"promptTokens\\":9,\\"completionTokens\\":9"}}],"cascadia":'
    )
    assert tokens_said(trap + said + b"}") == 10
    assert tokens_said(trap) is None
    assert tokens_said(b"") is None
