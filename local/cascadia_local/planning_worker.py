"""The process that plans: ``python -m cascadia_local.planning_worker``.

Planning is CPU-bound and loads numpy and numba: in a process of its own (and at a lower priority) it
delays no engine, router or view, and can be ended when it takes too long. Jobs come on standard
input, answers go to standard output (see `planning_messages`).
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

from cascadia_api.errors import InfeasibleError, InputError, PlanningTimeoutError
from cascadia_api.plan import Plan
from cascadia_local.expectation import expect, write_replay
from cascadia_local.planning_messages import LENGTH, Infeasible, Invalid, Job, OutOfTime, Planned, Progress
from cascadia_solver.inputs import traffic_of
from cascadia_solver.planner import plan_cascade
from cascadia_solver.replanning import replan, thresholds_alone

__all__ = ["main", "run_job"]


def run_job(job: Job, progress: Callable[[Progress], None]) -> Planned | Invalid | Infeasible | OutOfTime:
    """Do a job."""
    try:
        plan = job.plan or _planned(job, lambda what, share: progress(Progress(what, share)))
        sample = traffic_of(job.inputs).sample
        if job.requests_file is not None and job.outcomes_file is not None:
            write_replay(
                sample, job.inputs.cascade, plan.scorer, job.requests_file, job.outcomes_file, most=job.most_requests
            )
        return Planned(
            plan, None if job.in_force is None else expect(job.inputs.cascade, job.in_force, sample, job.inputs.sources)
        )
    except InputError as error:
        return Invalid(error.problems, error.source)
    except InfeasibleError as error:
        return Infeasible(error.reason, str(error), error.shortfalls, error.nearest)
    except PlanningTimeoutError as error:
        return OutOfTime(str(error))


def _planned(job: Job, progress: Callable[[str, float], None]) -> Plan:
    if job.in_force is None or job.replicas == "Anew":
        return plan_cascade(job.inputs, deadline_seconds=job.deadline_seconds, progress=progress)
    if job.replicas == "KeepIfEnough":
        return replan(job.inputs, job.in_force, deadline_seconds=job.deadline_seconds, progress=progress)
    found = thresholds_alone(job.inputs, job.in_force)
    if found is None:
        raise InfeasibleError("Overloaded", "no thresholds keep quality and latency on the replicas in force")
    return found


def send(stream: BinaryIO, message: Any) -> None:
    """Write one message."""
    document = pickle.dumps(message)
    stream.write(LENGTH.pack(len(document)) + document)
    stream.flush()


def main() -> None:
    """Take jobs until the input ends."""
    jobs, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # whatever some library prints must not get between the answers
    while len(head := jobs.read(LENGTH.size)) == LENGTH.size:
        job = pickle.loads(jobs.read(*LENGTH.unpack(head)))  # noqa: S301 - from our own parent
        send(answers, run_job(job, lambda progress: send(answers, progress)))


if __name__ == "__main__":
    main()
