"""The planning process: real plans, a deadline that holds, and no process left behind."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cascadia_api.plan import Plan
from cascadia_operator import planning
from cascadia_operator.planning import PlanningJob, PlanningPool
from tests.support.control_plane import wait_for

PAIR = Path(__file__).resolve().parents[2] / "examples" / "pair.yaml"


@pytest.fixture
async def pool() -> AsyncIterator[PlanningPool]:
    made = PlanningPool()
    yield made
    made.close()


def job(gpus: int, *, deadline_seconds: float = 60.0, calibration: tuple[str, ...] = (), **spec: Any) -> PlanningJob:
    document = yaml.safe_load(PAIR.read_text())
    document["spec"] |= spec
    return PlanningJob(document, calibration, {"h100": gpus}, deadline_seconds)


async def test_plans_and_failures_come_back_as_plain_data(pool: PlanningPool) -> None:
    made = await pool.run(job(8))
    assert made.failure is None
    assert Plan.model_validate(made.plan).gpus <= 8

    infeasible = await pool.run(job(2))
    assert infeasible.plan is None
    assert infeasible.failure is not None
    assert infeasible.failure.final
    assert infeasible.failure.trouble.reason == "InsufficientGPUs"
    assert re.search(r"needs \d+, has 2", infeasible.failure.trouble.message)

    useless = await pool.run(job(8, calibration=('{"id": 1}', "not json")))
    assert useless.failure is not None
    assert useless.failure.trouble.reason == "InvalidSpec"
    assert "calibration set" in useless.failure.trouble.message


async def test_a_deadline_ends_the_process_and_the_next_job_gets_another(
    pool: PlanningPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as impatient:
        impatient.setattr(planning, "_GRACE_SECONDS", 0.0)
        late = await pool.run(job(8, deadline_seconds=0.01))
    assert late.failure is not None
    assert late.failure.trouble.reason == "PlanningTimedOut"
    assert not late.failure.final
    assert (await pool.run(job(2))).result == "infeasible"


_OPERATOR = """
import asyncio, sys, time
from cascadia_operator.planning import PlanningPool
if __name__ == "__main__":
    pool = PlanningPool()
    process = pool._process()
    print(process.submit(__import__("os").getpid).result(), flush=True)
    time.sleep(600)
"""


def test_the_process_ends_with_a_killed_operator(tmp_path: Path) -> None:
    script = tmp_path / "host.py"
    script.write_text(_OPERATOR)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait(10)
        wait_for("the planning process to end", lambda: not Path(f"/proc/{child}").exists(), timeout_s=20)
