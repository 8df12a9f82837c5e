"""Corrections of the cost model in a file that several runs may learn into at once."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cascadia_api.errors import CascadiaError, InputError
from cascadia_solver.live_correction import LiveCorrections

__all__ = ["learn_into"]

_TRIES = 100
_PAUSE_S = 0.02


def learn_into(path: Path, change: Callable[[LiveCorrections], LiveCorrections]) -> LiveCorrections:
    """Change what a file of corrections holds; a file that is not there holds none. Blocks for some milliseconds.

    Whoever else learns into it meanwhile waits, so that nobody's corrections are lost.

    Args:
        path: The file.
        change: From what it holds to what it shall hold; where that is the same object nothing is written.

    Returns:
        What it holds now.

    Raises:
        CascadiaError: It cannot be read or written, or holds something else.
    """
    try:
        with _alone(path):
            known = _read(path)
            learnt = change(known)
            if learnt is not known:
                beside = path.with_name(path.name + ".new")
                beside.write_text(json.dumps(learnt.to_json(), indent=1) + "\n", encoding="utf-8")
                beside.replace(path)
            return learnt
    except OSError as error:
        raise CascadiaError(f"{path}: what was learnt cannot be written: {error.strerror}") from None


def _read(path: Path) -> LiveCorrections:
    try:
        return LiveCorrections.from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return LiveCorrections()
    except (ValueError, InputError) as error:
        raise CascadiaError(
            f"{path}: what was learnt is not written over what is there, no corrections: {error}"
        ) from None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock of the file's folder: the file itself is replaced."""
    folder = os.open(path.absolute().parent, os.O_RDONLY)
    try:
        for left in reversed(range(_TRIES)):
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not left:
                    raise
                time.sleep(_PAUSE_S)
        yield
    finally:
        os.close(folder)
