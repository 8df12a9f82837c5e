"""When a refused client should come back."""

from cascadia_router.waiting_room import DrainRate, WaitingRoom


def test_the_rate_is_that_of_the_last_seconds() -> None:
    rate = DrainRate()
    assert rate.per_second() == 0.0
    rate.observe(0.0, 0)
    assert rate.per_second() == 0.0
    for second in range(1, 31):
        rate.observe(second, 4 * second if second <= 20 else 80 + 2 * (second - 20))
    assert rate.per_second() == 2.0
    rate.observe(60.0, 100)
    assert rate.per_second() == 0.0


def test_clients_come_back_when_as_many_have_ended_as_wait() -> None:
    room = WaitingRoom(lambda *_: None, lambda *_: None)
    assert room.retry_seconds(1.0) == WaitingRoom.LONGEST_RETRY_SECONDS, "nothing is known to end"
    room.rate.observe(0.0, 0)
    room.rate.observe(10.0, 5)
    assert room.retry_seconds(1.0) == 2
    assert room.retry_seconds(10.0) == 1, "wall time passes more slowly than service time"
    room.rate.observe(11.0, 100_000)
    assert room.retry_seconds(1.0) == WaitingRoom.LEAST_RETRY_SECONDS
