"""Chunks of arrays: compared with their checksums when they are first touched, and decoded in bounded memory."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Any

import numpy as np
import psutil

from mms_sdk.errors import Damaged, TooLarge
from mms_sdk.schema.dataset import Column
from mms_sdk.storage import codecs
from mms_sdk.storage.part_files import PartFiles
from mms_sdk.storage.parts import CRC_BYTES, crc32c
from mms_sdk.storage.remedies import RESTORE
from mms_sdk.types import Array, Rows

MAX_CHUNK_BYTES = 2**30  # decoded; larger ones are taken for a mistake in the metadata
_DECODED_BYTES = 64 * 2**20  # of each column that is compressed: chunks that are kept decoded for the next gather


class Recent:
    """What was read last, up to a limit of room for all who share it; safe from several threads.

    Args:
        limit: How much there is room for, in whatever unit things are put in.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._room = limit
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Any:
        """What is kept under a key, or None."""
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """Keeps something, and lets go of what was asked for longest ago."""
        self.drop(key)
        with self._lock:
            self._kept[key] = (value, size)
            self._room -= size
            while self._room < 0 and len(self._kept) > 1:
                self._room += self._kept.popitem(last=False)[1][1]

    def drop(self, key: Hashable) -> None:
        """Lets go of something."""
        with self._lock:
            self._room += self._kept.pop(key, (None, 0))[1]


_MAPPED = Recent(256)
"""Files of chunks that are mapped: each takes a handle, of which a process has a thousand or so."""


class Chunks:
    """The compressed chunks of one array; those decoded last are kept, in bounded memory."""

    def __init__(self, part: PartFiles, array: str, dimensions: int, row_bytes: int) -> None:
        self._part = part
        self._array = array
        self._dimensions = dimensions
        layout = part.layout(array)
        self.rows = layout.rows
        self._bytes = self.rows * row_bytes
        self._in_shard = layout.file_rows // layout.rows
        if layout.codec is None or not layout.sharded or self._bytes > MAX_CHUNK_BYTES:
            rule = f"shards, a compressing codec and chunks of at most {MAX_CHUNK_BYTES} bytes"
            told = f"{'shards' if layout.sharded else 'none'}, {layout.codec or 'no codec'} and {self._bytes} bytes"
            raise part.odd(array, rule, told)
        self._codec: codecs.Codec = layout.codec
        self._own = object()  # of all who share what is mapped
        self._verified: set[int] = set()  # as with raw rows, the first time they are touched
        self._kept: OrderedDict[int, Array] = OrderedDict()
        self._lock = threading.Lock()

    def decoded(self, number: int) -> Array:
        """A chunk's bytes; not to be written to."""
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
        out = np.empty(self._bytes, np.uint8)
        self.read(number, out)
        with self._lock:
            self._kept[number] = out
            while len(self._kept) > max(1, _DECODED_BYTES // self._bytes):
                self._kept.popitem(last=False)
        return out

    def read(self, number: int, out: Array) -> None:
        """Decodes a chunk into `out`, uint8, contiguous, of its size."""
        data = self._verified_chunk(number)
        try:
            codecs.decode(self._codec, data, out)
        except ValueError as error:
            raise Damaged(
                f"array {self._array!r} in {self._part.what} is damaged: chunk {number} holds {self._bytes} bytes of "
                f"values; {error}; {RESTORE}"
            ) from error

    def warm_up(self, count: int) -> int:
        """Compares the checksums of the first so many chunks; returns how many bytes that were."""
        return sum(len(self._verified_chunk(number)) for number in range(count))

    def _verified_chunk(self, number: int) -> memoryview:
        shard = number // self._in_shard

        def read() -> memoryview:
            try:
                return self._compared(number)
            except Damaged:
                _MAPPED.drop((self._own, shard))
                self._verified = set()  # of another copy, none is verified
                raise

        return self._part.of_sound_copy(self._array, shard, self._dimensions, read)

    def _compared(self, number: int) -> memoryview:
        verified = self._verified
        framed = self._framed(number)
        data = framed[:-CRC_BYTES]
        if number not in verified:
            if crc32c(data) != int.from_bytes(framed[-CRC_BYTES:], "little"):
                raise bad_sum(self._part, self._array, number)
            verified.add(number)
        return data

    def _framed(self, number: int) -> memoryview:
        shard, place = divmod(number, self._in_shard)
        opened: tuple[memoryview, Array] | None = _MAPPED.get((self._own, shard))
        if opened is None:
            opened = self._opened(shard)
            _MAPPED.put((self._own, shard), opened, 1)
        file, index = opened
        begin, size = index[place].tolist()
        if size <= CRC_BYTES or begin + size > len(file):
            raise bad_sum(self._part, self._array, number)
        return file[begin : begin + size]

    def _opened(self, shard: int) -> tuple[memoryview, Array]:
        index_bytes = 16 * self._in_shard
        mapped = self._part.chunk(self._array, shard, self._dimensions, size=index_bytes + CRC_BYTES)
        file, index = memoryview(mapped), mapped[-index_bytes - CRC_BYTES : -CRC_BYTES]
        if crc32c(index) != int.from_bytes(file[-CRC_BYTES:], "little"):
            raise Damaged(
                f"array {self._array!r} in {self._part.what} is damaged: the checksum of the index of shard {shard} "
                f"does not fit it; {RESTORE}"
            )
        return file[: -index_bytes - CRC_BYTES], np.frombuffer(index, "<u8").reshape(-1, 2)

    def all(self, count: int) -> Array:
        """The bytes of the first so many chunks, decoded side by side."""
        out = np.empty((count, self._bytes), np.uint8)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(self.read, range(count), out):
                pass
        return out.reshape(-1)


class LongTable:
    """An array of all parts, chunk by chunk.

    Args:
        parts: Their files.
        array: The array's name.
        column: What is in it.
        kept: Chunks that were read last.
    """

    def __init__(self, parts: Sequence[PartFiles], array: str, column: Column, kept: Recent) -> None:
        assert column.row_bytes is not None
        self._parts = parts
        self._array = array
        self._column = column
        self._row_bytes = column.row_bytes
        self._kept = kept
        self._chunk_rows: dict[int, int] = {}
        self._decoders: dict[int, Chunks] = {}

    def copy(self, part: int, rows: Rows, out: Array, places: Rows) -> None:
        """Puts rows of a part to places of `out`, which has one void a row."""
        if part not in self._chunk_rows:
            files = self._parts[part]
            lies = files.lies_as(self._array, files.rows, self._column.fixed, self._column.dtype)
            self._chunk_rows[part] = lies.rows
        chunk_rows = self._chunk_rows[part]
        chunks = rows // chunk_rows
        for number in np.unique(chunks).tolist():
            some = np.flatnonzero(chunks == number)
            out[places[some]] = self._chunk(part, number).view(out.dtype)[rows[some] - number * chunk_rows]

    def _chunk(self, part: int, number: int) -> Array:
        key = (self._array, part, number)
        found: Array | None = self._kept.get(key)
        if found is None:
            found = self._read(part, number)
            self._kept.put(key, found, found.nbytes)
        return found

    def _read(self, part: int, number: int) -> Array:
        files, dimensions = self._parts[part], 1 + len(self._column.fixed)
        if self._column.profile != "raw":
            if part not in self._decoders:
                self._decoders[part] = Chunks(files, self._array, dimensions, self._row_bytes)
            out = np.empty(self._chunk_rows[part] * self._row_bytes, np.uint8)
            self._decoders[part].read(number, out)
            return out
        size = self._chunk_rows[part] * self._row_bytes
        # A copy, so that no file stays mapped.
        return np.frombuffer(bytes(checked_chunk(files, self._array, number, dimensions, size)), np.uint8)


def read_table(part: PartFiles, array: str, shape: Sequence[int], dtype: str, rows: int) -> Array:
    """A whole array of small rows.

    Raises:
        Damaged: It is not what its column says, or not what was written.
        TooLarge: It does not fit into memory.
    """
    # Chunk files by number, each of the full length: the last one is padded.
    layout = part.lies_as(array, rows, shape, dtype)
    chunk_rows = layout.rows
    values = prod(shape)
    refuse_beyond_memory(f"array {array!r} in {part.what}", rows * values * np.dtype(dtype).itemsize)
    if layout.codec is not None:
        chunks = Chunks(part, array, 1 + len(shape), values * np.dtype(dtype).itemsize)
        return chunks.all(-(-rows // chunks.rows)).view(dtype)[: rows * values].reshape(rows, *shape)
    chunk_bytes = chunk_rows * values * np.dtype(dtype).itemsize
    pieces = [
        checked_chunk(part, array, number, 1 + len(shape), chunk_bytes) for number in range(-(-rows // chunk_rows))
    ]
    return np.frombuffer(b"".join(pieces), dtype)[: rows * values].reshape(rows, *shape)


class MappedChunks:
    """Chunks of an array that are not compressed, each a mapped file; those touched last stay mapped."""

    def __init__(self, part: PartFiles, array: str, dimensions: int, size: int) -> None:
        self._part, self._array, self._dimensions, self._size = part, array, dimensions, size
        self._own = object()

    def __getitem__(self, number: int) -> memoryview:
        found: memoryview | None = _MAPPED.get((self._own, number))
        if found is None:
            found = checked_chunk(self._part, self._array, number, self._dimensions, self._size)
            _MAPPED.put((self._own, number), found, 1)
        return found


def checked_chunk(part: PartFiles, array: str, number: int, dimensions: int, size: int) -> memoryview:
    """A chunk that is not compressed, of a size in bytes, once it was compared with its checksum."""
    if size > MAX_CHUNK_BYTES:
        raise part.odd(array, f"chunks of at most {MAX_CHUNK_BYTES} bytes", f"{size} bytes")

    def read() -> memoryview:
        whole = memoryview(part.chunk(array, number, dimensions, size=size + CRC_BYTES))
        data, stored = whole[:size], whole[size : size + CRC_BYTES]
        if crc32c(data) != int.from_bytes(stored, "little"):
            raise bad_sum(part, array, number)
        return data

    return part.of_sound_copy(array, number, dimensions, read)


def refuse_beyond_memory(what: str, size: int) -> None:
    """Refuses to read so many bytes at once where they do not fit."""
    # What is compressed may be a thousand times what lies there.
    if size > MAX_CHUNK_BYTES and size > (free := psutil.virtual_memory().available):
        raise TooLarge(
            f"what is read in one piece fits into memory; {what} takes {size:,} bytes, of which {free:,} are free; if "
            f"it is meant to be so large, read it on a machine with more"
        )


def bad_sum(part: PartFiles, array: str, number: int) -> Damaged:
    """What is raised of a chunk that is not what was written."""
    return Damaged(
        f"array {array!r} in {part.what} is damaged: the checksum of chunk {number} does not fit its bytes; {RESTORE}"
    )
