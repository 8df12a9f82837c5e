"""The scorer of a `CascadeDeployment`: what a user writes, and what routers are told of it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import UNSET
from pydantic import Field, StringConstraints

from cascadia_api.policy import ScorerPolicy
from cascadia_api.schema import ApiModel, DecimalString, Rule, as_decimal

__all__ = ["Scorer", "scorer_policy"]

ScorerId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", min_length=1, max_length=63)]


class Scorer(ApiModel):
    """What scores an answer."""

    type: Literal["LogProb"] = Field("LogProb", description="LogProb: the engine's own token log-probabilities.")
    given_id: ScorerId | None = Field(
        None,
        alias="id",
        description="Key of its scores in calibration sets; made from the type and its options where absent. Give one "
        "only to keep a set whose scores still hold although an option has changed.",
    )
    statistic: Literal["Mean", "Minimum", "Quantile", "Margin"] = Field(
        "Mean",
        description="Mean: exp of the mean token log-probability. Minimum: the least token probability. Quantile: the "
        "given quantile of the token probabilities. Margin: mean difference in probability of the two likeliest "
        "candidates for each token.",
    )
    quantile: DecimalString | None = Field(None, description='For Quantile, "0" to "1"; "0.1" where absent.')

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.quantile) || (self.statistic == 'Quantile' && double(self.quantile) <= 1.0)",
            "quantile is for statistic: Quantile, and at most 1: remove it, or set the statistic",
            lambda s: s.quantile is None or (s.statistic == "Quantile" and as_decimal(s.quantile) <= 1),
            ".quantile",
        ),
    )

    @property
    def id(self) -> str:
        """Key of its scores in calibration sets."""
        if self.given_id is not None:
            return self.given_id
        if self.statistic == "Quantile":
            return f"logprob-q{float(100 * as_decimal(self.quantile or '0.1')):g}"
        return {"Mean": "logprob-mean", "Minimum": "logprob-min", "Margin": "logprob-margin"}[self.statistic]


def scorer_policy(scorer: Scorer, identifier: str) -> ScorerPolicy:
    """What routers are told.

    Args:
        scorer: What the user wrote.
        identifier: The id of the plan's scores.
    """
    return ScorerPolicy(
        id=identifier,
        type=scorer.type,
        statistic=scorer.statistic,
        quantile=float(scorer.quantile or "0.1") if scorer.statistic == "Quantile" else UNSET,
    )
