"""Two minutes of mixed load while thresholds move, replicas come and go, and engines and routers are killed."""

from pathlib import Path

import pytest

from tests.support.embedded import processes_of
from tests.support.soak import soak

MEMORY_MB = 6.0
"""Most by which the entry router may grow from the second quarter of the run to its last: caches still fill then."""


@pytest.mark.timeout(600)
async def test_two_minutes_of_everything_fail_no_request(tmp_path: Path) -> None:
    outcome = await soak(tmp_path, minutes=2.0)
    told = outcome.summary()
    assert outcome.failed == [], told
    assert outcome.cut == [], told
    assert outcome.interrupted["planned"] == 0, told
    assert outcome.left == [], told
    assert outcome.growth() < MEMORY_MB, told
    # The run must have done what it claims to have survived.
    assert told["requests"] > 1000, told
    assert set(told["byKind"]) == {"whole", "stream", "leaves-stream", "leaves-early", "pinned"}, told
    assert outcome.escalated > 50, told
    assert sum(outcome.kills.values()) >= 3, told
    assert outcome.revisions > 60, told
    assert outcome.replicas > 6, told
    assert processes_of(tmp_path) == [], "processes are left"
