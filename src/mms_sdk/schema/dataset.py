"""Datasets: columns, parts and snapshots as they are kept, and what the API tells of them."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from math import prod
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mms_sdk import html
from mms_sdk.schema.base import Asked, Schema
from mms_sdk.schema.names import Name

FORMAT_VERSION = 1
SPLITS = ("train", "val", "test")
"""Names of the splits in order of their codes in the `split` column."""

Media = Literal["image", "encoded-image", "audio", "encoded-audio", "encoded-video", "series", "text", "bytes"]
Scalars = Literal["number", "category", "label", "timestamp", "embedding", "id", "split"]
ColumnKind = Literal[Media, Scalars]
COLUMN_NAME = r"[a-z][a-z0-9_]{0,62}"
ColumnName = Annotated[str, Field(pattern=f"^{COLUMN_NAME}$")]


Position = Any
"""Where a stream goes on: JSON that means something to the stream alone."""

Profile = Literal["raw", "blosc", "zstd"]
"""How arrays lie: as they are, compressed for reading, or compressed for keeping."""

Dtype = Annotated[str, Field(pattern=r"^(bool|u?int(8|16|32|64)|float(16|32|64))$")]  # little-endian; no objects


Rows = Annotated[int, Field(ge=0, le=2**48)]  # more bytes than a part could have, and few enough to count with


class Column(Asked):
    """One typed column.

    Attributes:
        name: The column's name.
        array: Name of its Zarr array in the parts, once that is another: a column that was renamed keeps its arrays,
            and one whose values were replaced gets new ones.
        kind: What the values mean.
        dtype: NumPy dtype of one value; `uint8` for variable-length bytes and text.
        shape: Shape of one row. None: bytes of any length. A first axis of None: arrays of any length, e.g.
            `(None, 2)` for the samples of two channels.
        nullable: Whether a row may have no value. Such columns are read as masked arrays, or with None in a list.
        labels: Names of the integer values of a label, category or split column, in order of their codes.
        color: What pictures decode to: one channel or three.
        rate_hz: Values in a second, of audio, video and series.
        unit: Physical unit, if there is one; of a timestamp that of its integers, counted from 1970-01-01 UTC.
        title: Its name where it came from, if that is another.
        profile: How its arrays lie in the parts.
    """

    name: ColumnName
    kind: ColumnKind
    dtype: Dtype
    shape: tuple[Annotated[int, Field(ge=0)] | None, ...] | None = ()
    nullable: bool = False
    labels: tuple[str, ...] | None = None
    color: Literal["gray", "rgb"] | None = None
    rate_hz: float | None = Field(default=None, gt=0)
    unit: str | None = None
    title: str | None = None
    array: ColumnName | None = None
    profile: Profile = "raw"

    @model_validator(mode="after")
    def _has_a_shape(self) -> Column:
        if None in (self.shape or ())[1:]:
            raise ValueError(f"only the first axis of a row may vary, as None; got the shape {self.shape}")
        if self.varies and 0 in self.fixed:
            raise ValueError(f"rows of varying length are made of items that hold something; got {self.shape}")
        if self.shape is None and self.dtype != "uint8":
            raise ValueError(f"rows of shape None are bytes, dtype uint8; got {self.dtype}; use (None,) for arrays")
        return self

    @property
    def stored(self) -> str:
        """Name of its Zarr array."""
        return self.array or self.name

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of all Zarr arrays it is made of."""
        values = (f"{self.stored}_data", f"{self.stored}_offsets") if self.varies else (self.stored,)
        return (*values, f"{self.stored}_valid") if self.nullable else values

    @property
    def varies(self) -> bool:
        """Whether its rows are of varying length."""
        return self.shape is None or None in self.shape[:1]

    @property
    def fixed(self) -> tuple[int, ...]:
        """The axes that are the same in all rows: all of them, or all but the first."""
        axes = (self.shape or ())[1:] if self.varies else self.shape or ()
        return tuple(axis for axis in axes if axis is not None)

    @property
    def form(self) -> str:
        """What one value is, in a few signs: `float32`, `uint8 28×28×1`, `int16 n×2`, `text`."""
        if self.shape is None:
            return "text" if self.kind == "text" else "bytes"
        axes = "×".join("n" if axis is None else str(axis) for axis in self.shape)
        return f"{self.dtype} {axes}".rstrip()

    @property
    def row_bytes(self) -> int | None:
        """Bytes of one row, or None where rows vary."""
        return None if self.varies else self.item_bytes

    @property
    def item_bytes(self) -> int:
        """Bytes of one row, or, where rows vary, of one of the items they are made of."""
        import numpy as np

        # `math.prod`: the reader asks for every batch, and NumPy's takes longer than the rest of the question.
        return np.dtype(self.dtype).itemsize * prod(self.fixed)


def meant_column(name: str, columns: Sequence[Column]) -> str:
    """The end of a sentence that asks whether another column was meant, by a name or a title like one that is there."""
    titles = {column.title: column.name for column in columns if column.title}
    known = titles | {column.name: column.name for column in columns}
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {known[near[0]]!r}?" if near else ""


class Sealed(Schema):
    """A folder of rows that never changes.

    Attributes:
        id: Folder name below `parts/`.
        rows: Number of rows.
        manifest: SHA-256 of its `MANIFEST.json`, which in turn lists the digest of every file.
    """

    id: Annotated[str, Field(pattern=r"^[0-9A-HJKMNP-TV-Z]{26}$")]
    rows: Rows
    manifest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Written(Schema):
    """What one writer of a writing has written.

    Attributes:
        key: The writer's.
        part: Its rows; None if there were none.
        splits: Rows in each split.
        classes: Rows in each class.
    """

    key: str
    part: Sealed | None
    splits: dict[str, int] = {}
    classes: dict[str, int] = {}

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.part.rows if self.part else 0


class Layer(Sealed):
    """Columns that rows got later: a folder with as many rows as the part it belongs to.

    Attributes:
        arrays: Zarr arrays it holds, by the names that columns are stored under.
    """

    arrays: tuple[ColumnName, ...]


class Run(Schema):
    """Consecutive rows of a part that came in together.

    Attributes:
        rows: How many.
        snapshot: Which snapshot brought them.
    """

    rows: Rows
    snapshot: Annotated[int, Field(ge=1)]


class Part(Sealed):
    """Some rows of a snapshot, and what became of them since they were written.

    Attributes:
        since: Which snapshots brought its rows, in row order; compaction puts rows of several into one part.
        layers: Columns that were added or replaced later.
        deleted: A folder whose column `row` lists the rows that are no longer there, ascending.
    """

    since: tuple[Run, ...]
    layers: tuple[Layer, ...] = ()
    deleted: Sealed | None = None

    @model_validator(mode="after")
    def _adds_up(self) -> Part:
        came = sum(run.rows for run in self.since)
        layers = [layer.rows for layer in self.layers if layer.rows != self.rows]
        if came != self.rows or layers or self.live < 0:
            raise ValueError(
                f"a part has as many rows as came in with its snapshots, and as its layers, and no more are deleted; "
                f"part {self.id} has {self.rows}, of which {came} came in and {self.rows - self.live} are deleted, and "
                f"layers of other lengths {layers}"
            )
        return self

    @property
    def live(self) -> int:
        """Rows that are still there."""
        return self.rows - (self.deleted.rows if self.deleted else 0)

    @property
    def folders(self) -> tuple[Sealed, ...]:
        """Everything on disk that it is made of."""
        return (self, *self.layers, *([self.deleted] if self.deleted else []))


class Snapshot(Schema):
    """The content of `snapshots/NNNNNNNN.json`: one immutable state of a dataset.

    Attributes:
        number: From 1, without gaps.
        parent: The snapshot this one was made from.
        parts: In row order.
        splits: Rows in each split.
        split_rule: The rule that placed them.
        statistics: Rows in each class, and what else the writer counted.
        streams: For each stream of batches that came in, the last batch committed.
        positions: For those that can begin anywhere, where they go on behind that batch.
        provenance: Where the rows came from and what cleaning did.
    """

    format_version: int = FORMAT_VERSION
    dataset: Name
    number: Annotated[int, Field(ge=1, le=99_999_999)]
    parent: Annotated[int, Field(ge=1)] | None
    created_at: str
    message: str
    columns: tuple[Column, ...]
    parts: tuple[Part, ...]
    splits: dict[str, int] = {}
    split_rule: dict[str, Any] = {}
    statistics: dict[str, Any] = {}
    streams: dict[str, int] = {}
    positions: dict[str, Position] = {}
    provenance: dict[str, Any] = {}

    @model_validator(mode="after")
    def _is_possible(self) -> Snapshot:
        parts = Counter(part.id for part in self.parts)
        names = Counter(column.name for column in self.columns)
        arrays = Counter(array for column in self.columns for array in column.arrays)
        for what, found in (("part", parts), ("column", names), ("array", arrays)):
            if twice := [each for each, count in found.items() if count > 1]:
                raise ValueError(f"a {what} is in a snapshot once; {twice[0]!r} is there {found[twice[0]]} times")
        if self.parent is not None and self.parent >= self.number:
            raise ValueError(f"a snapshot is made from an earlier one; {self.number} says it is from {self.parent}")
        return self

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(part.live for part in self.parts)

    def column(self, name: str) -> Column | None:
        """The column of that name, if there is one."""
        return next((column for column in self.columns if column.name == name), None)


class Layout(Schema):
    """How a snapshot lies in files.

    Attributes:
        bytes: All of it, as it lies.
        columns: Bytes of each column, by name.
        parts: Parts that its rows lie in.
        parts_compacted: How many there would be after compacting.
        small_parts: Parts that compacting would put together with others.
        layers: Folders of columns that rows got later.
        deleted: Rows in those parts that are no longer there.
        freed_bytes: What belongs to those rows, by their share of the parts, and to columns that are no longer there;
            compacting leaves it out.
        other_folders: Folders of the dataset that this snapshot does not name: other snapshots do, or a writer at work,
            or nobody any more.
    """

    bytes: int
    columns: dict[str, int]
    parts: int
    parts_compacted: int
    small_parts: int
    layers: int
    deleted: int
    freed_bytes: int
    other_folders: int

    @property
    def fragmented(self) -> bool:
        """Whether compacting makes much of a difference: fewer than half of many parts, or a tenth of the bytes."""
        parts = self.small_parts >= 10 and 2 * self.parts_compacted <= self.parts
        return parts or self.freed_bytes > max(2**20, self.bytes // 10)


class DatasetInfo(Schema):
    """A dataset as the API lists it: its newest, or the asked-for, snapshot.

    Attributes:
        snapshot: Its number.
        snapshots: How many there are.
        newest: Number of the newest.
    """

    name: Name
    snapshot: int
    snapshots: int
    newest: int
    rows: int
    bytes: int
    columns: tuple[Column, ...]
    splits: dict[str, int]
    statistics: dict[str, Any]
    provenance: dict[str, Any]
    created_at: str
    message: str
    location: str
    layout: Layout


class SnapshotInfo(Schema):
    """A snapshot as the API lists it.

    Attributes:
        parts: Parts that its rows lie in; many small ones are put together by compacting.
        deleted: Rows in those parts that are no longer there.
        tags: Names that stay with it.
    """

    number: int
    rows: int
    parts: int
    deleted: int
    created_at: str
    message: str
    tags: tuple[str, ...] = ()

    def row(self) -> dict[str, Any]:
        """It as a row of a table."""
        return {
            "snapshot": self.number,
            "tags": " ".join(self.tags),
            "rows": self.rows,
            "deleted": self.deleted,
            "parts": self.parts,
            "created": self.created_at[:16].replace("T", " "),
            "message": self.message,
        }

    def _repr_html_(self) -> str:
        return html.facts(f"snapshot {self.number}", {name: value for name, value in self.row().items() if value != ""})


class SnapshotDiff(Schema):
    """What became of a dataset between two snapshots.

    Attributes:
        rows_added: Rows of the newer one that came in after the older one.
        rows_deleted: Rows of the older one that the newer one has no more.
        columns_added: Columns by name, as all that follows.
        columns_replaced: Columns with other values.
        columns_renamed: New names by old ones.
        labels_added: Classes that are new.
    """

    dataset: Name
    older: int
    newer: int
    rows_added: int
    rows_deleted: int
    columns_added: tuple[str, ...]
    columns_dropped: tuple[str, ...]
    columns_replaced: tuple[str, ...]
    columns_renamed: dict[str, str]
    labels_added: tuple[str, ...]

    @property
    def refs(self) -> str:
        """From which snapshot to which."""
        return f"{self.dataset}@{self.older} → {self.dataset}@{self.newer}"

    def facts(self) -> dict[str, Any]:
        """What is not the same, by name; how many rows came and went always."""
        told = {
            "rows added": f"{self.rows_added:,}",
            "rows deleted": f"{self.rows_deleted:,}",
            "columns added": ", ".join(self.columns_added),
            "columns dropped": ", ".join(self.columns_dropped),
            "columns replaced": ", ".join(self.columns_replaced),
            "columns renamed": ", ".join(f"{old} → {new}" for old, new in self.columns_renamed.items()),
            "classes added": ", ".join(self.labels_added),
        }
        return {name: value for name, value in told.items() if value}

    def __str__(self) -> str:
        return f"{self.refs}: {'; '.join(f'{name} {value}' for name, value in self.facts().items())}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html.facts(self.refs, self.facts())


class DeleteRows(Schema):
    """Asks for rows to be deleted, by their numbers in a snapshot."""

    snapshot: int = Field(ge=1, le=99_999_999)
    rows: tuple[int, ...] = Field(min_length=1)
    message: str = ""


class RenameColumns(Schema):
    """Asks for columns to have other names, or, with null, to go."""

    snapshot: int = Field(ge=1, le=99_999_999)
    names: dict[ColumnName, ColumnName | None] = Field(min_length=1)
    message: str = ""


class Compact(Schema):
    """Asks for small neighbouring parts to be put together.

    Attributes:
        max_part_rows: Up to so many rows.
    """

    max_part_rows: int = Field(default=1_000_000, ge=1)


class Expire(Schema):
    """Asks for old snapshots to go.

    Attributes:
        keep: How many of the newest stay; tagged ones stay besides.
    """

    keep: int = Field(ge=1)


class Collect(Schema):
    """Asks for folders to be removed that nothing refers to.

    Attributes:
        grace_s: Seconds for which nobody may have touched them.
    """

    grace_s: float = Field(default=48 * 3600.0, ge=0)


class TagSnapshot(Schema):
    """Asks for a snapshot to have a name; null for the newest."""

    snapshot: int | None = Field(default=None, ge=1, le=99_999_999)
