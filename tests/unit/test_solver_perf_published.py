"""Published measurements that the cost model was not fitted to: they can be read, and some are met."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.published_runs import PublishedRun, load_published, published_errors, published_table
from cascadia_solver.factors import Factors
from cascadia_solver.roofline import CostSource, Roofline

RUNS = load_published()


def _source(_: PublishedRun, factors: Factors) -> CostSource:
    return Roofline(factors=factors)


def test_every_run_is_of_the_catalogue_and_makes_sense() -> None:
    assert len(RUNS) > 90
    for run in RUNS:
        assert (run.clients is None) != (run.rate is None), run
        assert run.first_token is None or run.first_token < run.end_to_end, run
        assert run.model.heads % run.shape.tensor_parallel == 0, run
    assert len({run.source for run in RUNS}) == 9


@pytest.mark.parametrize(
    ("source", "gpu", "percent"),
    [("vllm-ci-latency", "H100-SXM-80GB", 5.0), ("vllm-ci-latency", "H200-SXM-141GB", 12.0),
     ("gpustack-qwen3-8b", "H100-SXM-80GB", 12.0), ("oci-mi300x", "MI300X-192GB", 20.0)],
)  # fmt: skip
def test_end_to_end_latency_of_others_benchmarks_is_met(source: str, gpu: str, percent: float) -> None:
    own = [run for run in RUNS if (run.source, run.gpu.name) == (source, gpu)]
    errors = published_errors(own, _source)[:, 0]
    assert 100.0 * float(np.median(np.abs(errors))) <= percent


def test_the_table_names_every_source_and_says_what_was_not_published() -> None:
    own = [run for run in RUNS if run.source == "vllm-ci-latency"]
    errors = np.full((len(own), 2), 0.1)
    errors[:, 1] = math.nan
    text = published_table(own, errors, each=True)
    assert text.count("Mixtral-8x7B") == 3
    assert "vllm-ci-latency H200 vllm" in text
    assert text.splitlines()[-1].split() == ["all", "9", "10.0", "+10.0", "-", "-"]
