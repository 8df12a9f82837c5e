"""Order of many whole numbers, as token counts are, in a fraction of the time that an argsort of floats takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["ascending"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_KEY_BITS = 63
_TIE_BITS = 24
"""Fewer bits of what settles ties would leave many of them unsettled."""


def ascending(values: Floats, ties: Floats | None = None) -> Integers:
    """Indices that put values in ascending order.

    Value, tie-break and index are packed into one integer: sorting those is several times faster than sorting indices.

    Args:
        values: [n].
        ties: Numbers in [0, 1) by which equal values are ordered [n]; None: in the order they come in.

    Returns:
        [n]
    """
    index_bits = max(1, (len(values) - 1).bit_length())
    if len(values) and 0 <= values.min() <= values.max() < 2.0 ** (_KEY_BITS - index_bits):
        whole = values.astype(np.int64)
        spare = _KEY_BITS - index_bits - int(whole.max()).bit_length()
        if spare >= (0 if ties is None else _TIE_BITS) and (whole == values).all():
            if ties is not None:
                whole = (whole << spare) | (ties * 2.0**spare).astype(np.int64)
            keys = np.sort((whole << index_bits) | np.arange(len(values)))
            return np.asarray(keys & ((1 << index_bits) - 1))
    return np.argsort(values, kind="stable") if ties is None else np.lexsort((ties, values))
