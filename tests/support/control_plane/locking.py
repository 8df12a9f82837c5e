"""One process at a time in a folder that several test runs share."""

import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.control_plane.deadlines import DeadlineExceededError


@contextmanager
def exclusively(lock: Path, *, timeout_s: float, what: str) -> Iterator[None]:
    """Hold a file lock; while another process holds it, say so on stderr every ten seconds.

    The kernel lets go of the lock when its holder dies, so a killed build never blocks the next.

    Args:
        lock: The file to lock; made if missing, and left behind.
        timeout_s: Seconds to wait for the other process.
        what: What the other process is doing, in words.

    Raises:
        DeadlineExceededError: when the other process still holds it after `timeout_s` seconds.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _acquire(handle, timeout_s, what)
        yield
    finally:
        os.close(handle)


def _acquire(handle: int, timeout_s: float, what: str) -> None:
    started = time.monotonic()
    said = started - 10
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            now = time.monotonic()
            if now - started > timeout_s:
                raise DeadlineExceededError(f"waited {timeout_s:g} s for {what} to finish") from None
            if now - said >= 10:
                print(f"waiting for {what} to finish ({now - started:.0f}s)", file=sys.stderr, flush=True)
                said = now
            time.sleep(0.2)
        else:
            return
