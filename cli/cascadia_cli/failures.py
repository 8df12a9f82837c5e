"""Errors as a person reads them: one line for each thing wrong, where it is and what to do; no traceback."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO

from cascadia_api.errors import CascadiaError, InfeasibleError, InputError, Problem

if TYPE_CHECKING:
    from typer import Typer

__all__ = ["DEBUG_VARIABLE", "describe", "interrupted", "problem_line", "run_command", "say"]

DEBUG_VARIABLE = "CASCADIA_DEBUG"
_INTERRUPTED = 130


def run_command(app: Typer, arguments: Sequence[str], *, program: str) -> int:
    """Run a command of a typer application and return its exit code."""
    import typer

    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this process
            setattr(sys, name, _nowhere())
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without ≥ or → shows ? in its place
    command = typer.main.get_command(app)
    try:
        code = command.main(list(arguments) or ["--help"], prog_name=program, standalone_mode=False)
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except typer.Abort:
        code = _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`cascadia crd | head`); nothing more can be told to it.
        sys.stdout = _nowhere()
        return 1
    except Exception as error:  # noqa: BLE001 - the last resort against tracebacks
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()
        return describe(error, program)
    if code == _INTERRUPTED:
        return interrupted(program)
    return code if isinstance(code, int) else 0


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123 - stays open until the exit


def interrupted(program: str) -> int:
    """Say that the user has interrupted the program; return the exit code."""
    say(f"{program}: interrupted")
    return _INTERRUPTED


def say(*lines: str) -> None:
    """Write lines to standard error: notes and errors, never results."""
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    sys.stderr.flush()


def problem_line(problem: Problem, source: str | None) -> str:
    """One problem as ``file: field: message``."""
    return f"{source}: {problem}" if source else str(problem)


def describe(error: Exception, program: str) -> int:
    """Say what an error means on standard error; return the exit code."""
    if isinstance(error, InputError):
        say(*(problem_line(problem, error.source or program) for problem in error.problems))
        return error.exit_code
    if isinstance(error, InfeasibleError):
        say(f"{program}: no plan is feasible ({error.reason}): {error}")
        say(*(f"  {s.what}: needed {_amount(s.needed)}, available {_amount(s.available)}" for s in error.shortfalls))
        if error.nearest:
            say(f"  nearest feasible: {error.nearest}")
        return error.exit_code
    if isinstance(error, CascadiaError):
        say(f"{program}: {error}")
        return error.exit_code
    usage: Callable[[], str] | None = getattr(error, "format_message", None)
    if usage is not None:  # an error of the command line itself, in whichever click this typer brings
        path = getattr(getattr(error, "ctx", None), "command_path", program)
        # Where the flag's type refuses a value, typer passes on the words of its validator.
        say(f"{path}: {usage().strip().replace('Value error, ', '')}", f"Try '{path} --help' for help.")
        return int(getattr(error, "exit_code", 2))
    if isinstance(error, OSError):  # a full disk, too many open files
        say(f"{program}: the system refuses: {error}", f"Set {DEBUG_VARIABLE}=1 to see where.")
        return 1
    say(
        f"{program}: internal error: {type(error).__name__}: {error}",
        f"Set {DEBUG_VARIABLE}=1 to see where, and please report it.",
    )
    return 1


def _amount(value: float) -> str:
    """``12``, ``0.851``, ``156.5 G``."""
    return f"{value / 1e9:,.1f} G" if abs(value) >= 1e8 else f"{value:,.6g}"
