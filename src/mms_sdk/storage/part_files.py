"""The files of one sealed folder, and what its Zarr metadata says of how the arrays in it lie."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import orjson

from mms_sdk.errors import Damaged
from mms_sdk.schema.dataset import Sealed
from mms_sdk.storage import codecs, manifest
from mms_sdk.storage.parts import GROUP
from mms_sdk.storage.remedies import RESTORE
from mms_sdk.storage.stores.base import Store
from mms_sdk.storage.stores.remote import of_sound_copy

_Read = TypeVar("_Read")


class PartFiles:
    """A part's files, and what its Zarr metadata says of how the arrays in it lie."""

    def __init__(self, store: Store, part: Sealed, what: str) -> None:
        self._store = store
        self.rows = part.rows
        self.what = what
        self._manifest = part.manifest
        self._layouts: dict[str, ArrayLayout] = {}

    def check(self, *, content: bool) -> None:
        """Compares names and sizes with the manifest; digests too, if asked for."""
        manifest.check(self._store, what=self.what, expected=self._manifest, content=content)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(each.bytes for each in self._store.walk(""))

    def array_sizes(self) -> Iterator[tuple[str, int]]:
        """For each file the array it belongs to, empty for none, and its bytes."""
        for path, size in manifest.sizes(self._store, what=self.what, expected=self._manifest).items():
            place = path.split("/")
            yield place[1] if place[0] == GROUP and len(place) > 2 else "", size

    def lies_as(self, array: str, items: int | None, shape: Sequence[int], dtype: str) -> ArrayLayout:
        """How an array lies in its files, once that is what its column says, and so many files are there.

        Args:
            array: Which.
            items: How many it has along its first axis; None for as many as it says.
            shape: Of one of them.
            dtype: Of one value.

        Raises:
            Damaged: The metadata says otherwise, or has what no reader reads.
        """
        found = self.layout(array)
        wanted = (found.items if items is None else items, tuple(shape), dtype)
        if (found.items, found.shape, found.dtype) != wanted:
            rule = f"data_type {dtype}, shape {(wanted[0], *shape)} and chunks of whole rows, as its column"
            raise self.odd(array, rule, f"{found.dtype} and {(found.items, *found.shape)}, or parts of rows")
        files = -(-found.items // found.file_rows)
        if found.files != files and 0 not in found.shape:
            raise self.odd(array, f"{files} chunks for {found.items} rows", f"{found.files} are in the manifest")
        if found.sharded and found.bytes < (index := 16 * -(-found.items // found.rows)):
            raise self.odd(array, f"shards with {index} bytes of index", f"they have {found.bytes} in all")
        return found

    def layout(self, array: str) -> ArrayLayout:
        """How the array lies in its files."""
        # Read, not computed: a part stays readable when the sizes that new parts are written with change.
        if array not in self._layouts:
            self._layouts[array] = self._read_layout(array)
        return self._layouts[array]

    def _read_layout(self, array: str) -> ArrayLayout:
        name = f"{GROUP}/{array}/zarr.json"
        body = manifest.check_file(self._store, name, what=self.what, expected=self._manifest)
        try:
            told = orjson.loads(body)
            (items, *shape), dtype = told["shape"], told["data_type"]
            (file_rows, *file_shape), chain = told["chunk_grid"]["configuration"]["chunk_shape"], told["codecs"]
            names = tuple(each["name"] for each in chain)
            sharded = names == ("sharding_indexed",)
            rows, *chunk_shape = chain[0]["configuration"]["chunk_shape"] if sharded else (file_rows, *file_shape)
            inner = tuple(each["name"] for each in chain[0]["configuration"]["codecs"]) if sharded else names
        except (orjson.JSONDecodeError, LookupError, TypeError, ValueError) as error:
            raise self.odd(array, "shape, data_type, chunk_shape and codecs", "nothing that can be read") from error
        for each in (file_rows, rows):
            if type(each) is not int or each < 1:
                raise self.odd(array, "chunk_shape[0], at least 1", each)
        if type(items) is not int or items < 0:
            raise self.odd(array, "shape[0], 0 or more", items)
        if file_rows % rows:
            raise self.odd(array, "shards of whole chunks", f"{file_rows} and {rows} rows")
        if not shape == file_shape == chunk_shape:
            raise self.odd(array, "chunks of whole rows", f"{shape}, {file_shape} and {chunk_shape}")
        if inner not in _CODECS:
            allowed = " or ".join(" → ".join(chain) for chain in _CODECS)
            raise self.odd(array, f"codecs {allowed}", " → ".join(map(str, inner)))
        paths = manifest.sizes(self._store, what=self.what, expected=self._manifest)
        files = [size for path, size in paths.items() if path.startswith(f"{GROUP}/{array}/c/")]
        return ArrayLayout(file_rows, rows, _CODECS[inner], sharded, items, tuple(shape), dtype, len(files), sum(files))

    def of_sound_copy(self, array: str, number: int, dimensions: int, read: Callable[[], _Read]) -> _Read:
        """What is read of a file of an array; from the store anew, if this machine's copy of it turns out damaged."""
        return of_sound_copy(self._store, _chunk_key(array, number, dimensions), read)

    def odd(self, array: str, rule: str, value: Any) -> Damaged:
        """What is raised of metadata that breaks a rule."""
        return Damaged(
            f"{self.what} is damaged: the metadata of array {array!r} has {rule}; it says {value}; upgrade "
            f"mms-sdk if a newer one wrote it, or {RESTORE}"
        )

    def chunk(self, array: str, number: int, dimensions: int, *, size: int = 0) -> mmap.mmap:
        """A file of the array, mapped; at least so many bytes of it."""
        key = _chunk_key(array, number, dimensions)
        try:
            with self._store.open(key) as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (FileNotFoundError, ValueError) as error:  # the second: an empty file cannot be mapped
            raise self._gone(key) from error
        if len(data) < size:
            raise self._gone(key)
        return data

    def _gone(self, key: str) -> Damaged:
        where = f"{self._store.url}/{key}"
        return Damaged(f"{self.what} is damaged: {where} is gone or cut short; {RESTORE}")


def _chunk_key(array: str, number: int, dimensions: int) -> str:
    return "/".join((GROUP, array, "c", str(number), *("0" for _ in range(dimensions - 1))))


class ArrayLayout(NamedTuple):
    """How an array lies in its files.

    Attributes:
        file_rows: Rows of a file.
        rows: Rows of a chunk; a shard has several of them.
        codec: How chunks are compressed.
        sharded: Whether files are shards.
        items: How many rows, or items of rows, it says it has.
        shape: Of one of them.
        dtype: Of one value.
        files: How many files the manifest lists.
        bytes: Their size.
    """

    file_rows: int
    rows: int
    codec: codecs.Codec | None
    sharded: bool
    items: int
    shape: tuple[int, ...]
    dtype: str
    files: int
    bytes: int


_CODECS: dict[tuple[str, ...], codecs.Codec | None] = {
    ("bytes", "crc32c"): None,
    ("bytes", "blosc", "crc32c"): "blosc",
    ("bytes", "zstd", "crc32c"): "zstd",
}
