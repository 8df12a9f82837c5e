"""One run: the prompts that are left, some at a time, each answered by every stage and judged, then written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from msgspec import UNSET

from cascadia_api.errors import CascadiaError
from cascadia_cli.calibrating.endpoint import AskError, together
from cascadia_cli.calibrating.judges import Judge, reference_worth
from cascadia_cli.calibrating.prompts import Prompt
from cascadia_cli.calibrating.record import JudgedRow, Record
from cascadia_cli.calibrating.stages import Stage, StageAnswer
from cascadia_solver.calibration import CalibrationAnswer

__all__ = ["Outcome", "make_rows"]

_MOST_FAILURES_IN_A_ROW = 10


@dataclass
class Outcome:
    """What came of a run's prompts.

    Attributes:
        done: Rows written.
        cut: Answers that ended at a length limit, by stage.
        failures: Message by the id of each prompt that has no row.
    """

    done: int = 0
    cut: Counter[str] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)


async def make_rows(
    prompts: Iterable[Prompt],
    stages: Sequence[Stage],
    judge: Judge,
    record: Record,
    *,
    concurrency: int,
    tell: Callable[[Outcome], None],
) -> Outcome:
    """Ask, judge and write.

    Args:
        prompts: What is left.
        stages: Every stage, smallest model first.
        judge: Judges the answers.
        record: Where rows are written.
        concurrency: Prompts that are worked on at once; each is put to all stages at once.
        tell: Called after each prompt.

    Returns:
        What came of them. A prompt that failed is named there, and has no row.

    Raises:
        CascadiaError: Going on has no use: an endpoint refuses every request, or nothing has succeeded for long.
    """
    outcome = Outcome()
    left = iter(prompts)
    in_a_row = 0

    async def work(prompts: Iterator[Prompt]) -> None:
        nonlocal in_a_row
        for prompt in prompts:  # shared: each worker takes the next
            try:
                row = await _row(prompt, stages, judge, outcome.cut)
            except AskError as error:
                if error.hopeless:
                    raise
                outcome.failures[prompt.id] = str(error)
                # Refusals may be the prompts' fault, once others have been answered.
                in_a_row += not (error.refused and outcome.done)
                if in_a_row >= _MOST_FAILURES_IN_A_ROW:
                    raise CascadiaError(
                        f"the last {in_a_row} prompts failed, prompt {prompt.id!r} by {error}"
                    ) from None
            else:
                record.add(row)
                outcome.done += 1
                in_a_row = 0
            tell(outcome)

    await together(*(work(left) for _ in range(concurrency)))
    return outcome


async def _row(prompt: Prompt, stages: Sequence[Stage], judge: Judge, cut: Counter[str]) -> JudgedRow:
    replies: list[StageAnswer] = await together(*(stage.ask(prompt) for stage in stages))
    texts = {stage.name: reply.text for stage, reply in zip(stages, replies, strict=True)}
    worth = await judge.worth(prompt, texts)
    cut.update(stage.name for stage, reply in zip(stages, replies, strict=True) if reply.cut)
    return JudgedRow(
        id=prompt.id,
        input_tokens=replies[0].input_tokens,
        answers={
            stage.name: CalibrationAnswer(
                scores={scorer: round(score, 6) for scorer, score in reply.scores.items()},
                quality=round(worth[stage.name], 6),
                output_tokens=reply.output_tokens,
            )
            for stage, reply in zip(stages, replies, strict=True)
        },
        judge=judge.name,
        prompt=prompt.digest,
        reference=reference_worth(prompt, texts) if prompt.references and judge.name != "Reference" else None,
        needs=list(prompt.needs) or UNSET,
    )
