"""Rows, named by their numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from mms_sdk.errors import InvalidRequest
from mms_sdk.types import Rows


def row_numbers(rows: Any) -> Rows:
    """Row numbers as somebody gave them, as an array.

    Args:
        rows: A list, a range or an array of whole numbers.

    Raises:
        InvalidRequest: They are none: one number, a slice, a mask, fractions, words.
    """
    try:
        found = np.asarray(rows)
        fits = not found.size or found.dtype.kind == "i" or (found.dtype.kind == "u" and found.max() < 2**63)
        if found.ndim == 1 and fits:
            return found.astype(np.int64, copy=False)
    except (ValueError, OverflowError):  # rows of several lengths, for one
        pass
    meant = {
        "slice": ", of a slice range(start, stop)",
        "int": ", of one row [row]",
    }.get(type(rows).__name__, "")
    raise InvalidRequest(f"rows are given by their numbers, e.g. [3, 17]{meant}; got {str(rows)[:80]}")
