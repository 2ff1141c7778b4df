"""The array and tree types that appear in more than one layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
"""A host array of any dtype and shape."""

Rows: TypeAlias = npt.NDArray[np.int64]
"""Row numbers within a snapshot, int64, shape (rows,)."""

Json: TypeAlias = Mapping[str, Any]
"""A JSON object."""
