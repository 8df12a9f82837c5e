"""Calibration sets drawn from the same difficulty model that the simulated engines answer by."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from msgspec import Struct

from cascadia_api.errors import InputError
from cascadia_local.simulated_engine.difficulty import DEFAULT_CORRELATION, DifficultyModel, ModelAbility
from cascadia_local.simulated_engine.recorded import RecordedAnswer, RecordedRequest

__all__ = ["LengthDistribution", "sample_calibration"]

P95_NORMAL = 1.6448536269514722


class LengthDistribution(Struct, frozen=True, kw_only=True):
    """A log-normal distribution of token counts, given as workloads state it.

    Attributes:
        mean: Mean, tokens.
        p95: 95th percentile, tokens; at least the mean.
        longest: Longer draws are cut to this.
    """

    mean: float
    p95: float
    longest: int = 131_072

    def parameters(self) -> tuple[float, float]:
        """Return (mu, sigma) of the logarithm: mean = exp(mu + sigma²/2), p95 = exp(mu + 1.645·sigma).

        Raises:
            InputError: No log-normal has this mean and percentile.
        """
        if not (self.mean >= 1 and self.p95 >= self.mean):
            raise InputError(f"lengths: mean {self.mean:g} and p95 {self.p95:g} need 1 ≤ mean ≤ p95")
        room = P95_NORMAL**2 - 2 * math.log(self.p95 / self.mean)
        if room < 0:
            limit = math.exp(P95_NORMAL**2 / 2)
            raise InputError(f"lengths: p95 {self.p95:g} is over {limit:.2f} times the mean {self.mean:g}; lower it")
        sigma = P95_NORMAL - math.sqrt(room)
        return math.log(self.mean) - sigma**2 / 2, sigma

    def draw(self, source: random.Random, count: int) -> list[int]:
        """Draw `count` lengths, each at least 1."""
        mu, sigma = self.parameters()
        return [min(self.longest, max(1, round(math.exp(source.gauss(mu, sigma))))) for _ in range(count)]


def sample_calibration(
    models: Sequence[ModelAbility],
    count: int,
    *,
    seed: int,
    inputs: LengthDistribution,
    outputs: LengthDistribution,
    model_seed: int = 0,
    correlation: float = DEFAULT_CORRELATION,
    hardness: float = 0.0,
) -> list[RecordedRequest]:
    """Draw a calibration set: fresh requests, answered by every model as its engine would.

    Args:
        models: The cascade's models, smallest first.
        count: Requests to draw.
        seed: Seed of the requests: their keys (``calibration-<seed>-<n>``) and lengths.
        inputs: Distribution of prompt lengths.
        outputs: Distribution of base answer lengths (those of a model of verbosity 1).
        model_seed: The engines' `seed`.
        correlation: The engines' `errorCorrelation`.
        hardness: Shift of every request's difficulty.
    """
    source = random.Random(f"calibration/{seed}")  # noqa: S311 - a simulation, not a secret
    prompt_lengths, base_lengths = inputs.draw(source, count), outputs.draw(source, count)
    difficulties = [DifficultyModel(model, seed=model_seed, correlation=correlation) for model in models]
    rows = []
    for number, (prompt, base) in enumerate(zip(prompt_lengths, base_lengths, strict=True)):
        identifier = f"calibration-{seed}-{number}"
        answers = {}
        for difficulty in difficulties:
            outcome = difficulty.outcome(identifier.encode(), hardness=hardness, base_tokens=base)
            answers[difficulty.model.name] = RecordedAnswer(
                scores={"logprob-mean": outcome.score}, quality=outcome.quality, output_tokens=outcome.output_tokens
            )
        rows.append(RecordedRequest(id=identifier, input_tokens=prompt, answers=answers))
    return rows
