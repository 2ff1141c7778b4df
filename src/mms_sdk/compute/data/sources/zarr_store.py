"""A Zarr store as an ingest reads it: metadata as it was judged, and no chunk that decodes to more than it should."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import google_crc32c
import numpy as np
from zarr.abc.store import ByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import WrapperStore

from mms_sdk.compute.data.sources.zarr_metadata import Declared
from mms_sdk.errors import DataError

_ABSENT = 2**64 - 1
_MAX_DOCUMENT_BYTES = 16 * 2**20


class JudgedStore(WrapperStore[Store]):
    """A store whose arrays were judged.

    Every way of reading that Zarr's versions have goes through `get`: a wrapper hands the others on to what it wraps.

    Args:
        store: Where they lie.
        documents: Metadata by key, as it was judged.
        arrays: By name.
    """

    def __init__(self, store: Store, documents: Mapping[str, bytes], arrays: Mapping[str, Declared]) -> None:
        super().__init__(store)
        self._documents = documents
        self._arrays = arrays

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """What lies under a key: metadata as it was judged, or a chunk that is what it should be."""
        if key in self._documents:
            return prototype.buffer.from_bytes(self._documents[key])
        array = self._arrays.get(key.partition("/")[0]) or self._arrays.get("")
        if array is None or array.place(key) is None:
            return None
        value = await super().get(key, prototype, byte_range)
        if value is not None and (array.compression.name or array.index_bytes):
            _check(array, key, value.to_bytes(), byte_range)
        return value

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """See `get`."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def get_ranges(
        self, key: str, byte_ranges: Sequence[ByteRequest | None], *, prototype: BufferPrototype, **_: Any
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """See `get`; each range by itself, since each is a chunk."""
        for number, byte_range in enumerate(byte_ranges):
            value = await self.get(key, prototype, byte_range)
            if value is None:
                raise FileNotFoundError(key)
            yield [(number, value)]

    async def _get_many(
        self, requests: Iterable[tuple[str, BufferPrototype, ByteRequest | None]]
    ) -> AsyncGenerator[tuple[str, Buffer | None], None]:
        for request in requests:
            yield request[0], await self.get(*request)

    @property
    def _supports_sync_io(self) -> bool:
        return False


def _check(array: Declared, key: str, data: bytes, byte_range: ByteRequest | None) -> None:
    if not array.index_bytes or isinstance(byte_range, RangeByteRequest):
        array.check(data)
    elif byte_range is None:
        for offset, size in _index(array, key, data[-array.index_bytes :]).reshape(-1, 2).tolist():
            if offset != _ABSENT:
                array.check(data[offset : offset + size])


def document(store: Store, key: str) -> bytes | None:
    """A small file of a store; None if it is not there.

    Raises:
        DataError: It is not small.
    """
    if not sync(store.exists(key)):
        return None
    if (size := sync(store.getsize(key))) > _MAX_DOCUMENT_BYTES:
        raise DataError(f"metadata has at most {_MAX_DOCUMENT_BYTES:,} bytes; {key} has {size:,}; write it again")
    value = sync(store.get(key, default_buffer_prototype()))
    return None if value is None else value.to_bytes()


def children(store: Store) -> list[str]:
    """Names in the root of a store, in order."""

    async def listed() -> list[str]:
        return [name.rstrip("/") async for name in store.list_dir("")]

    return sorted(set(sync(listed())))


def missing_chunk(store: Store, array: Declared) -> str:
    """The first chunk of an array that is not there; empty if all are.

    Raises:
        DataError: The index of a shard is damaged.
    """
    present = _present(store, array)
    if len(present) < prod(array.grid):
        flat = range(len(present) + 1)
        places = (tuple(map(int, np.unravel_index(number, array.grid))) for number in flat)
        return str(next(place for place in places if place not in present))
    if not array.index_bytes:
        return ""
    return next((f"{place} in part" for place in sorted(present) if _has_gaps(store, array, place)), "")


def rows_without_chunk(store: Store, array: Declared) -> int:
    """How many rows of an array consist of nothing but its fill value, since no chunk of them is there.

    Raises:
        DataError: The index of a shard is damaged.
    """
    pieces: dict[int, Any] = {}  # by file along the rows: which of its chunks along them are there
    for place in _present(store, array):
        there = _there(store, array, place) if array.index_bytes else np.ones((1,) * len(place), bool)
        pieces[place[0]] = there.any(axis=tuple(range(1, there.ndim))) | pieces.get(place[0], False)
    rows, per_file, per_chunk = array.shape[0], array.files[0], array.chunks[0]
    starts = (place * per_file + at * per_chunk for place, there in pieces.items() for at in np.flatnonzero(there))
    return rows - sum(min(per_chunk, rows - int(start)) for start in starts)


def _present(store: Store, array: Declared) -> set[tuple[int, ...]]:
    async def listed() -> set[tuple[int, ...]]:
        found = set()
        async for key in store.list_prefix(f"{array.name}/" if array.name else ""):
            if (place := array.place(key)) is not None:
                found.add(place)
        return found

    return sync(listed())


def _has_gaps(store: Store, array: Declared, place: tuple[int, ...]) -> bool:
    return not _there(store, array, place).all()


def _there(store: Store, array: Declared, place: tuple[int, ...]) -> Any:
    # Which chunks of a shard are there; of one at the edge, what lies outside of the array counts as none.
    key = _key(array, place)
    value = sync(store.get(key, default_buffer_prototype(), SuffixByteRequest(array.index_bytes)))
    index = _index(array, key, b"" if value is None else value.to_bytes())
    axes = zip(place, array.files, array.shape, array.chunks, strict=True)
    inside = tuple(slice(-(-min(part, size - at * part) // chunk)) for at, part, size, chunk in axes)
    return index[inside][..., 0] != _ABSENT


def _key(array: Declared, place: Iterable[int]) -> str:
    numbers = array.separator.join(map(str, place))
    return "/".join(filter(None, (array.name, f"c{array.separator}{numbers}" if array.prefixed else numbers)))


def _index(array: Declared, key: str, data: bytes) -> Any:
    size = 16 * prod(array.pieces)
    whole = len(data) == array.index_bytes
    if whole and array.index_bytes > size:
        whole = int(google_crc32c.value(data[:size])) == int.from_bytes(data[size:], "little")
    if not whole:
        raise DataError(f"a shard ends with its index; that of {key} is damaged; write the array again")
    return np.frombuffer(data[:size], "<u8").reshape(*array.pieces, 2)
