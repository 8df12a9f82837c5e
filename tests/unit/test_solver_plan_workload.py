"""Traffic: rates, lengths, and its join with a calibration set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_api.cascade import TokenLengths
from cascadia_api.errors import InputError
from cascadia_api.report import SCORE_EDGES, TOKEN_EDGES, Histogram
from cascadia_solver.observed import WEIGHT_LIMIT, ObservedDemand, demand_of_observation, score_weights
from cascadia_solver.prior import prior_accuracy, prior_table
from cascadia_solver.trace import Trace
from cascadia_solver.workload import demand_of_manifest, demand_of_trace, log_normal_lengths, match
from tests.support.planning import cascade, probit_table


@settings(max_examples=30, deadline=None)
@given(mean=st.integers(20, 20_000), ratio=st.floats(1.0, 3.7))
def test_log_normal_lengths_go_through_both_points(mean: int, ratio: float) -> None:
    p95 = max(mean, int(mean * ratio))
    lengths = log_normal_lengths(TokenLengths(mean=mean, p95=p95), 4000)
    assert lengths.min() >= 1
    assert np.quantile(lengths, 0.95) == pytest.approx(p95, rel=0.03, abs=1)
    assert lengths.mean() == pytest.approx(mean, rel=0.04, abs=0.6)


def test_the_manifest_gives_poisson_arrivals_at_its_rate() -> None:
    demand = demand_of_manifest(cascade(rate="12.5").spec.workload, 3, seed=3)
    gaps = np.diff(demand.arrivals)
    assert 1 / gaps.mean() == pytest.approx(12.5)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.05)
    assert demand.length_model == 2
    assert abs(np.corrcoef(demand.input_tokens, demand.output_tokens)[0, 1]) < 0.05


def trace(count: int) -> Trace:
    random = np.random.default_rng(5)
    return Trace(
        np.concatenate([[0.0], np.cumsum(random.exponential(0.2, count - 1))]),
        np.rint(random.uniform(10, 500, count)),
        np.rint(random.lognormal(4, 1, count)) + 1,
    )


def test_a_short_trace_is_repeated_and_scaled() -> None:
    source = trace(700)
    demand = demand_of_trace(source, 3, requests=2000)
    assert len(demand.arrivals) == 2100
    assert demand.requests_per_second == pytest.approx(source.requests_per_second, rel=0.01)
    assert (np.diff(demand.arrivals) >= 0).all()
    faster = demand_of_trace(source, 3, requests=2000, requests_per_second=40.0)
    assert (len(faster.arrivals) - 1) / faster.arrivals[-1] == pytest.approx(40.0)
    assert demand.source == "Trace"


def test_matching_keeps_the_traffics_lengths_and_the_tables_mix() -> None:
    table, demand = probit_table(800, 1), demand_of_trace(trace(1600), 3, requests=1600)
    sample = match(demand, table, seed=2)
    assert (sample.output_tokens[:, 2] == demand.output_tokens).all()
    assert sample.input_tokens is demand.input_tokens
    counts = np.bincount(sample.row, minlength=800)
    assert set(counts) == {2}
    assert sample.quality.mean(axis=0) == pytest.approx(table.quality.mean(axis=0))
    # Long answers go to long answers, and each model keeps its ratio to the largest one's.
    assert (
        np.corrcoef(
            np.argsort(np.argsort(demand.output_tokens)), np.argsort(np.argsort(table.output_tokens[sample.row, 2]))
        )[0, 1]
        > 0.99
    )
    ratio = table.output_tokens[sample.row, 0] / table.output_tokens[sample.row, 2]
    assert sample.output_tokens[:, 0] == pytest.approx(np.maximum(1, demand.output_tokens * ratio), abs=0.51)


def test_matching_is_deterministic_by_seed() -> None:
    table, demand = probit_table(300, 1), demand_of_trace(trace(900), 3, requests=900)
    assert (match(demand, table, seed=4).row == match(demand, table, seed=4).row).all()
    assert (match(demand, table, seed=4).row != match(demand, table, seed=5).row).any()


def histogram(values: np.ndarray, edges: str) -> Histogram:
    bounds = {"tokens": TOKEN_EDGES, "score": SCORE_EDGES}[edges]
    counts = np.bincount(np.searchsorted(bounds, values), minlength=len(bounds) + 1)
    return Histogram(edges=edges, counts=[int(c) for c in counts], sum=float(values.sum()))  # type: ignore[arg-type]


def observed(scores: np.ndarray, rate: float = 20.0, stage: str = "small") -> ObservedDemand:
    random = np.random.default_rng(0)
    return ObservedDemand(
        rate, stage, histogram(random.uniform(200, 400, 5000), "tokens"),
        histogram(random.uniform(50, 150, 5000), "tokens"), histogram(scores, "score"),
    )  # fmt: skip


def test_observed_lengths_and_rate_are_taken_over() -> None:
    table = probit_table(1000, 1)
    demand = demand_of_observation(observed(table.scores[:, 0]), table)
    assert demand.requests_per_second == 20.0
    assert demand.input_tokens.mean() == pytest.approx(300, rel=0.05)
    assert demand.output_tokens.mean() == pytest.approx(100, rel=0.05)
    assert (demand.length_model, demand.source) == (0, "Observed")


def test_rows_are_weighted_towards_the_observed_scores() -> None:
    table = probit_table(4000, 1)
    scores = table.scores[:, 0]
    harder = scores[np.random.default_rng(1).random(len(scores)) < (1.1 - scores)]
    weights = score_weights(scores, histogram(harder, "score"))
    assert weights is not None
    assert weights.mean() == pytest.approx(1.0)
    assert (weights * scores).mean() == pytest.approx(harder.mean(), abs=0.01)
    accuracy = (weights * table.quality[:, 0]).mean()
    assert accuracy < table.quality[:, 0].mean() - 0.03


def test_weights_stay_near_one_without_a_shift_and_within_bounds_under_any() -> None:
    scores = probit_table(3000, 1).scores[:, 0]
    same = score_weights(scores, histogram(scores, "score"))
    assert same is not None
    assert same == pytest.approx(np.ones(len(scores)), abs=0.25)
    extreme = score_weights(scores, histogram(np.full(1000, 0.31), "score"))
    assert extreme is not None
    assert extreme.max() / extreme.min() <= WEIGHT_LIMIT**2 * 1.001
    assert score_weights(scores, histogram(scores[:50], "score")) is None


@pytest.mark.parametrize(
    ("change", "message"), [({"rate": 0.0}, "nothing to plan for"), ({"stage": "tiny"}, "none of small")]
)
def test_impossible_observations_are_refused(change: dict[str, object], message: str) -> None:
    table = probit_table(300, 1)
    with pytest.raises(InputError, match=message):
        demand_of_observation(observed(table.scores[:, 0], **change), table)  # type: ignore[arg-type]


def test_the_prior_has_the_published_accuracies() -> None:
    assert prior_accuracy("meta-llama/Llama-3.1-8B-Instruct", 8e9) == 0.73
    assert prior_accuracy("meta-llama/Meta-Llama-3.1-70B-Instruct", 7e10) == 0.86
    assert prior_accuracy("someone/unknown-30b", 30e9) == pytest.approx(0.83, abs=0.01)
    assert prior_accuracy("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", 7.6e9) == pytest.approx(0.73, abs=0.01)
    table = prior_table(["a", "b"], [0.73, 0.86], scorer="logprob-mean", output_tokens_mean=200)
    assert table.source == "Prior"
    assert table.quality.mean(axis=0) == pytest.approx([0.73, 0.86], abs=0.025)
    right, wrong = (table.scores[table.quality[:, 0] == worth, 0] for worth in (1, 0))
    assert (right[:, None] > wrong[None, :]).mean() == pytest.approx(0.80, abs=0.03)
