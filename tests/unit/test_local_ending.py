"""What a run says of itself when it ends."""

from pathlib import Path

import pytest

from cascadia_local.ending import read_served, served_words
from cascadia_router.metrics import Metrics
from cascadia_router.served import Served


def test_what_the_router_counted_is_read_from_the_end_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "entry-router.log"
    assert read_served(log) is None
    log.write_text('{"event": "stopping", "in_flight": 1}\nno JSON\n')
    assert read_served(log) is None, "it was killed before it could say"
    with log.open("a") as file:
        file.write("x" * 200_000 + "\n")
        file.write('{"event": "stopped", "answered": {"small": 1}, "cut_off": 0}\n')
        file.write('{"event": "stopped", "answered": {"small": 3}, "unanswered": {"failed": 1}, "cut_off": 2}\nTrace\n')
    assert read_served(log) == Served(answered={"small": 3}, unanswered={"failed": 1}, cut_off=2)


def test_only_clients_requests_are_counted() -> None:
    metrics = Metrics()
    metrics.requests["client", "small", "answered"] = 5
    metrics.requests["client", "small", "fallback"] = 1
    metrics.requests["client", "", "deadline"] = 2
    metrics.requests["peer", "small", "answered"] = 40
    metrics.refused["unauthorized"] = 3
    served = Served.counted(metrics, 1)
    assert served == Served(answered={"small": 6}, unanswered={"deadline": 2}, refused={"unauthorized": 3}, cut_off=1)


@pytest.mark.parametrize(
    ("served", "restarts", "words"),
    [
        (Served(), 0, "0 requests answered, none failed."),
        (Served(answered={"small": 1}), 0, "1 request answered (1 by small), none failed."),
        (
            Served(
                answered={"small": 1200, "large": 34},
                unanswered={"failed": 2, "disconnected": 1},
                refused={"unauthorized": 4, "overloaded": 1},
                cut_off=3,
            ),
            1,
            "1,234 requests answered (1,200 by small, 34 by large), 2 failed, 1 given up by the client, 5 refused, "
            "3 cut off since the endpoint's router was last started again.",
        ),
    ],
)
def test_it_is_told_in_one_sentence(served: Served, restarts: int, words: str) -> None:
    assert served_words(served, restarts=restarts) == words
