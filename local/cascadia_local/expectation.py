"""What a given plan would do under some demand, and that demand written out for a replay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cascadia_api.cascade import CascadeDeployment
from cascadia_api.plan import Plan
from cascadia_local.planning_messages import Expectation
from cascadia_local.simulated_engine.recorded import RecordedAnswer, RecordedRequest, encode_rows
from cascadia_local.traffic import PlannedRequest, write_requests
from cascadia_solver.catalogue.manifest import model_of
from cascadia_solver.evaluation import path_times
from cascadia_solver.roofline import CostSource
from cascadia_solver.standing import simulate_plan
from cascadia_solver.workload import RequestSample

__all__ = ["expect", "write_replay"]

PERCENTILES = (50, 90, 95, 99)
SIMULATIONS = 2
SLOWER = 1.2
"""A cascade is simulated again if its slow requests take this many times as long as it was given to settle."""


def expect(cascade: CascadeDeployment, plan: Plan, sample: RequestSample, sources: Sequence[CostSource]) -> Expectation:
    """Simulate a plan under a demand, at work: as plans are, with engines that neither fill nor drain.

    Args:
        cascade: The manifest that the plan is for.
        plan: The plan.
        sample: The demand's requests.
        sources: Where the step times of each model come from.
    """
    live = [index for index, stage in enumerate(plan.stages) if stage.gpus]
    facts = [model_of(model) for model in cascade.spec.models]
    settle = plan.latency.p95_ms / 1000
    for _ in range(SIMULATIONS):
        times, answered_by = simulate_plan(cascade.spec, facts, plan, sample, sources, settle_seconds=settle)
        seen = path_times(times, sample, answered_by)
        slow = seen.percentile(95)
        if slow <= SLOWER * settle or not math.isfinite(slow):
            break
        settle = slow  # under more load than the plan was made for, it takes longer to fill
    each = np.arange(len(sample))
    taken = np.stack([sample.taken_by(model) for model in range(len(plan.stages))], axis=1)
    return Expectation(
        end_to_end_ms={percent: 1000 * seen.percentile(percent) for percent in PERCENTILES},
        quality=float((sample.quality[each, answered_by] * taken[each, answered_by]).mean()),
        reach={plan.stages[index].name: float(((answered_by >= index) & taken[:, index]).mean()) for index in live},
        saturated=tuple(plan.stages[index].name for index in live if times.saturated[index]),
    )


def write_replay(
    sample: RequestSample,
    cascade: CascadeDeployment,
    scorer: str,
    requests_file: Path,
    outcomes_file: Path,
    *,
    most: int | None = None,
) -> None:
    """Write the requests of a demand, and what every model answers to each of them.

    Args:
        sample: The requests.
        cascade: The manifest whose models they are answered by.
        scorer: Id of the scorer whose scores they have.
        requests_file: For JSON lines of `PlannedRequest`.
        outcomes_file: For rows in the shape of a calibration set, one a request.
        most: Most requests to write.
    """
    count = min(len(sample), most or len(sample))
    names = [model.name for model in cascade.spec.models]
    requests, rows = [], []
    for number in range(count):
        identity = f"replay-{number}"
        outputs = sample.output_tokens[number]
        requests.append(
            PlannedRequest(
                at=float(sample.arrivals[number] - sample.arrivals[0]),
                key=identity,
                input_tokens=max(1, round(float(sample.input_tokens[number]))),
                output_tokens=max(1, round(float(outputs[-1]))),
                row=identity,
            )
        )
        answers = {
            name: RecordedAnswer(
                scores={} if math.isnan(score) else {scorer: float(score)},
                quality=float(quality),
                output_tokens=max(1, round(float(tokens))),
            )
            for name, score, quality, tokens in zip(
                names, sample.scores[number], sample.quality[number], outputs, strict=True
            )
        }
        rows.append(RecordedRequest(id=identity, input_tokens=requests[-1].input_tokens, answers=answers))
    write_requests(requests_file, requests)
    outcomes_file.write_bytes(encode_rows(rows))
