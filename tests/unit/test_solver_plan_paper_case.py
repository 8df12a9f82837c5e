"""The paper's case study comes out on our cost model."""

from __future__ import annotations

import math

import pytest

from benchmarks.paper_case import GPUS, PAPER, Case, case_at


def held(rate: float, precision: str) -> Case:
    case = case_at(rate, precision)
    assert case is not None
    assert sum(case.gpus) <= GPUS
    assert all(abs(have - paper) <= 4 for have, paper in zip(case.gpus, PAPER, strict=True))
    assert case.on_papers_gpus["DP2 TP4"] == 0.0
    return case


def test_in_bf16_the_papers_wrong_shape_cannot_serve_and_the_other_one_costs() -> None:
    case = held(11.0, "bf16")
    assert 0.15 <= case.on_papers_gpus["DP1 TP8"] <= 0.60
    # Weights leave a TP2 replica a cache of 4,500 tokens.
    assert math.isinf(case.on_papers_gpus["DP4 TP2"])


def test_in_fp8_the_papers_wrong_shape_costs_what_it_does_in_the_paper() -> None:
    case = held(9.0, "fp8")
    assert case.on_papers_gpus["DP4 TP2"] == pytest.approx(0.337, abs=0.08)
    assert 0.15 <= case.forced["DP6 TP2"] <= 0.60
