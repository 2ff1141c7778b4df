"""Compression of chunks: blosc (lz4) for data that is read often, zstd for data that is kept.

A header says how long its content claims to be. It is compared with what the metadata says before anything is decoded,
so that no file can ask for more memory than its array was declared with.
"""

from __future__ import annotations

from typing import Any, Literal

from mms_sdk.types import Array

Codec = Literal["blosc", "zstd"]

_BLOSC_HEADER = 16
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_LEVEL = {"blosc": 5, "zstd": 3}


def encode(codec: Codec, data: bytes, *, item_bytes: int) -> bytes:
    """Compresses a chunk.

    Args:
        codec: Which compression.
        data: The chunk's bytes.
        item_bytes: Size of one value; blosc puts bytes of equal weight together.
    """
    import numpy as np
    from numcodecs import Blosc, Zstd

    if codec == "zstd":
        return bytes(Zstd(level=_LEVEL[codec]).encode(data))
    blosc = Blosc(cname="lz4", clevel=_LEVEL[codec], shuffle=Blosc.SHUFFLE)
    return bytes(blosc.encode(np.frombuffer(data, f"u{item_bytes}")))


def decode(codec: Codec, data: bytes | memoryview, out: Array) -> None:
    """Decompresses a chunk into `out`, a contiguous uint8 array that it fills.

    Raises:
        ValueError: The chunk is not of this codec, does not decode, or holds more or less than `out`.
    """
    from numcodecs import Blosc, Zstd

    claimed = claimed_size(codec, data)
    if claimed != out.nbytes:
        raise ValueError(f"its {codec} header says {claimed} bytes where its array says {out.nbytes}")
    # In a thread that is not the main one, numcodecs gives each Blosc call a context of its own, without Blosc's
    # threads: chunks that are decoded side by side share nothing, and no global setting has to be changed.
    try:
        (Blosc if codec == "blosc" else Zstd)().decode(data, out)
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def zarr_codecs(codec: Codec | None, *, item_bytes: int) -> list[Any]:
    """What is declared in Zarr's metadata after `bytes`."""
    from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

    if codec == "blosc":
        shuffled = BloscCodec(typesize=item_bytes, cname="lz4", clevel=_LEVEL[codec], shuffle="shuffle")
        return [shuffled, Crc32cCodec()]
    return [ZstdCodec(level=_LEVEL[codec]), Crc32cCodec()] if codec else [Crc32cCodec()]


def claimed_size(codec: Codec, data: bytes | memoryview) -> int | None:
    """How many bytes a compressed chunk says that it decodes to; None if it does not say, or is none of the codec."""
    return _blosc_size(data) if codec == "blosc" else _zstd_size(data)


def _blosc_size(data: bytes | memoryview) -> int | None:
    # C-Blosc 1, README_HEADER.rst: four bytes of versions and flags; then uncompressed, block and compressed size.
    if len(data) < _BLOSC_HEADER or int.from_bytes(data[12:16], "little") != len(data):
        return None
    return int.from_bytes(data[4:8], "little")


def _zstd_size(data: bytes | memoryview) -> int | None:
    # RFC 8878, section 3.1.1.1. A frame that does not tell its size would be decoded into as much as it likes, and so
    # would a second one: what is behind the first is decoded, too.
    if data[:4] != _ZSTD_MAGIC or len(data) < 6:
        return None
    descriptor = data[4]
    single = descriptor >> 5 & 1
    size_bytes = (single, 2, 4, 8)[descriptor >> 6]
    start = 5 + (1 - single) + (0, 1, 2, 4)[descriptor & 3]
    blocks = start + size_bytes
    if not size_bytes or _end_of_zstd_blocks(data, blocks) + 4 * (descriptor >> 2 & 1) != len(data):
        return None
    return int.from_bytes(data[start:blocks], "little") + (256 if size_bytes == 2 else 0)


def _end_of_zstd_blocks(data: bytes | memoryview, at: int) -> int:
    # RFC 8878, section 3.1.1.2: a bit says whether it is the last, two what it is, 21 how long; one of type 1 is a byte
    # that is repeated so often. Behind the end of the data if there is no last one.
    while at + 3 <= len(data):
        header = int.from_bytes(data[at : at + 3], "little")
        at += 3 + (1 if header >> 1 & 3 == 1 else header >> 3)
        if header & 1:
            return at
    return len(data) + 1
