"""Errors that a user can act on: each names what is wrong, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["CascadiaError", "InfeasibleError", "InputError", "PlanningTimeoutError", "Problem", "Shortfall"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with some input.

    Attributes:
        field: Path of the field, for example ``spec.models[1].name``; empty for the whole input.
        message: What is wrong and how to mend it, one sentence or two.
    """

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class CascadiaError(Exception):
    """Base of every error that ends a command with one clear message instead of a traceback."""

    exit_code: int = 1


class InputError(CascadiaError):
    """A manifest, file or flag is wrong (exit code 2).

    Attributes:
        problems: All that was found wrong, at least one.
        source: The file or flag that it was found in, if known.
    """

    exit_code = 2

    def __init__(self, problems: str | Problem | Sequence[Problem], *, source: str | None = None) -> None:
        if isinstance(problems, str):
            problems = [Problem("", problems)]
        elif isinstance(problems, Problem):
            problems = [problems]
        self.problems: tuple[Problem, ...] = tuple(problems)
        self.source = source
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def within(self, source: str) -> InputError:
        """Return the same error, saying which file or flag it was found in."""
        return InputError(self.problems, source=source)

    def below(self, path: str) -> InputError:
        """Return the same error, its fields named from `path` on."""
        return InputError(
            [Problem(f"{path}.{p.field}" if p.field else path, p.message) for p in self.problems], source=self.source
        )


@dataclass(frozen=True, slots=True)
class Shortfall:
    """How far a demand is out of reach, in numbers.

    Attributes:
        what: The quantity, for example ``GPUs of pool h100`` or ``quality lower bound``.
        needed: What the manifest asks for.
        available: The most that there is.
    """

    what: str
    needed: float
    available: float


class PlanningTimeoutError(CascadiaError):
    """The deadline came before a plan was found that does what is asked; whether there is one is not known."""


class InfeasibleError(CascadiaError):
    """The input is right, but no plan can satisfy it (exit code 3).

    Attributes:
        reason: CamelCase reason, used in conditions: ``InsufficientGPUs``, ``ModelFitsNowhere``,
            ``PrecisionUnsupported``, ``QualityOutOfReach``, ``LatencyOutOfReach``, ``Overloaded``.
        shortfalls: The numbers that are missing.
        nearest: What the nearest feasible plan would be, in words; empty if there is none.
    """

    exit_code = 3

    def __init__(self, reason: str, message: str, *, shortfalls: Sequence[Shortfall] = (), nearest: str = "") -> None:
        self.reason = reason
        self.shortfalls: tuple[Shortfall, ...] = tuple(shortfalls)
        self.nearest = nearest
        super().__init__(message)
