"""A little of what `make fuzz` does for long: nearly right messages at every way into the router."""

import pytest
from hypothesis import HealthCheck, settings

from tests.fuzz.__main__ import TARGETS, attempts


@pytest.mark.parametrize("target", TARGETS)
def test_whatever_comes(target: str) -> None:
    attempts(target, settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck)))()
