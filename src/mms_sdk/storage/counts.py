"""How many rows there are of each label and split."""

from __future__ import annotations

from typing import Any

import numpy as np

from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.dataset import Column


def by_label(column: Column, codes: Any) -> dict[str, int]:
    """Rows by the label that their code names; masked ones name none.

    Raises:
        InvalidRequest: A code names no label of the column.
    """
    labels = column.labels or ()
    numbers, rows = np.unique(np.ma.compressed(codes), return_counts=True)
    if wrong := [number for number in numbers.tolist() if not 0 <= number < len(labels)]:
        raise InvalidRequest(f"codes of column {column.name!r} are 0 to {len(labels) - 1}; got {wrong[0]}; add a label")
    return {labels[int(number)]: int(count) for number, count in zip(numbers, rows, strict=True)}
