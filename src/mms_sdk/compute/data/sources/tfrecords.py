"""Files of TensorFlow records, read by their framing: no TensorFlow.

A record is its length (uint64, little-endian), a checksum of the length, its bytes, and a checksum of those. Checksums
are CRC-32C, masked: rotated right by 15 bits and increased by a constant (tensorflow/core/lib/io/record_writer.h).
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import google_crc32c
import numpy as np

from mms_sdk.errors import InvalidInput
from mms_sdk.types import Rows

_HEAD = struct.Struct("<QI")
_SUM = struct.Struct("<I")
_MASK = 0xA282EAD8


def offsets(path: Path) -> Rows:
    """Where the records of a file begin, and where the last of them ends: int64, shape (records + 1,).

    Raises:
        InvalidInput: A length does not fit its checksum, or the file is cut short; what comes after cannot be found.
    """
    found, at = [], 0
    size = path.stat().st_size
    with path.open("rb") as file:
        while at < size:
            found.append(at)
            file.seek(at)
            head = file.read(_HEAD.size)
            if len(head) < _HEAD.size:
                raise InvalidInput(f"{path.name} is cut short in its record {len(found) - 1}")
            length, checksum = _HEAD.unpack(head)
            if masked_crc(head[:8]) != checksum:
                raise InvalidInput(
                    f"{path.name} is damaged: the length of its record {len(found) - 1} is not what was written"
                )
            at += _HEAD.size + length + _SUM.size
    if at > size:
        raise InvalidInput(f"{path.name} is cut short in its record {len(found) - 1}")
    return np.array([*found, at], np.int64)


def read_record(handle: int, begin: int, end: int) -> bytes:
    """The bytes of a record of an open file, which lies between two of its `offsets`.

    Raises:
        InvalidInput: They do not fit their checksum.
    """
    framed = os.pread(handle, end - begin, begin)
    data = framed[_HEAD.size : -_SUM.size]
    if len(framed) != end - begin or masked_crc(data) != _SUM.unpack(framed[-_SUM.size :])[0]:
        raise InvalidInput("its bytes are not those that were written: the checksum differs")
    return data


def masked_crc(data: bytes) -> int:
    """CRC-32C as TensorFlow masks it."""
    crc = int(google_crc32c.value(data))
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF
