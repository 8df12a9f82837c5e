"""The metrics' catalogue and what a router exposes are the same: names, types, labels; and it can be parsed."""

import itertools
import re
from pathlib import Path

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from cascadia_router.metrics import LATENCY_BUCKETS, Metrics, client_exposition, exposition

CATALOGUE = Path(__file__).parents[2] / "docs" / "metrics.md"
ODD = 'a "quoted" \\ name\nof two lines'


def full() -> Metrics:
    """Counters that have all been counted, so that every family shows its labels."""
    metrics = Metrics()
    metrics.requests["client", "small", "answered"] = 3
    metrics.refused["bad_body"] = 1
    metrics.escalations["small", "large", "score"] = 2
    metrics.fallbacks["small", "deadline"] = 1
    metrics.scorer_errors["small", "judge", ODD] = 1
    metrics.unscored["small", "accept"] = 1
    metrics.faults["small", "lost"] = 1
    metrics.shadows["small", "compared"] = 1
    metrics.scorer_seconds["judge"].observe(0.3)
    for counter in (metrics.retries, metrics.retries_refused, metrics.latched):
        counter["small"] = 1
    metrics.ladder_steps["down"] = 1
    metrics.spans["exported"] = 1
    for seconds in (0.004, 0.3, 599.0, 601.0):
        metrics.request_seconds["client"].observe(seconds)
    return metrics


def exposed() -> dict[str, Metric]:
    """Families by name, as Prometheus' own client reads them."""
    text = exposition(
        full(),
        stage="small",
        in_flight=1,
        waiting=0,
        policy_revision=7,
        policy_rejected=0,
        ladder_position=1,
        access_log_dropped=0,
        ready=True,
        replicas=[("small", "small-0", 2, True)],
    ) + client_exposition([("team-a", 3, 100, {"tokens": 1})])
    families = list(text_string_to_metric_families(text.decode()))
    assert len({family.name for family in families}) == len(families), "a family is exposed once"
    return {family.name: family for family in families}


def documented() -> dict[str, tuple[str, set[str]]]:
    """Type and labels by name, of the catalogue's table."""
    rows = {}
    for line in CATALOGUE.read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 5 and cells[1].startswith("`cascadia_router_"):
            kind = cells[2]
            name = cells[1].strip("`")
            assert (kind == "counter") == name.endswith("_total"), f"{name} is no name of a {kind}"
            rows[name.removesuffix("_total")] = (kind, set(re.findall(r"`([a-z]+)`", cells[3])))
    return rows


def test_the_catalogue_is_what_is_exposed() -> None:
    families, rows = exposed(), documented()
    assert set(families) == set(rows)
    for name, (kind, labels) in rows.items():
        family = families[name]
        assert family.type == kind, name
        assert family.documentation, name
        assert family.samples, f"{name} shows no labels here: count it in full()"
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == labels, name


def test_odd_names_come_through() -> None:
    (sample,) = exposed()["cascadia_router_scorer_errors"].samples
    assert sample.labels["reason"] == ODD


def test_histograms_are_cumulative_and_have_their_sums() -> None:
    family = exposed()["cascadia_router_request_seconds"]
    samples = [sample for sample in family.samples if sample.labels["port"] == "client"]
    buckets = {float(s.labels["le"]): s.value for s in samples if s.name.endswith("_bucket")}
    assert tuple(buckets) == (*LATENCY_BUCKETS, float("inf"))
    assert (buckets[0.005], buckets[0.25], buckets[0.5], buckets[600.0], buckets[float("inf")]) == (1, 1, 2, 3, 4)
    assert next(s.value for s in samples if s.name.endswith("_count")) == 4
    assert next(s.value for s in samples if s.name.endswith("_sum")) == 0.004 + 0.3 + 599.0 + 601.0


def test_buckets_reach_from_a_fast_first_token_to_a_long_answer() -> None:
    """Neighbours are at most 2.5 apart as a ratio, so that a quantile is known to that; docs/metrics.md lists them."""
    assert (LATENCY_BUCKETS[0], LATENCY_BUCKETS[-1]) == (0.005, 600.0)
    pairs = itertools.pairwise(LATENCY_BUCKETS)
    assert all(low < high <= 2.5 * low + 1e-9 for low, high in pairs)
    listed = ", ".join(f"{edge:g}" for edge in LATENCY_BUCKETS)
    assert listed in " ".join(CATALOGUE.read_text().split())
