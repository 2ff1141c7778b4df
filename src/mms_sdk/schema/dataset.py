"""Datasets: columns, snapshots, sources, cleaning steps and splits as they are said and kept."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from mms_sdk import html
from mms_sdk.schema.base import Asked, Schema
from mms_sdk.schema.names import Name
from mms_sdk.schema.sources import Source, Union

FORMAT_VERSION = 1
SPLITS = ("train", "val", "test")
"""Names of the splits in order of their codes in the `split` column."""

Media = Literal["image", "encoded-image", "audio", "encoded-audio", "encoded-video", "series", "text", "bytes"]
Scalars = Literal["number", "category", "label", "timestamp", "embedding", "id", "split"]
ColumnKind = Media | Scalars
COLUMN_NAME = r"[a-z][a-z0-9_]{0,62}"
ColumnName = Annotated[str, Field(pattern=f"^{COLUMN_NAME}$")]


Position = Any
"""Where a stream goes on: JSON that means something to the stream alone."""

Profile = Literal["raw", "blosc", "zstd"]
"""How arrays lie: as they are, compressed for reading, or compressed for keeping."""

Dtype = Annotated[str, Field(pattern=r"^(bool|u?int(8|16|32|64)|float(16|32|64))$")]  # little-endian; no objects


Rows = Annotated[int, Field(ge=0, le=2**48)]  # more bytes than a part could have, and few enough to count with


class Column(Schema):
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


# What a person asks for when they ingest ------------------------------------------------------------------------


Names = Annotated[
    tuple[str, ...], Field(min_length=1), BeforeValidator(lambda names: (names,) if isinstance(names, str) else names)
]
"""One name or several."""


class DropUnreadable(Asked):
    """Drops files that do not decode to a picture."""

    step: Literal["drop-unreadable"] = "drop-unreadable"


class DropDuplicates(Asked):
    """Drops what is there twice: pictures with the same bytes, rows of a table with the same values.

    In an ingest, what the dataset holds counts as seen before, and stays.

    Attributes:
        by: Columns of a table whose values make two rows the same; None for all of them, as they came.
        keep: Which of several stays.
    """

    by_place = ("by",)
    step: Literal["drop-duplicates"] = "drop-duplicates"
    by: Names | None = None
    keep: Literal["first", "last"] = "first"


class DropNearDuplicates(Asked):
    """Drops what is nearly the same as something before it; the first one stays.

    Pictures by a perceptual hash of 64 bits, `drop_near_duplicates(distance=4)`; rows of a table by one of its columns
    of text, `drop_near_duplicates("text", similarity=0.8)`.

    Attributes:
        column: Which column of text; None for pictures.
        distance: Of pictures: in how many of the 64 bits two may differ. 0 to 4 finds copies that were scaled or
            compressed again; from 8 on, different pictures are taken for copies too.
        similarity: Of texts: what share of their runs of five characters two have in common, of all in either, as
            estimated from 128 of them.
    """

    by_place = ("column",)
    step: Literal["drop-near-duplicates"] = "drop-near-duplicates"
    column: str | None = None
    distance: int | None = Field(default=None, ge=0, le=11)
    similarity: float | None = Field(default=None, ge=0.2, le=1)

    @model_validator(mode="before")
    @classmethod
    def _with_default(cls, told: Any) -> Any:
        if not isinstance(told, dict):
            return told
        return {**({"distance": 4} if told.get("column") is None else {"similarity": 0.8}), **told}

    @model_validator(mode="after")
    def _is_one_of_both(self) -> DropNearDuplicates:
        if (self.column is None) == (self.distance is None) or (self.column is None) != (self.similarity is None):
            raise ValueError(
                f"pictures are near by distance=, and texts of a column by similarity=; got column={self.column!r}, "
                f"distance={self.distance}, similarity={self.similarity}"
            )
        return self


class DropMissing(Asked):
    """Drops rows that lack a value.

    Attributes:
        columns: Where to look; None for all columns.
    """

    by_place = ("columns",)
    step: Literal["drop-missing"] = "drop-missing"
    columns: Names | None = None


class DropOutOfRange(Asked):
    """Drops rows with a number outside a range. Rows without a value stay.

    Attributes:
        column: Which column.
        min: The least that stays; None for no bound.
        max: The greatest that stays; None for no bound.
    """

    by_place = ("column",)
    step: Literal["drop-out-of-range"] = "drop-out-of-range"
    column: str
    min: int | float | None = None
    max: int | float | None = None


class KeepWhere(Asked):
    """Keeps rows for which an expression holds; where a value it needs is missing, it does not hold.

    Attributes:
        expression: Columns by name, numbers, quoted texts, `+ - * /`, comparisons, `in`, `and`, `or`, `not` and
            `is None`, e.g. `age >= 18 and city in ("Rome", "Oslo")`.
    """

    by_place = ("expression",)
    step: Literal["keep-where"] = "keep-where"
    expression: str = Field(max_length=10_000)


class DropConstant(Asked):
    """Drops columns that have one and the same value in every row."""

    step: Literal["drop-constant"] = "drop-constant"


class Clip(Asked):
    """Moves numbers outside a range to its nearest end.

    Attributes:
        column: Which column.
        min: The least; None for no bound.
        max: The greatest; None for no bound.
    """

    by_place = ("column",)
    step: Literal["clip"] = "clip"
    column: str
    min: int | float | None = None
    max: int | float | None = None


class Impute(Asked):
    """Fills in missing values.

    Attributes:
        column: Which column.
        by: Its mean, its most frequent value, or the value given.
        value: With `by="value"`, what to fill in.
    """

    by_place = ("column",)
    step: Literal["impute"] = "impute"
    column: str
    by: Literal["mean", "most-frequent", "value"] = "mean"
    value: bool | int | float | str | None = None

    @model_validator(mode="after")
    def _has_a_value(self) -> Impute:
        if (self.by == "value") != (self.value is not None):
            raise ValueError(f"a value is given with by='value', and only then; got by={self.by!r}, {self.value!r}")
        return self


class Convert(Asked):
    """Gives a column another type. A value that would not come through without loss goes with its row.

    Whole numbers, truth values and times come through exactly or not at all; among floats a value is rounded to the
    nearest. What is missing stays missing, and NaN is no value for anything but floats.

    Attributes:
        column: Which column.
        to: A number's dtype, `bool`, `text`, `category` or `timestamp`.
        errors: Whether a row with such a value is dropped, or its value goes missing.
        format: Of texts that are times, as `strptime` has it; None for ISO 8601, with or without an offset.
        unit: Of times; of numbers, what they count from 1970-01-01 UTC. None for what times have, and `us` for texts.
    """

    by_place = ("column", "to")
    step: Literal["convert"] = "convert"
    column: str
    to: Dtype | Literal["text", "category", "timestamp"]
    errors: Literal["drop", "missing"] = "drop"
    format: str | None = Field(default=None, max_length=200)
    unit: Literal["s", "ms", "us", "ns"] | None = None

    @model_validator(mode="after")
    def _is_of_times(self) -> Convert:
        if self.to != "timestamp" and (self.format is not None or self.unit is not None):
            raise ValueError(f"format= and unit= are of times; got them with to={self.to!r}; leave them out")
        if self.format is not None and ("%z" in self.format or "%Z" in self.format):
            raise ValueError(
                f"a format says a time without its zone; got {self.format!r}; leave format= out for ISO times, which "
                f"may have an offset"
            )
        return self


class DropOddSizes(Asked):
    """Drops pictures whose size differs from the one nearly all others have.

    Attributes:
        min_share: Share of the pictures that must agree on a size before the others are taken for mistakes. Below
            it, pictures are plainly of many sizes and nothing is dropped.
    """

    step: Literal["drop-odd-sizes"] = "drop-odd-sizes"
    min_share: float = Field(default=0.95, gt=0.5, le=1.0)


PictureStep = DropUnreadable | DropDuplicates | DropNearDuplicates | DropOddSizes
TableStep = (
    DropMissing
    | DropDuplicates
    | DropNearDuplicates
    | DropOutOfRange
    | KeepWhere
    | DropConstant
    | Clip
    | Impute
    | Convert
)
CleanStep = Annotated[PictureStep | TableStep, Field(discriminator="step")]


class Split(Asked):
    """How rows are placed into train, val and test.

    Fractions are held within each class, and a row's place never changes afterwards: rows added later are placed so
    that each class keeps its fractions.

    Attributes:
        train: Share of the rows to train on.
        val: Share that decides when to stop and which checkpoint is best.
        test: Share that is looked at once, at the end.
        seed: Which of the many possible placements.
        by: `class` for fractions that are held within each class. `content` places each row by a hash of its content
            alone, so that they hold on average and a class may have a single row: right where rows come one by one.
    """

    train: float = Field(default=0.8, gt=0, le=1)
    val: float = Field(default=0.1, ge=0, lt=1)
    test: float = Field(default=0.1, ge=0, lt=1)
    seed: int = 0
    by: Literal["class", "content"] = "class"

    @model_validator(mode="after")
    def _adds_up(self) -> Split:
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"split fractions add up to 1; train + val + test is {total:g}")
        return self

    @property
    def fractions(self) -> dict[str, float]:
        """The fractions above zero, by split name."""
        return {name: getattr(self, name) for name in SPLITS if getattr(self, name) > 0}


class IngestSpec(Asked):
    """Everything an ingest job needs to know.

    Attributes:
        profile: How columns of a new dataset lie; None for what suits the place.
    """

    source: Annotated[Source | Union, Field(discriminator="type")]
    clean: tuple[CleanStep, ...] = ()
    split: Split = Split()
    message: str = ""
    profile: Profile | None = None


class CleanSpec(Asked):
    """Everything a cleaning job needs to know."""

    clean: tuple[CleanStep, ...] = Field(min_length=1, max_length=1000)
    message: str = ""


class JoinSpec(Asked):
    """Everything a join job needs to know.

    Attributes:
        left: Dataset whose rows they are.
        right: Dataset whose columns come along.
        on: Names of key columns of the left, each with its name in the right.
        how: Whether rows without a partner go, or stay without values.
        many: Whether several rows of the right may have one key; then the first counts.
        columns: Which of the right come along; None for all but the keys, and what is known of its rows.
        rename: New names for columns of the right.
        suffix: Put behind the name of a column of the right that the left has too.
        message: Kept with the snapshot.
    """

    left: str
    right: str
    on: dict[str, str] = Field(min_length=1)
    how: Literal["inner", "left"] = "inner"
    many: Literal["refuse", "first"] = "refuse"
    columns: tuple[str, ...] | None = Field(default=None, min_length=1)
    rename: dict[str, ColumnName] = {}
    suffix: str = Field(default="", pattern=r"^[a-z0-9_]{0,20}$")
    message: str = ""


class JoinReport(Schema):
    """What became of the rows of a join.

    Attributes:
        rows: There are now.
        matched: Rows of the left that have a partner.
        unmatched: Rows of the left that have none.
    """

    rows: int
    matched: int
    unmatched: int


class ConcatSpec(Asked):
    """Everything a job needs to know that puts datasets end to end.

    Attributes:
        datasets: In order.
        missing: What becomes of a column that is not in all of them: refused, or without values there.
        message: Kept with the snapshot.
    """

    datasets: tuple[str, ...] = Field(min_length=2, max_length=1000)
    missing: Literal["refuse", "null"] = "refuse"
    message: str = ""


class Reject(Schema):
    """One file or row that did not come in, and why."""

    source: str
    reason: str


class CleaningStepReport(Schema):
    """What one cleaning step did.

    Attributes:
        examples: The first rejects; the whole list lies in the job's `rejects.jsonl`.
        note: What became of values or columns.
    """

    step: str
    dropped: int
    examples: tuple[Reject, ...] = ()
    note: str = ""

    @property
    def example(self) -> str:
        """The first reject and why, if there is one."""
        return f"{self.examples[0].source}: {self.examples[0].reason}" if self.examples else ""

    @property
    def outcome(self) -> str:
        """What it did, without its name."""
        dropped = f"{self.dropped:,} dropped{', e.g. ' if self.examples else ''}{self.example}"
        return f"{self.note}; {dropped}" if self.note and self.dropped else self.note or dropped

    def __str__(self) -> str:
        first = f", e.g. {self.example}" if self.examples else ""
        note = f"; {self.note}" if self.note else ""
        return f"{self.step} dropped {self.dropped:,}{first}{note}"


class CleaningReport(Schema):
    """What an ingest saw, kept and dropped."""

    found: int
    already_present: int
    kept: int
    steps: tuple[CleaningStepReport, ...]
    notes: tuple[str, ...] = ()

    @property
    def dropped(self) -> int:
        """Rows dropped by all steps together."""
        return sum(step.dropped for step in self.steps)

    @property
    def summary(self) -> str:
        """How many there were and are."""
        there = f", {self.already_present:,} of them there already" if self.already_present else ""
        return f"{self.found:,} found{there}, {self.kept:,} kept"

    def table(self) -> list[dict[str, Any]]:
        """Of each step what it dropped, the first of it, and what became of values."""
        rows = [
            {"step": each.step, "dropped": each.dropped, "e.g.": each.example, "note": each.note} for each in self.steps
        ]
        said = {name for row in rows for name, value in row.items() if value != ""}
        return [{name: value for name, value in row.items() if name in said} for row in rows]

    def __str__(self) -> str:
        return "\n".join([self.summary, *map(str, self.steps), *self.notes])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = self.table()
        told = html.table(self.summary, list(rows[0]), [list(row.values()) for row in rows], level=4) if rows else ""
        notes = "".join(map(html.line, self.notes))
        return told + notes if rows else html.titled(self.summary, notes, level=4)


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
