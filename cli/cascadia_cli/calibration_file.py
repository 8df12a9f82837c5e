"""Calibration sets in files: which one goes with a manifest, and its rows, from JSON lines, CSV or Parquet."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from cascadia_api.errors import InputError
from cascadia_cli.files import STDIN, read_lines

if TYPE_CHECKING:
    from cascadia_api.load import Manifest
    from cascadia_solver.calibration import CalibrationSet
    from cascadia_solver.rejected_rows import RowProblem

__all__ = ["calibration_lines", "read_calibration"]


def read_calibration(manifest: Manifest, file: str, path: str | None) -> tuple[CalibrationSet | None, list[str]]:
    """The calibration set to plan with, and notes for the user.

    In this order: the file named on the command line; the ConfigMap that the manifest refers to, in the
    manifest's own file; a file of that ConfigMap's name beside it. Without any, planning falls back to a
    published prior.

    Args:
        manifest: The manifest.
        file: Where the manifest is from.
        path: Calibration file named on the command line, if any.

    Raises:
        InputError: The set cannot be used.
    """
    from cascadia_solver.calibration import parse_calibration
    from cascadia_solver.rejected_rows import rejected_rows_summary

    spec = manifest.cascade.spec
    name = spec.calibration.config_map_ref.name if spec.calibration else None
    notes: list[str] = []
    lines: Iterable[bytes | str | RowProblem] | None = None
    source = path or f"{file}: ConfigMap {name}"
    if path is None and manifest.calibration is not None:
        lines = manifest.calibration
    elif path is None and name is not None:
        beside = [Path(file).parent / f"{name}{suffix}" for suffix in (".jsonl", ".csv", ".parquet")]
        found = next((place for place in beside if file != STDIN and place.is_file()), None)
        if found is not None:
            path = source = str(found)
            notes.append(f"calibration set: {found}, for the ConfigMap {name}")
        else:
            notes.append(
                f"neither {file} nor {beside[0]} holds the ConfigMap {name}: published accuracies stand in, and no "
                "quality bound is claimed; give the set with --calibration FILE"
            )
    try:
        if path is not None:
            lines = calibration_lines(path)
        if lines is None:
            return None, notes
        calibration, problems = parse_calibration(
            lines, models=[model.name for model in spec.models], scorer=spec.routing.scorer_id
        )
    except InputError as error:
        raise error.within(source) from None
    notes += [rejected_rows_summary(problems, "calibration set")] if problems else []
    if calibration.scores_simulated:
        notes.append(
            "the set's scores are simulated: its thresholds and its bound are for trying things out, not to serve"
        )
    return calibration, notes


def calibration_lines(path: str) -> Iterable[bytes | str | RowProblem]:
    """The rows of a calibration set, for `parse_calibration`.

    Args:
        path: ``.csv``, ``.parquet``, or JSON lines under any other name; ``-`` is standard input.

    Raises:
        InputError: The file cannot be read, or its table lacks a column.
    """
    from cascadia_solver.flat_calibration import lines_of_csv

    suffix = Path(path).suffix.lower()
    if suffix == ".parquet":
        return _lines_of_parquet(path)
    lines = read_lines(path)
    return lines_of_csv(lines) if suffix == ".csv" else lines


def _lines_of_parquet(path: str) -> Iterable[bytes | RowProblem]:
    from cascadia_solver.flat_calibration import lines_of_table

    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        message = "Parquet needs the package pyarrow: pip install pyarrow, or write the set as JSON lines or CSV"
        raise InputError(message, source=path) from None
    try:
        with Path(path).open("rb") as file:
            table = parquet.read_table(file)
    except FileNotFoundError:
        raise InputError("no such file: check the path", source=path) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", source=path) from None
    except pa.ArrowException as error:
        raise InputError(f"not a Parquet file: {str(error).splitlines()[0]}", source=path) from None
    return lines_of_table(table.column_names, zip(*(column.to_pylist() for column in table.columns), strict=True))
