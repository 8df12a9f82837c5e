"""The paper's case study comes out on our cost model."""

from __future__ import annotations

import math

from benchmarks.paper_case import GPUS, PAPER, closest


def test_some_rate_gives_about_the_papers_allocation_and_a_wrong_shape_costs() -> None:
    case = closest([9.0, 9.5, 10.0])
    assert sum(case.gpus) <= GPUS
    assert all(abs(have - paper) <= 4 for have, paper in zip(case.gpus, PAPER, strict=True))
    assert any(0.15 <= penalty <= 0.60 for penalty in case.penalties.values() if math.isfinite(penalty))
