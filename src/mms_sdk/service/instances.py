"""The JSON of `:predict`, read into rows for the device.

Asking each of a thousand numbers what it is costs more than the model. So whole pixels in the model's own shape, the
common case, are read in a few calls that each look at all of them; everything else goes the long way, which knows what
to say.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from itertools import chain
from typing import Any

import msgspec
import numpy as np

from mms_sdk.compute.inference.batcher import too_many_rows
from mms_sdk.errors import InvalidInput, InvalidRequest
from mms_sdk.types import Array


class PredictRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON body of `:predict`.

    Attributes:
        instances: Each a nested list of 0–255 in the signature's shape, or `{"b64": …}` with the bytes of a picture.
            Of models for other rows: a text, an object with a value for each column of a table, a nested list of
            numbers, or `{"b64": …}` with the bytes of a recording.
    """

    instances: list[Any]


class _Pixels(msgspec.Struct, forbid_unknown_fields=True):
    instances: list[list[list[list[int]]]]  # height, width, channels


class _GrayPixels(msgspec.Struct, forbid_unknown_fields=True):
    instances: list[list[list[int]]]  # height, width


def read_instances(body: bytes, shape: tuple[int, ...], *, sizes: Sequence[int]) -> list[bytes] | list[Array]:
    """The instances of a request: the bytes of pictures, or uint8 arrays of whatever shape was sent.

    Args:
        body: JSON.
        shape: (height, width, channels) as the model takes it.
        sizes: Of batches that there are programs for; the last is how many instances one request may have.

    Raises:
        InvalidRequest: It is not that JSON.
        InvalidInput: There is no instance, there are too many, or one is neither pixels nor a picture.
    """
    rows = _whole(body, shape, sizes)
    if rows is not None:
        return list(rows)
    instances = _some(body, sizes)
    if any(isinstance(instance, dict) for instance in instances):
        return [_decoded(instance, "picture") for instance in instances]
    return [_array(instance) for instance in instances]


def read_rows(body: bytes, *, kind: str, sizes: Sequence[int]) -> list[Any]:
    """The instances of a request to a model for other rows than pictures, as `Predictor.prepare` takes them.

    Args:
        body: JSON.
        kind: Of the rows.
        sizes: Of batches that there are programs for; the last is how many instances one request may have.

    Raises:
        InvalidRequest: It is not that JSON.
        InvalidInput: There is no instance, there are too many, or one is of no such kind.
    """
    instances = _some(body, sizes)
    if kind == "audio":
        return [_decoded(instance, "recording") for instance in instances]
    return instances


def as_numbers(array: Array, dtype: np.dtype[Any]) -> Array:
    """Numbers as what a model takes that are no pixels.

    Raises:
        InvalidInput: Some are none, not finite, or do not fit.
    """
    if array.dtype.kind not in "iuf":
        raise InvalidInput(f"an instance holds numbers only; got {array.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = array.astype(dtype)
    fits = np.array_equal(numbers, array) if dtype.kind == "i" else bool(np.isfinite(numbers).all())
    if not fits:
        told = "whole numbers of 32 bits" if dtype.kind == "i" else "finite numbers that a float32 can hold"
        raise InvalidInput(f"an instance holds {told}; got {array.min():g} to {array.max():g}")
    return numbers


def decode_json(body: bytes, kind: type[Any]) -> Any:
    """JSON as a struct.

    Raises:
        InvalidRequest: It is not that JSON.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is a JSON {kind.__name__}; this one is not: {error}") from error


def as_pixels(array: Array) -> Array:
    """Numbers as uint8.

    Raises:
        InvalidInput: Some are none, not finite, not whole, or not from 0 to 255.
    """
    if array.dtype.kind not in "iuf":
        raise InvalidInput(f"an instance holds numbers only; got {array.dtype}")
    if not np.isfinite(array).all():
        raise InvalidInput("an instance holds finite numbers only; this one has NaN or Infinity")
    if array.size and (array.min() < 0 or array.max() > 255 or (array.dtype.kind == "f" and (array % 1).any())):
        raise InvalidInput(f"pixels are whole numbers from 0 to 255; got {array.min():g} to {array.max():g}")
    return array.astype(np.uint8)


def _whole(body: bytes, shape: tuple[int, ...], sizes: Sequence[int]) -> Array | None:
    kinds: list[tuple[type[Any], tuple[int, ...]]] = [(_Pixels, shape)]
    if shape[-1] == 1:
        kinds.insert(0, (_GrayPixels, shape[:2]))
    for kind, lengths in kinds:
        try:
            level: Sequence[Any] = msgspec.json.decode(body, type=kind).instances
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
        count = len(level)
        if count > sizes[-1]:  # a million empty ones are a small body and seconds of work
            raise too_many_rows(count, sizes)
        for length in lengths[:-1]:
            if set(map(len, level)) != {length}:
                return None
            level = list(chain.from_iterable(level))
        if set(map(len, level)) != {lengths[-1]}:
            return None
        try:
            pixels = bytearray(chain.from_iterable(level))
        except ValueError:  # it takes 0 to 255
            return None
        return np.frombuffer(pixels, np.uint8).reshape(count, *shape)
    return None


def _some(body: bytes, sizes: Sequence[int]) -> list[Any]:
    instances: list[Any] = decode_json(body, PredictRequest).instances
    if not instances:
        raise InvalidInput('a prediction has at least one instance; got {"instances": []}')
    if len(instances) > sizes[-1]:
        raise too_many_rows(len(instances), sizes)
    return instances


def _decoded(instance: Any, what: str) -> bytes:
    if not isinstance(instance, dict) or set(instance) != {"b64"} or not isinstance(instance["b64"], str):
        if what == "recording":
            raise InvalidInput('every instance is {"b64": "…"} with the bytes of a recording')
        raise InvalidInput('every instance is a nested list of numbers, or every one is {"b64": "…"}; do not mix them')
    try:
        return base64.b64decode(instance["b64"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(f"b64 is the base64 of a {what} file (RFC 4648); this is not: {error}") from error


def _array(instance: Any) -> Array:
    try:
        array = np.asarray(instance)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"an instance is a nested list of equal lengths; this one is not: {error}") from error
    return as_pixels(array)
