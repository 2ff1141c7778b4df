"""Arguments and results as files: JSON, and arrays beside it as NumPy's `.npz`. Nothing is pickled."""

from __future__ import annotations

import io
import json
import math
import zipfile
from typing import Any

from mms_sdk.errors import Damaged, InvalidRequest

_JSON = "value.json"
_ARRAY, _TUPLE, _FLOAT = "__mms_array__", "__mms_tuple__", "__mms_float__"
_KINDS = "biufcUS"  # of NumPy: truth values, numbers, texts and bytes of fixed length
_DEEPEST = 64


def pack(value: Any, *, what: str) -> bytes:
    """A value as bytes: None, truth values, numbers, texts, lists, tuples, dictionaries by text, and arrays.

    Args:
        value: Any of these, nested. JAX's arrays come back as NumPy's.
        what: Whose value it is, for the message.

    Raises:
        InvalidRequest: There is something else in it.
    """
    import numpy as np

    arrays: dict[str, Any] = {}
    told = json.dumps(_encoded(value, arrays, what, 0), allow_nan=False)
    whole = io.BytesIO()
    np.savez(whole, **arrays)
    with zipfile.ZipFile(whole, "a") as archive:
        archive.writestr(zipfile.ZipInfo(_JSON), told)
    return whole.getvalue()


def unpack(data: bytes) -> Any:
    """The value that `pack` was given.

    Raises:
        Damaged: It is not what `pack` writes.
    """
    import numpy as np

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            told = json.loads(archive.read(_JSON))
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return _decoded(told, arrays)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise Damaged(
            f"values are JSON and arrays in one zip archive; this is none that can be read: {error}"
        ) from error


def _encoded(value: Any, arrays: dict[str, Any], what: str, depth: int) -> Any:
    import numpy as np

    if depth > _DEEPEST:
        raise InvalidRequest(f"values are nested at most {_DEEPEST} deep; {what} goes deeper; flatten it")
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {_FLOAT: str(value)}
    if isinstance(value, list | tuple):
        items = [_encoded(each, arrays, what, depth + 1) for each in value]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    if isinstance(value, dict):
        odd = next((key for key in value if not isinstance(key, str) or key.startswith("__mms_")), None)
        if odd is not None:
            raise InvalidRequest(
                f"dictionaries travel by keys that are texts; in {what} there is the key {odd!r}; rename it"
            )
        return {key: _encoded(each, arrays, what, depth + 1) for key, each in value.items()}
    if isinstance(value, np.ndarray | np.generic) or hasattr(value, "__array__"):
        array = np.asarray(value)
        if array.dtype.kind in _KINDS:
            arrays[f"a{len(arrays)}"] = array
            return {_ARRAY: len(arrays) - 1, "scalar": isinstance(value, np.generic)}
        raise InvalidRequest(f"arrays of numbers or texts travel; in {what} there is one of {array.dtype}; convert it")
    raise InvalidRequest(
        f"what travels is None, truth values, numbers, texts, lists, tuples, dictionaries and arrays; in {what} there "
        f"is a {type(value).__name__}; give its parts, or a name to open it by, such as 'flowers@7'"
    )


def _decoded(told: Any, arrays: Any) -> Any:
    if isinstance(told, list):
        return [_decoded(each, arrays) for each in told]
    if not isinstance(told, dict):
        return told
    if _ARRAY in told:
        array = arrays[f"a{told[_ARRAY]}"]
        return array[()] if told["scalar"] else array
    if _TUPLE in told:
        return tuple(_decoded(each, arrays) for each in told[_TUPLE])
    if _FLOAT in told:
        return float(told[_FLOAT])
    return {key: _decoded(each, arrays) for key, each in told.items()}
