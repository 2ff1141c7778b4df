"""Arrays in Zarr, Icechunk, or as xarray writes them: rows along one axis, read a few chunks at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mms_sdk.compute.data.kinds import tabular
from mms_sdk.compute.data.sources.folders import printable
from mms_sdk.compute.data.sources.rows import BATCH_ROWS, ROW, SOURCE, Table
from mms_sdk.compute.data.sources.zarr_metadata import Declared, judge
from mms_sdk.errors import DataError, InvalidRequest, MissingExtra, MmsError, NothingToIngest
from mms_sdk.schema.sources import Icechunk, Zarr
from mms_sdk.types import Array

_BATCH_BYTES = 32 * 2**20
_BLOCKS_BYTES = 512 * 2**20
_MAX_FILLED_ROWS = 10_000_000
_MASKS = ("_FillValue", "missing_value")
_CONVENTIONS = (*_MASKS, "scale_factor", "add_offset", "_Unsigned")  # CF conventions, sections 2.5.1 and 8.1


def open_arrays(source: Zarr | Icechunk) -> Table:
    """Looks through the arrays of a group.

    Raises:
        InvalidRequest: There is none; or which rows are meant is not clear.
        NothingToIngest: They have no row.
        DataError: An array is declared in a way that is not to be believed; or chunks are not there.
        MissingExtra: What is needed to read it is not installed.
    """
    path = Path(source.path).expanduser()
    with _read_of(str(path)):
        store, unchanged = _icechunk(source, path) if isinstance(source, Icechunk) else _zarr(path)
        found = _found(store, source, path)
    chosen, dim = _along_rows(found.arrays, source, path)
    notes = [f"left out: {name}, {why}" for name, why in found.left_out.items()]
    notes += [
        f"left out: {name}, its first axis is not that of the rows" for name in found.arrays if name not in chosen
    ]
    rows = next(iter(chosen.values())).shape[0]
    if not rows:
        raise NothingToIngest(f"arrays have at least one row; those of {path} along {dim} have none")
    columns = _opened(store, chosen, found.documents, source, path)
    return Table(
        taken=source,
        schema=pa.schema([(column.title, column.arrow(0, 0).type) for column in columns]),
        rows=rows,
        rejects=[],
        read=lambda: _read(columns, rows, printable(path.name), unchanged),
        notes=notes,
    )


# Where they lie -------------------------------------------------------------------------------------------------


def _zarr(path: Path) -> tuple[Any, Callable[[], None]]:
    from zarr.storage import LocalStore

    if not path.is_dir():
        raise InvalidRequest(f"a Zarr group or array is a folder; {path} is none; check the path")
    before = _stamp(path)

    def unchanged() -> None:
        with _read_of(str(path)):
            if _stamp(path) != before:
                raise DataError(f"arrays stay as they are during an ingest; {path} changed; run it again")

    return LocalStore(path, read_only=True), unchanged


def _stamp(folder: Path) -> int:
    # Of all files together: names, sizes and times.
    found = 0
    for place, _, names in os.walk(folder):
        for name in names:
            told = os.lstat(os.path.join(place, name))
            found ^= hash((place, name, told.st_size, told.st_mtime_ns))
    return found


def _icechunk(source: Icechunk, path: Path) -> tuple[Any, Callable[[], None]]:
    try:
        import icechunk
    except ImportError as error:
        raise MissingExtra("icechunk", extra="icechunk") from error
    if not path.is_dir():
        raise InvalidRequest(f"an Icechunk repository is a folder; {path} is none; check the path")
    try:
        # Chunks that a repository only refers to, in files elsewhere, are not read: nobody allowed them.
        repository = icechunk.Repository.open(icechunk.local_filesystem_storage(str(path)))
        if source.tag is not None:
            session = repository.readonly_session(tag=source.tag)
        elif source.snapshot is not None:
            session = repository.readonly_session(snapshot_id=source.snapshot)
        else:
            session = repository.readonly_session(source.branch or "main")
        return session.store, lambda: None
    except (icechunk.IcechunkError, ValueError, KeyError) as error:
        told = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InvalidRequest(
            f"{path} has no such snapshot, or is no repository that icechunk {icechunk.__version__} reads: {told}; its "
            f"format differs between the versions for Python 3.11 and for 3.12 and later: read it with those that "
            f"wrote it"
        ) from error


@contextmanager
def _read_of(what: str) -> Iterator[None]:
    try:
        yield
    except MmsError:
        raise
    except Exception as error:  # stores and codecs that are fed with garbage raise whatever they trip over
        told = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise DataError(f"{what} cannot be read: {told[0][:300]}; write it again") from error


# What they are --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Arrays by title, the metadata that describes them by key, and what is not taken, with the reason."""

    arrays: dict[str, Declared]
    documents: dict[str, bytes]
    left_out: dict[str, str]


def _found(store: Any, source: Zarr | Icechunk, path: Path) -> _Found:
    from mms_sdk.compute.data.sources.zarr_store import children

    found = _Found(arrays={}, documents={}, left_out={})
    if _take(found, store, "", printable(path.stem)):
        return found
    asked = {*(source.columns or ()), *source.categories, *([source.label] if source.label else [])}
    names = [name for name in children(store) if not name.startswith(".") and name != "zarr.json"]
    for name in names:
        if source.columns is None or printable(name) in asked:
            _take(found, store, name, printable(name))
    if not found.arrays:
        raise InvalidRequest(
            f"a group holds arrays, which zarr.json or .zarray describes; in {path} are {names[:20]} and none is one; "
            f"check the path, and name a group that has some"
        )
    if unknown := asked - found.arrays.keys():
        raise InvalidRequest(
            f"arrays of {path} are {sorted(found.arrays)}; got {sorted(unknown)[0]!r}; name one of them"
        )
    return found


def _take(found: _Found, store: Any, name: str, title: str) -> bool:
    # Whether there is an array of that name.
    from mms_sdk.compute.data.sources.zarr_store import document

    within = f"{name}/" if name else ""
    documents = {key: document(store, f"{within}{key}") for key in ("zarr.json",)}
    if documents["zarr.json"] is None:
        documents = {key: document(store, f"{within}{key}") for key in (".zarray", ".zattrs")}
    told = _json(next(iter(documents.values())), title)
    if told is None or told.get("node_type", "array") != "array":
        if name and (told is not None or document(store, f"{within}.zgroup") is not None):
            found.left_out[title] = "a group within the group"
        return False
    array = judge(name, told, _json(documents.get(".zattrs"), title) or {})
    if array.shape and 0 not in array.shape[1:]:
        found.arrays[title] = array
        found.documents.update({f"{within}{key}": data for key, data in documents.items() if data is not None})
    else:
        found.left_out[title] = f"it has the shape {array.shape}"
    return True


def _json(data: bytes | None, name: str) -> dict[str, Any] | None:
    if data is None:
        return None
    try:
        told = json.loads(data)  # attributes may have NaN, which is no JSON, but which Zarr writes
    except (ValueError, RecursionError) as error:
        raise DataError(f"metadata is JSON; that of {name!r} is not: {error}; write it again") from error
    if not isinstance(told, dict):
        raise DataError(f"metadata is an object; that of {name!r} is {type(told).__name__}; write it again")
    return told


def _along_rows(
    arrays: Mapping[str, Declared], source: Zarr | Icechunk, path: Path
) -> tuple[dict[str, Declared], str | None]:
    # Coordinates such as lat(lat) describe an axis of the others; they do not say which one rows lie along.
    firsts = {title: array.dims[0] for title, array in arrays.items()}
    voting = {title: array for title, array in arrays.items() if array.dims != (title,)} or arrays
    places = {(firsts[title], array.shape[0]) for title, array in voting.items()}
    if source.rows is not None:
        places = {
            place
            for place in {(firsts[title], array.shape[0]) for title, array in arrays.items()}
            if place[0] == source.rows
        }
    if len(places) != 1:
        told = {title: f"{firsts[title] or 'unnamed'} {array.shape[0]}" for title, array in arrays.items()}
        raise InvalidRequest(
            f"rows lie along one axis, the first of the arrays taken; first axes in {path} are {told}; name the one "
            f"meant with rows=, if it has a name, or choose arrays with columns="
        )
    dim, rows = places.pop()
    chosen = {title: array for title, array in arrays.items() if firsts[title] == dim and array.shape[0] == rows}
    for title in (*(source.columns or ()), *([source.label] if source.label else [])):
        if title not in chosen:
            raise InvalidRequest(f"array {title!r} has not the first axis of the others, {dim or rows}; leave it out")
    return chosen, dim


def _opened(
    store: Any, chosen: Mapping[str, Declared], documents: Mapping[str, bytes], source: Zarr | Icechunk, path: Path
) -> list[_Column]:
    import zarr

    from mms_sdk.compute.data.sources.zarr_store import JudgedStore, missing_chunk, rows_without_chunk

    judged = JudgedStore(store, documents, {array.name: array for array in chosen.values()})
    columns = []
    for title, declared in chosen.items():
        told = f"array {title!r} of {path}"
        with _read_of(told):
            missing = missing_chunk(store, declared) if source.missing == "refuse" else ""
            filled = rows_without_chunk(store, declared) if source.missing == "fill" else 0
            array = zarr.open_array(judged, path=declared.name, mode="r", zarr_format=2 if declared.version == 2 else 3)
        if missing:
            raise DataError(
                f"every chunk of an array is there; of {title!r} in {path} chunk {missing} is not, and Zarr reads such "
                f"as the fill value {str(declared.fill)[:50]!r} without a word; writers also leave out chunks that "
                f"hold nothing else: if that is so, say missing='fill'"
            )
        if filled > _MAX_FILLED_ROWS:
            raise DataError(
                f"missing='fill' makes at most {_MAX_FILLED_ROWS:,} rows of an array; {title!r} in {path} declares "
                f"{declared.shape[0]:,}, and of {filled:,} it has no chunk; resize it to the rows that were written"
            )
        columns.append(_Column(title, declared, array, _BLOCKS_BYTES // len(chosen)))
    return columns


# Rows -----------------------------------------------------------------------------------------------------------


class _Column:
    """The rows of one array, as Arrow's.

    Args:
        title: Its name.
        declared: What it is.
        array: It, opened.
        max_bytes: How much of it is in memory.
    """

    def __init__(self, title: str, declared: Declared, array: Any, max_bytes: int) -> None:
        self.title = title
        self.row_bytes = declared.row_bytes
        self._declared = declared
        self._array = array
        # A chunk is decoded whole: as many of its rows are kept as there is room for.
        self._block = max(1, min(declared.chunks[0], max_bytes // max(1, declared.row_bytes)))
        self._decode = _decoder(title, declared, array.fill_value)
        self._held: tuple[int, Array] | None = None

    def arrow(self, start: int, stop: int) -> pa.Array:
        """Some rows.

        Raises:
            DataError: They cannot be read, or hold what no column can.
        """
        pieces = []
        while start < stop:
            first = start - start % self._block
            end = min(stop, first + self._block)
            pieces.append(self._rows(first)[start - first : end - first])
            start = end
        empty = np.empty((0, *self._declared.shape[1:]), self._declared.dtype)
        values = self._decode(np.concatenate(pieces) if pieces else empty)
        try:
            return _as_arrow(values, masked=_masks(self._declared))
        except (pa.ArrowException, UnicodeError, ValueError) as error:
            raise DataError(
                f"array {self.title!r} holds what no column can, near row {start}: {error}; leave it out with columns="
            ) from error

    def _rows(self, first: int) -> Array:
        if self._held is None or self._held[0] != first:
            self._held = None
            with _read_of(f"array {self.title!r}, from row {first} on,"):
                self._held = (first, np.asarray(self._array[first : first + self._block]))
        return self._held[1]


def _read(columns: Sequence[_Column], rows: int, name: str, unchanged: Callable[[], None]) -> Iterator[pa.RecordBatch]:
    step = max(1, min(BATCH_ROWS, _BATCH_BYTES // max(1, sum(column.row_bytes for column in columns))))
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        source = pa.DictionaryArray.from_arrays(pa.array(np.zeros(stop - start, np.int32)), [name])
        arrays = [column.arrow(start, stop) for column in columns]
        numbers = pa.array(np.arange(start + 1, stop + 1))
        names = [*(column.title for column in columns), SOURCE, ROW]
        yield pa.RecordBatch.from_arrays([*arrays, source, numbers], names=names)
    unchanged()


def _as_arrow(values: Array, *, masked: bool) -> pa.Array:
    if values.dtype.kind == "M" and np.datetime_data(values.dtype)[0] in ("D", "h", "m"):
        values = values.astype("M8[s]")
    if values.dtype.kind == "S":
        return pa.array(values.tolist(), pa.binary()).cast(pa.string())
    if values.dtype.kind == "U":
        return pa.array(values.tolist(), pa.string())
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.ndim > 1:
        return tabular.tensors(values)
    return pa.array(values, from_pandas=masked)


def _masks(declared: Declared) -> bool:
    return any(name in _conventions(declared) for name in _MASKS)


def _conventions(declared: Declared) -> dict[str, Any]:
    # What xarray takes for said about the values of an array.
    told = dict(declared.attributes)
    if declared.version == 2 and "_ARRAY_DIMENSIONS" in told and declared.fill is not None:
        told["_FillValue"] = declared.fill
    is_time = isinstance(told.get("units"), str) and " since " in told["units"]
    found = {name: told[name] for name in _CONVENTIONS if name in told}
    if told.get("dtype") == "bool":
        found["dtype"] = "bool"
    return {**found, **{name: told[name] for name in ("units", "calendar") if is_time and name in told}}


def _decoder(title: str, declared: Declared, fill: Any) -> Callable[[Array], Array]:
    told = _conventions(declared)
    if declared.dtype.kind not in "iuf":
        if wrong := sorted(declared.attributes.keys() & _CONVENTIONS):
            raise DataError(f"numbers have {wrong}; array {title!r} is {declared.dtype}; leave it out with columns=")
        return lambda values: values
    if not told:
        return lambda values: values
    try:
        import xarray
        from xarray.backends.zarr import FillValueCoder
        from xarray.coders import CFDatetimeCoder
    except ImportError as error:
        raise MissingExtra("xarray", extra="xarray") from error
    times = CFDatetimeCoder(time_unit="us")

    def decode(values: Array) -> Array:
        try:
            attributes = dict(told)
            if declared.version == 2 and "_FillValue" in told:
                attributes["_FillValue"] = fill
            elif isinstance(told.get("_FillValue"), str):
                attributes["_FillValue"] = FillValueCoder.decode(told["_FillValue"], declared.dtype)
            variable = xarray.Variable([str(axis) for axis in range(values.ndim)], values, attributes)
            found = xarray.conventions.decode_cf_variable(
                title,
                variable,
                concat_characters=False,
                stack_char_dim=False,
                decode_times=times,
                decode_timedelta=False,
            ).to_numpy()
        except Exception as error:  # attributes are anybody's, and so is what goes wrong with them
            raise DataError(
                f"array {title!r} is not decoded by what it says, {str(told)[:200]}: {str(error)[:200]}; leave it out"
            ) from error
        if found.dtype.kind == "O":
            raise DataError(
                f"times are of the usual calendar; those of {title!r} are not: {str(told)[:200]}; leave it out"
            )
        return found.astype("M8[us]") if found.dtype.kind == "M" else found

    return decode
