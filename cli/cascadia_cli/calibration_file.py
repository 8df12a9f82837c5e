"""Calibration sets in files: JSON lines, CSV or Parquet, told apart by the file's name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from cascadia_api.errors import InputError
from cascadia_cli.files import read_text

if TYPE_CHECKING:
    from cascadia_solver.rejected_rows import RowProblem

__all__ = ["calibration_lines"]


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
    lines = read_text(path).splitlines()
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
