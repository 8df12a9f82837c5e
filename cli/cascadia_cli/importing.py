"""`cascadia calibrate import`: public results into a calibration set."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cascadia_api.errors import InputError, Problem
from cascadia_cli.failures import say
from cascadia_cli.files import read_lines, same_file, write_text

__all__ = ["import_calibration"]


def import_calibration(
    dataset: str, source: str, *, models: Sequence[str], target: str, auroc: float, seed: int
) -> None:
    """Write the calibration set made from a file of public results.

    Raises:
        InputError: A flag or the file is wrong.
    """
    from cascadia_solver.importers import import_wildbench, import_zeroeval
    from cascadia_solver.rejected_rows import RowProblem, rejected_rows_summary

    names = _models(models)
    if same_file(source, target):
        raise InputError(Problem("--output", f"{target} is the file that is read: name another, to keep it"))
    importer = {"zeroeval": import_zeroeval, "wildbench": import_wildbench}[dataset]
    try:
        made = list(importer(read_lines(source), names, auroc=auroc, seed=seed))
    except InputError as error:
        raise error if error.source else error.within(source) from None
    lines = [line.decode() for line in made if isinstance(line, bytes)]
    problems = [line for line in made if isinstance(line, RowProblem)]
    text = "".join(f"{line}\n" for line in lines)
    if target == "-":
        sys.stdout.write(text)
    else:
        write_text(target, text)
    if problems:
        say(f"note: {rejected_rows_summary(problems, 'results')}")
    say(
        f"wrote {len(lines):,} requests answered by {', '.join(names)} to {'stdout' if target == '-' else target}; "
        f"scores are simulated with an AUROC of {auroc:g}"
    )


def _models(flags: Sequence[str]) -> dict[str, str]:
    names: dict[str, str] = {}
    for flag in flags:
        stage, separator, name = flag.partition("=")
        if not separator or not stage or not name:
            raise InputError(Problem("--model", f"{flag!r} is not STAGE=NAME, as in small=Llama-3.1-8B-Instruct"))
        if stage in names:
            raise InputError(Problem("--model", f"the model {stage!r} is given twice: remove one"))
        names[stage] = name
    return names
