"""Reading the files that a command is given; every failure names the file and what to do."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascadia_api.errors import InputError

if TYPE_CHECKING:
    from cascadia_api.cascade import CascadeDeployment
    from cascadia_api.load import Manifest
    from cascadia_api.plan import Plan
    from cascadia_solver.trace import Trace

__all__ = [
    "STDIN",
    "read_json",
    "read_lines",
    "read_manifest",
    "read_plan",
    "read_text",
    "read_trace",
    "same_file",
    "unwritable",
    "write_text",
]

STDIN = "-"
"""In the place of a file's name."""
_MOST_BYTES = 512 * 1024 * 1024


def read_text(path: str) -> str:
    """Content of a text file; of standard input for ``-``.

    Raises:
        InputError: It cannot be read, or is not UTF-8 text.
    """
    try:
        content = _standard_input() if path == STDIN else _head(path)
        if len(content) > _MOST_BYTES:
            raise InputError(f"larger than {_MOST_BYTES >> 20} MiB: cut it", source=path)
        return content.decode("utf-8-sig")  # spreadsheets and Windows put a byte order mark before it
    except FileNotFoundError:
        raise InputError("no such file: check the path", source=path) from None
    except IsADirectoryError:
        raise InputError("is a folder: name a file in it", source=path) from None
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text (byte {error.start}): is it the right file?", source=path) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", source=path) from None


def read_lines(path: str) -> list[str]:
    """Lines of a text file, without their ends; of standard input for ``-``.

    Raises:
        InputError: It cannot be read, or is not UTF-8 text.
    """
    from cascadia_api.load import text_lines

    return text_lines(read_text(path))


def _standard_input() -> bytes:
    if sys.stdin is None:  # closed by whoever started this process
        raise InputError("there is no standard input: name a file", source=STDIN)
    return sys.stdin.buffer.read(_MOST_BYTES + 1)


def _head(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(_MOST_BYTES + 1)


def same_file(one: str, other: str) -> bool:
    """Whether two names are of one file that is there; never so for ``-``."""
    try:
        return STDIN not in {one, other} and Path(one).samefile(other)
    except OSError:
        return False


def write_text(path: str, text: str) -> None:
    """Write a text file.

    Raises:
        InputError: It cannot be written.
    """
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise unwritable(path, error) from None


def unwritable(path: str, error: OSError) -> InputError:
    """The error to tell of a file that could not be written."""
    if isinstance(error, FileNotFoundError):
        return InputError("cannot be written: its folder is not there: make it", source=path)
    return InputError(f"cannot be written: {error.strerror or error}", source=path)


def read_json(path: str) -> Mapping[str, Any]:
    """The JSON object in a file.

    Raises:
        InputError: It cannot be read or is not a JSON object.
    """
    try:
        document = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: line {error.lineno}, column {error.colno}: {error.msg}", source=path) from None
    except (ValueError, RecursionError):  # a number of thousands of digits, a list in a list in a list …
        raise InputError("no JSON that can be read: is it the right file?", source=path) from None
    if not isinstance(document, dict):
        raise InputError(f"expected a JSON object, found {type(document).__name__}", source=path)
    return document


def read_manifest(path: str) -> Manifest:
    """The CascadeDeployment in a file, with the calibration ConfigMap beside it if there is one.

    Raises:
        InputError: With one problem for each wrong field.
    """
    from cascadia_api.load import load_manifest

    return load_manifest(read_text(path), path)


def read_plan(path: str, cascade: CascadeDeployment) -> Plan:
    """A plan that `cascadia plan -o json` or ``-o yaml`` wrote.

    Raises:
        InputError: It is no plan, or not one of this cascade.
    """
    from pydantic import ValidationError

    from cascadia_api.load import load_yaml, problems_of
    from cascadia_api.plan import Plan

    document = next(iter(load_yaml(read_text(path), path)), None)
    if not isinstance(document, dict) or "planId" not in document:
        raise InputError("no plan: write one with `cascadia plan FILE -o json`", source=path)
    document = {key: value for key, value in document.items() if key != "explanation"}
    try:
        plan = Plan.model_validate(document)
    except ValidationError as error:
        raise InputError(problems_of(error), source=path) from None
    names = [model.name for model in cascade.spec.models]
    if plan.cascade != cascade.metadata.name or [stage.name for stage in plan.stages] != names:
        raise InputError(
            f"is a plan of {plan.cascade} ({', '.join(stage.name for stage in plan.stages)}), not of "
            f"{cascade.metadata.name} ({', '.join(names)}): plan again",
            source=path,
        )
    scorer = cascade.spec.routing.scorer_id
    if plan.scorer != scorer:
        raise InputError(
            f"its thresholds are for scores of {plan.scorer}, spec.routing.scorer is {scorer}: plan again",
            source=path,
        )
    return plan


def read_trace(path: str) -> tuple[Trace, list[str]]:
    """A trace of real traffic, and notes for the user.

    Raises:
        InputError: It is no trace.
    """
    from cascadia_solver.rejected_rows import rejected_rows_summary
    from cascadia_solver.trace import parse_trace

    try:
        trace, problems = parse_trace(read_lines(path))
    except InputError as error:
        raise error.within(path) from None
    notes = [rejected_rows_summary(problems, "trace")] if problems else []
    if trace.unit_unstated:
        notes.append(
            f"the trace's timestamps are numbers without a unit: taken as milliseconds, which makes "
            f"{trace.requests_per_second:,.4g} requests/s; call the column timestampMs if so, and write "
            "milliseconds or dates if not"
        )
    return trace, notes
