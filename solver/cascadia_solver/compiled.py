"""The one way in which this package compiles functions with numba.

Compiled code is cached on disk beside the module, or under ``NUMBA_CACHE_DIR`` where that directory
cannot be written to, so that only the first command after an installation compiles.

The cache notices a change of the module that a function is in, not of those that it calls: after
editing `steptime`, touch `scheduling_kernel` and `operating_point`. (Tests compare compiled and plain
results, and fail if that was forgotten.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

import numba
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["borrowed", "compiled", "inlined"]

_A = TypeVar("_A")
_F = TypeVar("_F", bound=Callable[..., object])


def compiled(function: _F) -> _F:
    """Compile to machine code at the first call; keeps Python's float arithmetic (no fast maths)."""
    return cast("_F", numba.njit(cache=True, nogil=True, error_model="numpy")(function))


def inlined(function: _F) -> _F:
    """Compile into every place it is called from: for the short functions of a hot loop.

    Unlike a call, this lets `borrowed` arrays be passed on at no cost.
    """
    return cast("_F", numba.njit(nogil=True, error_model="numpy", inline="always")(function))


def _without_count(_context: Any, array: Any) -> Any:
    def view_of(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, value=arguments[0])
        view.meminfo = cast("Any", cgutils).get_null_value(view.meminfo.type)
        return view._getvalue()  # noqa: SLF001  # what numba has all its own code do

    return array(array), view_of


class _Same(Protocol):
    def __call__(self, array: _A, /) -> _A: ...


borrowed: _Same = cast("Any", intrinsic)(_without_count)
"""In compiled code, the same array without its reference count; whoever called that code has to hold the array.

Numba counts a reference each time that an array is passed on, with two atomic operations: in a loop of short
functions over a few arrays, most of the time goes there.
"""
