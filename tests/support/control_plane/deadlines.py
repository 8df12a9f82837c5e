"""Waiting with a deadline: no test may hang, and a wait that fails says what it waited for."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class DeadlineExceededError(TimeoutError):
    """Something did not happen in time; the message says what, and what was seen last."""


def wait_for(
    what: str,
    probe: Callable[[], T | None],
    *,
    timeout_s: float,
    interval_s: float = 0.1,
    ignore: tuple[type[Exception], ...] = (),
    seen: Callable[[], object] | None = None,
) -> T:
    """Call `probe` until it returns something true, and return that.

    Args:
        what: What is waited for, in words, for the error message.
        probe: Called every `interval_s`; a false result (None, False, an empty list) means not yet.
        timeout_s: Seconds to wait at most. The probe runs at least once.
        interval_s: Seconds between two calls.
        ignore: Exceptions of the probe that mean "not yet". The last one is quoted in the error.
        seen: Called once when time is up: what to quote as the last thing seen.

    Raises:
        DeadlineExceededError: when `timeout_s` seconds have passed.
    """
    deadline = time.monotonic() + timeout_s
    trouble: Exception | None = None
    while True:
        try:
            result = probe()
        except ignore as error:
            trouble, result = error, None
        if result:
            return result
        if time.monotonic() >= deadline:
            last = f"; last error: {trouble}" if trouble else ""
            if seen is not None:
                last += f"; last seen: {seen()}"
            raise DeadlineExceededError(f"waited {timeout_s:g} s for {what}{last}")
        time.sleep(interval_s)
