"""The example's models, and its calibration set.

As in ``python -m cascadia_local.demo_calibration > examples/chat-calibration.jsonl``. The rows come
from the difficulty model that the demo's simulated engines answer by, of other requests: so the demo's
plan is to its traffic what a real one is to fresh traffic of the same kind.
"""

from __future__ import annotations

import sys

from msgspec.structs import replace

from cascadia_local.simulated_engine.calibration import LengthDistribution, sample_calibration
from cascadia_local.simulated_engine.difficulty import ModelAbility, ability_for_accuracy
from cascadia_local.simulated_engine.recorded import RecordedRequest, encode_rows

__all__ = ["EXAMPLE_ABILITIES", "example_rows"]

EXAMPLE_ABILITIES = (
    ModelAbility(name="small", ability=ability_for_accuracy(0.78), auroc=0.87, verbosity=1.1, hard_length=0.25),
    ModelAbility(name="medium", ability=ability_for_accuracy(0.86), auroc=0.88, verbosity=1.03, hard_length=0.14),
    ModelAbility(name="large", ability=ability_for_accuracy(0.92), auroc=0.88, verbosity=1.0, hard_length=0.1),
)
"""Made up, in the range of published figures: the score tells right from wrong as on TriviaQA (AUROC 0.87 for
8B models), and the small model writes longer answers, most of all to hard requests."""
ROWS = 1_500
SEED = 17
INPUTS = LengthDistribution(mean=1155, p95=3100)
OUTPUTS = LengthDistribution(mean=211, p95=500)
DIGITS = 5
"""Of scores: keeps the file well within a ConfigMap."""


def example_rows() -> list[RecordedRequest]:
    """Return the rows of the calibration set."""
    rows = sample_calibration(EXAMPLE_ABILITIES, ROWS, seed=SEED, inputs=INPUTS, outputs=OUTPUTS)
    return [
        replace(
            row,
            answers={
                name: replace(
                    answer, scores={scorer: round(score or 0.0, DIGITS) for scorer, score in answer.scores.items()}
                )
                for name, answer in row.answers.items()
            },
        )
        for row in rows
    ]


if __name__ == "__main__":
    sys.stdout.buffer.write(encode_rows(example_rows()))
