"""What Zarr's metadata declares of an array, v2 or v3, and what of it is believed.

Metadata is its author's: it may declare arrays larger than any memory, chunks of no size, objects, and codecs that run
code. An array is opened only if all that is declared is on a list of what is known to be harmless and bounded.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from gzip import GzipFile
from math import ceil, prod
from typing import Any

import numpy as np

from mms_sdk.errors import DataError
from mms_sdk.storage.codecs import claimed_size

MAX_ROWS = 2**31 - 1
MAX_CHUNK_BYTES = 2**28  # several are decoded at once
MAX_ROW_BYTES = 2**28
_MAX_ITEMS = 2**62
_MAX_PIECES = 2**22
_INNER = ("bytes", "crc32c")

_V2_DTYPE = re.compile(r"[<>|](b1|[iu][1248]|f[248]|[SU][1-9][0-9]{0,4}|M8\[(D|h|m|s|ms|us|ns)\])")
_V3_DTYPES = ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
_V3_DTYPES += ("float16", "float32", "float64")
_COMPRESSIONS = {2: ("blosc", "zstd", "gzip", "zlib", "lz4"), 3: ("blosc", "zstd", "gzip")}
_FILTERS = ("delta", "shuffle")


@dataclass(frozen=True, kw_only=True)
class Compression:
    """How the bytes of a chunk are compressed.

    Attributes:
        name: Of the codec; empty for none.
        before: Bytes of checksums that are compressed with it.
        after: Bytes of checksums behind it.
    """

    name: str = ""
    before: int = 0
    after: int = 0


@dataclass(frozen=True, kw_only=True)
class Declared:
    """An array, as far as it is believed.

    Attributes:
        name: Its path in the group; empty for an array that is not in one.
        version: Of the format, 2 or 3.
        shape: Its axes.
        dtype: Of its values.
        files: Shape of what one file holds: a chunk, or a shard.
        chunks: Shape of what is decoded at once.
        compression: Of a chunk.
        index_bytes: Of the index at the end of a shard; 0 for chunks in files of their own.
        separator: Between the numbers in a file's name.
        prefixed: Whether a `c` stands before them.
        dims: Names of its axes, where they have some.
        fill: What a chunk that is not there reads as.
        attributes: What is said about it.
    """

    name: str
    version: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    files: tuple[int, ...]
    chunks: tuple[int, ...]
    compression: Compression
    index_bytes: int = 0
    separator: str
    prefixed: bool
    dims: tuple[str | None, ...]
    fill: Any
    attributes: Mapping[str, Any]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def grid(self) -> tuple[int, ...]:
        """How many files there are along each axis."""
        return tuple(ceil(size / part) for size, part in zip(self.shape, self.files, strict=True))

    @property
    def pieces(self) -> tuple[int, ...]:
        """How many chunks a file holds along each axis."""
        return tuple(part // chunk for part, chunk in zip(self.files, self.chunks, strict=True))

    def place(self, key: str) -> tuple[int, ...] | None:
        """Which file of the grid a key of the store names; None if it names none."""
        inside = key.removeprefix(f"{self.name}/" if self.name else "")
        if self.prefixed:
            head, inside = inside[:2], inside[2:]
            if head != f"c{self.separator}":
                return None
        numbers = inside.split(self.separator)
        if not all(number.isascii() and number.isdigit() and len(number) < 12 for number in numbers):
            return None
        found = tuple(map(int, numbers))
        inside_grid = len(found) == len(self.grid) and all(at < size for at, size in zip(found, self.grid, strict=True))
        return found if inside_grid else None

    def check(self, data: bytes) -> None:
        """Looks at a chunk before it is decoded.

        Raises:
            DataError: It decodes to more or less than a chunk.
        """
        size = prod(self.chunks) * self.dtype.itemsize + self.compression.before
        data = data[: len(data) - self.compression.after]
        if self.compression.name and _decoded_size(self.compression.name, data, size) != size:
            raise DataError(
                f"a chunk of array {self.name!r} decodes to {size:,} bytes; one does not, by what it says of itself; "
                f"write the array again"
            )


def judge(name: str, told: Mapping[str, Any], attributes: Mapping[str, Any]) -> Declared:
    """What is declared of an array.

    Args:
        name: Its path.
        told: `zarr.json`, or `.zarray`.
        attributes: Of v2, `.zattrs`; of v3 they are in `told`.

    Raises:
        DataError: Something is not to be believed, or not known.
    """
    try:
        found = _version_3(name, told) if told.get("zarr_format") == 3 else _version_2(name, told, attributes)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise _refused(name, f"is not described as Zarr describes arrays: {type(error).__name__} {error}") from error
    _bound(found)
    return found


def _refused(name: str, what: str) -> DataError:
    return DataError(f"array {name!r} {what}; leave it out with columns=, or write it again")


def _bound(found: Declared) -> None:
    if found.shape and found.shape[0] > MAX_ROWS:
        raise _refused(found.name, f"declares {found.shape[0]:,} rows, more than {MAX_ROWS:,}")
    if prod(found.shape) > _MAX_ITEMS:
        raise _refused(found.name, f"declares the shape {found.shape}, more than can be counted")
    if (size := prod(found.chunks) * found.dtype.itemsize) > MAX_CHUNK_BYTES:
        raise _refused(found.name, f"has chunks of {size:,} bytes, more than {MAX_CHUNK_BYTES:,}")
    if prod(found.pieces) > _MAX_PIECES:
        raise _refused(found.name, f"has shards of {prod(found.pieces):,} chunks, more than {_MAX_PIECES:,}")
    if len(found.shape) > 1 and found.row_bytes > MAX_ROW_BYTES:
        raise _refused(found.name, f"has rows of {found.row_bytes:,} bytes, more than {MAX_ROW_BYTES:,}")


def _sizes(name: str, told: Any, *, least: int, rank: int | None = None) -> tuple[int, ...]:
    right = isinstance(told, list) and all(type(size) is int and least <= size < 2**63 for size in told)
    if not right or len(told) != (len(told) if rank is None else rank) or len(told) > 32:
        raise _refused(name, f"has axes or chunks of {str(told)[:200]}, not whole numbers from {least} on, one an axis")
    return tuple(told)


def _version_2(name: str, told: Mapping[str, Any], attributes: Mapping[str, Any]) -> Declared:
    if told.get("zarr_format") != 2:
        raise _refused(name, f"has the format {told.get('zarr_format')!r:.50}; MMS reads 2 and 3")
    if not isinstance(told["dtype"], str) or not _V2_DTYPE.fullmatch(told["dtype"]):
        raise _refused(
            name, f"has values of type {told['dtype']!r:.100}; MMS reads numbers, truth values, times and texts"
        )
    dtype = np.dtype(told["dtype"])
    for each in told.get("filters") or ():
        same = all(each.get(key, told["dtype"]) == told["dtype"] for key in ("dtype", "astype"))
        shuffled = each["id"] != "shuffle" or each.get("elementsize", 4) == dtype.itemsize
        if each["id"] not in _FILTERS or not same or not shuffled:
            raise _refused(name, f"is filtered by {each!r:.100}; MMS reads {', '.join(_FILTERS)}")
    compressor = told.get("compressor")
    compression = "" if compressor is None else compressor["id"]
    if compression and compression not in _COMPRESSIONS[2]:
        raise _refused(name, f"is compressed by {compression!r:.100}; MMS reads {', '.join(_COMPRESSIONS[2])}")
    shape = _sizes(name, told["shape"], least=0)
    chunks = _sizes(name, told["chunks"], least=1, rank=len(shape))
    dims = attributes.get("_ARRAY_DIMENSIONS")
    return Declared(
        name=name,
        version=2,
        shape=shape,
        dtype=dtype,
        files=chunks,
        chunks=chunks,
        compression=Compression(name=compression),
        separator=_separator(name, told.get("dimension_separator", ".")),
        prefixed=False,
        dims=_dims(dims, len(shape)),
        fill=told.get("fill_value"),
        attributes=attributes,
    )


def _version_3(name: str, told: Mapping[str, Any]) -> Declared:
    if told.get("storage_transformers"):
        raise _refused(name, "has storage transformers, which MMS does not know")
    grid, keys = told["chunk_grid"], told["chunk_key_encoding"]
    if grid["name"] != "regular" or keys["name"] not in ("default", "v2"):
        raise _refused(name, f"has a grid {grid['name']!r:.50} and names {keys['name']!r:.50} that MMS does not know")
    shape = _sizes(name, told["shape"], least=0)
    files = chunks = _sizes(name, grid["configuration"]["chunk_shape"], least=1, rank=len(shape))
    codecs, index_bytes = _codecs(name, told["codecs"]), 0
    if codecs[-1]["name"] == "sharding_indexed":
        shard = codecs[-1]["configuration"]
        chunks = _sizes(name, shard["chunk_shape"], least=1, rank=len(shape))
        index = [each["name"] for each in _codecs(name, shard["index_codecs"])]
        uneven = any(part % chunk for part, chunk in zip(files, chunks, strict=True))
        if (
            index not in ([*_INNER], ["bytes"])
            or shard.get("index_location", "end") != "end"
            or uneven
            or len(codecs) > 1
        ):
            raise _refused(name, "has shards with an index, or divided, in a way that MMS does not know")
        codecs = _codecs(name, shard["codecs"])
        pieces = [part // chunk for part, chunk in zip(files, chunks, strict=True)]
        index_bytes = 16 * prod(pieces) + 4 * (len(index) - 1)
    default = "/" if keys["name"] == "default" else "."
    attributes = told.get("attributes") or {}
    return Declared(
        name=name,
        version=3,
        shape=shape,
        dtype=_dtype_3(name, told["data_type"]),
        files=files,
        chunks=chunks,
        compression=_compression_3(name, codecs),
        index_bytes=index_bytes,
        separator=_separator(name, (keys.get("configuration") or {}).get("separator", default)),
        prefixed=keys["name"] == "default",
        dims=_dims(told.get("dimension_names") or attributes.get("_ARRAY_DIMENSIONS"), len(shape)),
        fill=told["fill_value"],
        attributes=attributes,
    )


def _codecs(name: str, told: Any) -> list[dict[str, Any]]:
    if not isinstance(told, list) or not told or len(told) > 8:
        raise _refused(name, f"has codecs that are no short list: {str(told)[:100]}")
    return [{"name": each} if isinstance(each, str) else {"configuration": {}, **each} for each in told]


def _compression_3(name: str, codecs: Sequence[Mapping[str, Any]]) -> Compression:
    names = [each["name"] for each in codecs]
    chain = names[1:] if names[0] == "transpose" else names
    packed = [each for each in chain[1:] if each in _COMPRESSIONS[3]]
    if chain[:1] != ["bytes"] or len(packed) > 1 or any(each != "crc32c" for each in chain[1:] if each not in packed):
        known = ", ".join(("transpose", "bytes", *_COMPRESSIONS[3], "crc32c"))
        raise _refused(
            name, f"has the codecs {str(names)[:200]}; MMS reads, in this order and one compression, {known}"
        )
    if not packed:
        return Compression()
    at = chain.index(packed[0])
    return Compression(name=packed[0], before=4 * (at - 1), after=4 * (len(chain) - at - 1))


def _dtype_3(name: str, told: Any) -> np.dtype[Any]:
    if isinstance(told, str) and told in _V3_DTYPES:
        return np.dtype(told)
    kind, fields = (told["name"], told.get("configuration") or {}) if isinstance(told, dict) else (told, {})
    length, unit = fields.get("length_bytes"), fields.get("unit")
    if (
        kind == "numpy.datetime64"
        and unit in ("D", "h", "m", "s", "ms", "us", "ns")
        and fields.get("scale_factor", 1) == 1
    ):
        return np.dtype(f"M8[{unit}]")
    if type(length) is int and 0 < length < 2**18:
        if kind == "fixed_length_utf32" and length % 4 == 0:
            return np.dtype(f"U{length // 4}")
        if kind == "null_terminated_bytes":
            return np.dtype(f"S{length}")
    raise _refused(
        name, f"has values of type {told!r:.100}; MMS reads numbers, truth values, times and texts of fixed length"
    )


def _separator(name: str, told: Any) -> str:
    if told not in (".", "/"):
        raise _refused(name, f"names its chunks with {told!r:.20} between numbers")
    return str(told)


def _dims(told: Any, rank: int) -> tuple[str | None, ...]:
    if isinstance(told, list) and len(told) == rank:
        return tuple(each if isinstance(each, str) else None for each in told)
    return (None,) * rank


def _decoded_size(codec: str, data: bytes, size: int) -> int | None:
    # Not more than `size` is ever decoded, of codecs that do not say it in a header.
    if codec == "blosc" or codec == "zstd":
        return claimed_size("blosc" if codec == "blosc" else "zstd", data)
    if codec == "lz4":  # numcodecs' frame: the size, then an LZ4 block
        return int.from_bytes(data[:4], "little")
    try:
        if codec == "zlib":
            return len(zlib.decompressobj().decompress(data, size + 1))
        with GzipFile(fileobj=io.BytesIO(data)) as file:
            found = 0
            while found <= size and (piece := file.read(2**20)):
                found += len(piece)
            return found
    except (zlib.error, OSError, EOFError):
        return None
