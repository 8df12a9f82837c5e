"""An engine that is slower than predicted by a known factor: its step model, and the metrics it would export."""

from __future__ import annotations

import numpy as np

from cascadia_local.simulated_engine.metrics import EngineMetrics
from cascadia_solver.live_correction import scaled
from cascadia_solver.simulation import simulate_replica
from cascadia_solver.steptime import StepModel
from cascadia_solver.workload import poisson_arrivals

__all__ = ["SlowedEngine"]


class SlowedEngine:
    """Serves Poisson traffic of mixed lengths and counts it as the simulated engine does.

    Args:
        step: The prediction.
        times: How many times longer prompts and decoding really take.
        rate: Requests per second.
    """

    def __init__(self, step: StepModel, times: float, rate: float = 3.0) -> None:
        self.step = scaled(step, times, times)
        self.metrics = EngineMetrics()
        self._rate = rate
        self._served = 0

    def serve(self, seconds: float) -> None:
        """Serve and count the traffic of some time."""
        random = np.random.default_rng(self._served)
        requests = int(self._rate * seconds)
        inputs = np.rint(np.exp(random.normal(6.5, 0.6, requests)))
        outputs = np.rint(np.exp(random.normal(5.0, 0.5, requests)))
        arrivals = poisson_arrivals(self._rate, requests, random)
        arrivals *= seconds / arrivals[-1]
        first, finish = simulate_replica(self.step, arrivals, inputs, outputs)
        for arrived, started, ended, tokens, answer in zip(arrivals, first, finish, inputs, outputs, strict=True):
            self.metrics.answered(arrived, started, ended, 0.0, int(tokens), int(answer))
        self._served += requests

    @property
    def text(self) -> str:
        """What its ``/metrics`` says."""
        return self.metrics.text("m", {"num_running_reqs": 0.0}).decode()
