"""Which answers of a simulated model are right, how sure it seems of them, and how long they are.

A probit model with one latent difficulty per request. For request *r* and model *m*, all normals
standard and drawn from seeded hashes (so every process and every run agrees):

    margin      M = ability_m - hardness_r - (sqrt(rho) * z_r + sqrt(1 - rho) * e_rm)
    correct     M > 0, so P(correct) = Phi(ability_m - hardness)
    confidence  C = M + sigma_m * n_rm, with sigma_m such that C tells right from wrong with the
                model's AUROC (area under the receiver operating characteristic) at hardness 0
    score       1 / (1 + exp(-(SCORE_INTERCEPT + SCORE_SLOPE * C))), in (0, 1): what the LogProb
                scorer sees as exp(mean token log-probability)
    length      base_r * verbosity_m * exp(g_m * (z_r + hardness) - g_m^2 / 2 + t * u_rm - t^2 / 2)

z_r is shared by all models of a cascade: that is what correlates their errors. rho = 0.7 gives the
default cascade error correlations (phi) of about 0.4. g_m > 0 makes a model write longer answers
to harder requests, as published outputs of small models show.
"""

from __future__ import annotations

import math
import struct
from hashlib import blake2b
from typing import Annotated, NamedTuple

from msgspec import Meta, Struct

__all__ = [
    "DEFAULT_CORRELATION",
    "DifficultyModel",
    "ModelAbility",
    "Outcome",
    "ability_for_accuracy",
    "confidence_noise",
    "default_abilities",
]

DEFAULT_CORRELATION = 0.7
"""Share of the margin's variance that is the request's own: the tetrachoric correlation of errors."""
SCORE_INTERCEPT = 1.2
SCORE_SLOPE = 0.8
"""Put the median answer of an 0.72-accurate model at a score of 0.84, as 8B models score."""
LENGTH_NOISE = 0.2
"""Standard deviation of the logarithm of an answer's length that the request does not explain."""
BASE_LENGTH_MEDIAN, BASE_LENGTH_SPREAD = 160.0, 0.74
"""Log-normal lengths where a request states none: mean 211 tokens, 95th percentile 540."""

_WORDS = struct.Struct("<4Q")
_TURN = 2 * math.pi / 2**64
_UNIT = 2.0**-64


class ModelAbility(Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """What a simulated model can do.

    Attributes:
        name: The model's (stage's) name: part of the seed of its own noise.
        ability: Margin of the median request at hardness 0, see `ability_for_accuracy`.
        auroc: How well the score tells right answers from wrong ones, at hardness 0.
        verbosity: Mean answer length relative to the request's base length.
        hard_length: Growth of the logarithm of the answer's length per unit of difficulty.
    """

    name: Annotated[str, Meta(min_length=1, max_length=253)]
    ability: Annotated[float, Meta(ge=-6, le=6)]
    auroc: Annotated[float, Meta(gt=0.5, le=0.999)] = 0.8
    verbosity: Annotated[float, Meta(gt=0, le=100)] = 1.0
    hard_length: Annotated[float, Meta(ge=0, le=2)] = 0.15


class Outcome(NamedTuple):
    """How a model's answer to one request turns out.

    Attributes:
        score: exp(mean token log-probability), in (0, 1).
        quality: Judged worth in [0, 1]; 1 or 0 from the difficulty model.
        output_tokens: Length of the answer if nothing cuts it short, ≥ 1.
    """

    score: float
    quality: float
    output_tokens: int


class DifficultyModel:
    """Outcomes of one model, a pure function of (seed, request key, hardness, base length).

    Args:
        model: The model's ability.
        seed: Seed of the whole cascade: every stage must be given the same one.
        correlation: rho above, in [0, 1].
    """

    def __init__(self, model: ModelAbility, *, seed: int = 0, correlation: float = DEFAULT_CORRELATION) -> None:
        self.model = model
        self._request_seed = blake2b(f"request/{seed}".encode(), digest_size=32).digest()
        self._model_seed = blake2b(f"model/{seed}/{model.name}".encode(), digest_size=32).digest()
        self._shared, self._own = math.sqrt(correlation), math.sqrt(1 - correlation)
        self._noise = confidence_noise(model.ability, model.auroc)

    def outcome(self, key: bytes, *, hardness: float = 0.0, base_tokens: int | None = None) -> Outcome:
        """Return how this model's answer to a request turns out.

        Args:
            key: Identifies the request: the same key is the same request to every model.
            hardness: Shift of the request's difficulty, in standard deviations of the margin.
            base_tokens: Answer length of a model of verbosity 1; None draws one from the key.
        """
        model = self.model
        difficulty, length = _normals(key, self._request_seed)[:2]
        error, confidence, extra, _ = _normals(key, self._model_seed)
        margin = model.ability - hardness - self._shared * difficulty - self._own * error
        score = 1 / (1 + math.exp(-(SCORE_INTERCEPT + SCORE_SLOPE * (margin + self._noise * confidence))))
        if base_tokens is None:
            base_tokens = round(BASE_LENGTH_MEDIAN * math.exp(BASE_LENGTH_SPREAD * length))
        slope = model.hard_length
        growth = slope * (difficulty + hardness) - slope**2 / 2 + LENGTH_NOISE * extra - LENGTH_NOISE**2 / 2
        return Outcome(score, float(margin > 0), max(1, round(base_tokens * model.verbosity * math.exp(growth))))


def _normals(key: bytes, seed: bytes) -> tuple[float, float, float, float]:
    """Four independent standard normals of (key, seed), by Box and Muller's transform."""
    a, b, c, d = _WORDS.unpack(blake2b(key, digest_size=32, key=seed).digest())
    first, second = math.sqrt(-2 * math.log((a + 0.5) * _UNIT)), math.sqrt(-2 * math.log((c + 0.5) * _UNIT))
    return (
        first * math.cos(b * _TURN),
        first * math.sin(b * _TURN),
        second * math.cos(d * _TURN),
        second * math.sin(d * _TURN),
    )


def ability_for_accuracy(accuracy: float) -> float:
    """Return the ability that answers a share `accuracy` of requests of hardness 0 right, 0 < accuracy < 1."""
    from statistics import NormalDist  # slow to import, and engine processes do not need it

    return NormalDist().inv_cdf(accuracy)


def confidence_noise(ability: float, auroc: float) -> float:
    """Return sigma such that M + sigma·n tells M > 0 from M ≤ 0 with the given AUROC, for M ~ N(ability, 1).

    By bisection on the AUROC's integral (`_auroc`), which falls in sigma from 1 to 1/2.
    """
    low, high = 1e-3, 64.0
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _auroc(ability, middle) > auroc else (low, middle)
    return math.sqrt(low * high)


def _auroc(ability: float, sigma: float, points: int = 240) -> float:
    """AUROC of C = M + sigma·n for M > 0, M ~ N(ability, 1): P(C of a right answer > C of a wrong one).

    With C = c, M is normal with mean ability + (c - ability) / (1 + sigma²) and variance
    sigma² / (1 + sigma²). The trapezoid rule runs over c, from the right so that the share of right
    answers above c is a running sum.
    """
    spread = math.sqrt(1 + sigma * sigma)
    width = 12 * spread / points
    above = pairs = right = wrong = 0.0
    for step in range(points + 1):
        x = 6 - 12 * step / points
        density = math.exp(-x * x / 2)
        share = 0.5 * (1 + math.erf((ability + x / spread) * spread / sigma / math.sqrt(2)))
        pairs += density * (1 - share) * (above + density * share * width / 2)
        above += density * share * width
        right += density * share
        wrong += density * (1 - share)
    return pairs / (right * wrong * width)


def default_abilities(names: list[str]) -> list[ModelAbility]:
    """Return plausible abilities for a cascade's models, smallest first.

    Three models get accuracies 0.72, 0.86 and 0.90 and AUROCs 0.80, 0.85 and 0.87; other numbers of
    models are put on the same curves. The smallest is the wordiest, most of all on hard requests.
    """
    abilities = []
    for position, name in enumerate(names):
        gap = ((len(names) - 1 - position) / max(1, len(names) - 1)) ** 2  # 1 for the smallest, 0 for the largest
        abilities.append(
            ModelAbility(
                name=name,
                ability=ability_for_accuracy(round(0.90 - 0.18 * gap, 2)),
                auroc=round(0.87 - 0.07 * gap, 2),
                verbosity=round(1 + 0.1 * gap, 2),
                hard_length=round(0.1 + 0.15 * gap, 2),
            )
        )
    return abilities
