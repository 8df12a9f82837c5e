"""The one way in which this package compiles functions with numba.

Compiled code is cached on disk beside the module, or under ``NUMBA_CACHE_DIR`` where that directory
cannot be written to, so that only the first command after an installation compiles.

The cache notices a change of the module that a function is in, not of those that it calls: after
editing `steptime`, touch `scheduling_kernel` and `operating_point`. (Tests compare compiled and plain
results, and fail if that was forgotten.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

__all__ = ["compiled"]

_F = TypeVar("_F", bound=Callable[..., object])


def compiled(function: _F) -> _F:
    """Compile to machine code at the first call; keeps Python's float arithmetic (no fast maths)."""
    return cast("_F", numba.njit(cache=True, nogil=True, error_model="numpy")(function))
