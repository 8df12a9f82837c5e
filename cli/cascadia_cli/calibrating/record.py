"""The calibration set on disk: one line a request, whole or not at all, so that a broken run can go on."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from cascadia_api.errors import CascadiaError, InputError
from cascadia_cli.calibrating.prompts import Prompt
from cascadia_cli.calibrating.scoring import SCORERS
from cascadia_solver.calibration import CalibrationRow

__all__ = ["JudgedRow", "Record"]


class JudgedRow(CalibrationRow, rename="camel", omit_defaults=True, kw_only=True):
    """A row of a calibration set, and how it came about. Planning ignores these further fields.

    Attributes:
        judge: Name of the judge.
        prompt: Digest of the prompt.
        reference: Worth by the prompt's reference, by stage, where another judge was asked: tells how far
            that judge can be trusted.
    """

    judge: str
    prompt: str
    reference: dict[str, float] | None = None


_MOST_KEPT = 20
_BEGINNING = b'{"id":"'
"""Of every line."""
_decoder = msgspec.json.Decoder(JudgedRow)


class Record:
    """A calibration set that is being made. A context manager: it holds the file, locked, until its end.

    Args:
        path: The file; made if it is not there.
        stages: Stages that a row must have to be complete.
        scorers: Ids of the scores that each of its answers must have.

    Attributes:
        rows: Complete rows by id, those of earlier runs included.
        redone: Rows of earlier runs that were dropped: cut off, of a prompt that has changed, or without a stage.
        before: Where the file is kept as it was, if whole rows were dropped: another manifest may have made them.
    """

    def __init__(self, path: str, stages: Collection[str], scorers: Collection[str] = SCORERS) -> None:
        self.rows: dict[str, JudgedRow] = {}
        self._lines: dict[str, bytes] = {}  # as they were written
        self.redone = 0
        self.before: str | None = None
        self._path = Path(path)
        self._stages = stages
        self._scorers = scorers
        self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def open(self, prompts: Sequence[Prompt], judge: str) -> list[Prompt]:
        """Read what earlier runs have left, and return the prompts that are still to be asked.

        Args:
            prompts: All prompts.
            judge: Name of the judge, which must be that of every row.

        Raises:
            InputError: The file is not of this command, of another judge, in use, or cannot be written.
        """
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            content = self._path.read_bytes()
        except BlockingIOError:
            raise InputError("another run is writing it: wait for it, or name another -o", source=self._name) from None
        except OSError as error:
            raise InputError(f"cannot be written: {error.strerror}", source=self._name) from None
        current = {prompt.id: prompt for prompt in prompts}
        whole, _, cut_off = content.rpartition(b"\n")
        self._check_cut_off(cut_off)
        self.redone = int(bool(cut_off.strip()))
        for number, line in enumerate(whole.split(b"\n"), start=1):
            if line.strip():
                self._take(number, line, current, judge)
        if self.redone > bool(cut_off.strip()):
            self.before = self._keep(content)
        if self.redone:
            self._rewrite(list(self.rows))
        return [prompt for prompt in prompts if prompt.id not in self.rows]

    def add(self, row: JudgedRow) -> None:
        """Write one row: in one call, so that a killed process leaves whole lines.

        Raises:
            CascadiaError: The disk is full.
        """
        line = msgspec.json.encode(row) + b"\n"
        try:
            written = os.write(self._file, line)
            while written < len(line):  # a full disk raises on the next call
                written += os.write(self._file, line[written:])
        except OSError as error:
            raise CascadiaError(f"{self._path} cannot be written: {error.strerror}") from None
        self.rows[row.id], self._lines[row.id] = row, line

    def finish(self, prompts: Sequence[Prompt]) -> None:
        """Put the rows into the prompts' order: the same answers give the same file, and so the same plan."""
        order = {prompt.id: number for number, prompt in enumerate(prompts)}
        ordered = sorted(self.rows, key=lambda identifier: order.get(identifier, -1))
        if ordered != list(self.rows):
            self._rewrite(ordered)

    @property
    def complete(self) -> list[JudgedRow]:
        """Rows with all stages and scores; those of prompts that are not asked any more may lack some."""
        return [row for row in self.rows.values() if self._complete(row)]

    @property
    def _name(self) -> str:
        return str(self._path)

    def _take(self, number: int, line: bytes, current: Mapping[str, Prompt], judge: str) -> None:
        try:
            row = _decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            message = f"line {number} was not written by this command ({error}): name another -o, or move the file away"
            raise InputError(message, source=self._name) from None
        prompt = current.get(row.id)
        stale = prompt is not None and (row.prompt != prompt.digest or not self._complete(row))
        if stale or row.id in self.rows:
            self.redone += 1
        elif row.judge != judge:
            message = f"line {number} was judged by {row.judge}, not {judge}: a set has one judge; name another -o"
            raise InputError(message, source=self._name)
        else:
            self.rows[row.id], self._lines[row.id] = row, line + b"\n"

    def _keep(self, content: bytes) -> str:
        """Write what the file held beside it, over nothing."""
        try:
            for number in range(1, _MOST_KEPT + 1):
                beside = self._path.with_name(f"{self._path.name}.before{'' if number == 1 else number}")
                with contextlib.suppress(FileExistsError), beside.open("xb") as file:
                    file.write(content)
                    return str(beside)
        except OSError as error:
            raise CascadiaError(f"{beside} cannot be written: {error.strerror}") from None
        raise InputError(f"{beside} is there already: clear away what you do not need", source=self._name)

    def _check_cut_off(self, line: bytes) -> None:
        """See that the last line, which has no end, may be what a killed run has left: a whole other file is none."""
        begun = line.lstrip(b"\x00 ")[: len(_BEGINNING)]
        if begun != _BEGINNING[: len(begun)]:
            message = "was not written by this command: name another -o, or move the file away"
            raise InputError(message, source=self._name)

    def _complete(self, row: JudgedRow) -> bool:
        answers = [row.answers.get(stage) for stage in self._stages]
        return all(
            answer is not None and all(math.isfinite(answer.scores.get(scorer, math.nan)) for scorer in self._scorers)
            for answer in answers
        )

    def _rewrite(self, ids: Sequence[str]) -> None:
        """Replace the file's content, at once for whoever reads it."""
        beside = self._path.with_name(self._path.name + ".new")
        try:
            new = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
            fcntl.flock(new, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with os.fdopen(os.dup(new), "wb") as file:
                file.writelines(self._lines[identifier] for identifier in ids)
                file.flush()
                os.fsync(new)
            beside.replace(self._path)
        except OSError as error:
            raise CascadiaError(f"{self._path} cannot be written: {error.strerror}") from None
        os.close(self._file)  # and with it the lock of the file that was replaced
        self._file = new
        self.rows = {identifier: self.rows[identifier] for identifier in ids}
