"""What a commit does to the snapshot it is put on: pure functions of the two.

A change knows by itself whether it still fits a snapshot that somebody else committed meanwhile. Rows that are added
stand for themselves; rows that are deleted, columns that are written and parts that are put together go by parts as
they were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mms_sdk.errors import InvalidRequest, SnapshotConflict
from mms_sdk.schema.dataset import Column, Layer, Part, Run, Sealed, Snapshot

Fields = dict[str, Any]
"""Fields of a `Snapshot` that a change decides: columns, parts, splits, statistics and the like."""

_AGAIN = "open the newest snapshot and do it again"


class Change(Protocol):
    """Something to commit."""

    @property
    def message(self) -> str:
        """Kept with the snapshot."""

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Where it came from."""

    @property
    def sealed(self) -> Sequence[Sealed]:
        """The folders that it brings."""

    def fields(self, base: Snapshot | None, number: int) -> Fields:
        """What the snapshot of that number says, put on top of `base`.

        Raises:
            SnapshotConflict: The change was made on another state, and the two do not commute.
        """


@dataclass(frozen=True, kw_only=True)
class Addition:
    """Rows.

    Attributes:
        parts: Sealed folders; none records that somebody looked and found nothing new.
        columns: All columns of the dataset, with their labels, as they are after the addition.
        splits: Rows the parts add to each split.
        classes: Rows the parts add to each class.
        split_rule: The rule that placed them.
    """

    parts: Sequence[Sealed]
    columns: Sequence[Column]
    message: str = ""
    splits: Mapping[str, int] = field(default_factory=dict)
    classes: Mapping[str, int] = field(default_factory=dict)
    split_rule: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sealed(self) -> Sequence[Sealed]:
        """Its parts."""
        return self.parts

    def fields(self, base: Snapshot | None, number: int) -> Fields:
        """The rows behind those that are there."""
        before = base.parts if base else ()
        if base is not None and not extend(self.columns, base.columns):
            raise SnapshotConflict(
                f"rows are added with the columns that snapshot {base.number} has; it has others; go by its columns"
            )
        if twice := {part.id for part in before} & {part.id for part in self.parts}:
            raise InvalidRequest(
                f"a part is committed once; {sorted(twice)} are in snapshot {base and base.number} already"
            )
        new = (Part(**part.model_dump(), since=(Run(rows=part.rows, snapshot=number),)) for part in self.parts)
        return {
            "columns": tuple(self.columns),
            "parts": (*before, *new),
            "splits": dict(Counter(base.splits if base else {}) + Counter(self.splits)),
            "split_rule": dict(self.split_rule) or (base.split_rule if base else {}),
            "statistics": _statistics(Counter(_classes(base)) + Counter(self.classes)),
        }


@dataclass(frozen=True, kw_only=True)
class Deletion:
    """Rows that are no longer there.

    Attributes:
        before: The parts concerned, as they were.
        deleted: For each of them, by its id, all its deleted rows, earlier ones included.
        columns: All columns, as they were when the lost rows were counted.
        splits: Rows that each split loses.
        classes: Rows that each class loses.
        chosen_by: Columns by whose values the rows were chosen, if they were.
    """

    before: Sequence[Part]
    columns: Sequence[Column]
    deleted: Mapping[str, Sealed]
    splits: Mapping[str, int]
    classes: Mapping[str, int]
    chosen_by: Sequence[Column] = ()
    message: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sealed(self) -> Sequence[Sealed]:
        """The lists of deleted rows."""
        return tuple(self.deleted.values())

    def fields(self, base: Snapshot | None, number: int) -> Fields:
        """The same parts without the rows."""
        now = {part.id: part.deleted for part in base.parts} if base else {}
        changed = any(part.id not in now or now[part.id] != part.deleted for part in self.before)
        if base is None or changed or _counted(base.columns) != _counted(self.columns):
            raise SnapshotConflict(
                "rows are deleted from parts as they were looked at; these have changed meanwhile; " + _AGAIN
            )
        lie = {column.name: column.stored for column in base.columns}
        if other := [column.name for column in self.chosen_by if lie.get(column.name) != column.stored]:
            raise SnapshotConflict(f"rows are deleted by values that are there; {other} have others by now; {_AGAIN}")
        parts = (part.model_copy(update={"deleted": self.deleted.get(part.id, part.deleted)}) for part in base.parts)
        return {
            "parts": tuple(parts),
            "splits": {name: rows - self.splits.get(name, 0) for name, rows in base.splits.items()},
            "statistics": _statistics(
                {label: rows - self.classes.get(label, 0) for label, rows in _classes(base).items()}
            ),
        }


@dataclass(frozen=True, kw_only=True)
class NewColumns:
    """Columns, or other values for some.

    Attributes:
        before: All parts, as they were.
        columns: As they will be; one of the same name is replaced.
        replaced: Of each of these names that is taken, where its values lay.
        layers: For each part, by its id, the folder with the values.
        splits: Rows in each split, if that is what the column says.
        classes: Rows in each class, likewise.
    """

    before: Sequence[Part]
    columns: Sequence[Column]
    replaced: Mapping[str, str]
    layers: Mapping[str, Layer]
    splits: Mapping[str, int] | None = None
    classes: Mapping[str, int] | None = None
    message: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sealed(self) -> Sequence[Sealed]:
        """The folders with the values."""
        return tuple(self.layers.values())

    def fields(self, base: Snapshot | None, number: int) -> Fields:
        """The same rows with the columns."""
        if base is None or _rows(base.parts) != _rows(self.before):
            raise SnapshotConflict(
                "a column is written for all rows that there are; these have changed meanwhile; " + _AGAIN
            )
        new = {column.name: column for column in self.columns}
        taken = arrays_in_use(base)
        if twice := [column.name for column in self.columns if taken & {column.stored, *column.arrays}]:
            raise SnapshotConflict(f"somebody else wrote a column {twice[0]!r} meanwhile; " + _AGAIN)
        if (now := lying_at(base, new)) != self.replaced:
            raise SnapshotConflict(
                f"a column replaces what was looked at; of {sorted(new)} there were {sorted(self.replaced)}, and "
                f"{sorted(now)} since they were renamed, dropped or written meanwhile; " + _AGAIN
            )
        kept = {column.name: new.get(column.name, column) for column in base.columns}
        return {
            "columns": tuple({**kept, **new}.values()),
            "parts": tuple(
                part.model_copy(update={"layers": (*part.layers, self.layers[part.id])}) for part in base.parts
            ),
            "splits": dict(base.splits if self.splits is None else self.splits),
            "statistics": base.statistics if self.classes is None else _statistics(self.classes),
        }


@dataclass(frozen=True, kw_only=True)
class Together:
    """Several changes as one: each is put on top of what those before it make.

    Attributes:
        changes: In order.
    """

    changes: Sequence[Change]
    message: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sealed(self) -> Sequence[Sealed]:
        """The folders of all of them."""
        return tuple(sealed for change in self.changes for sealed in change.sealed)

    def fields(self, base: Snapshot | None, number: int) -> Fields:
        """What they decide, one after the other."""
        fields: Fields = {}
        for change in self.changes:
            told = change.fields(base, number)
            base = base.model_copy(update=told) if base else None
            fields |= told
        return fields


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """Other rows, with columns of their own, instead of all there are; to be committed without `rebase`.

    Attributes:
        parts: Sealed folders.
        columns: All columns.
        splits: Rows in each split.
        classes: Rows in each class.
    """

    parts: Sequence[Sealed]
    columns: Sequence[Column]
    splits: Mapping[str, int] = field(default_factory=dict)
    classes: Mapping[str, int] = field(default_factory=dict)
    message: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sealed(self) -> Sequence[Sealed]:
        """Its parts."""
        return self.parts

    def fields(self, base: Snapshot | None, number: int) -> Fields:
        """The rows, and nothing of what was there."""
        alone = Addition(parts=self.parts, columns=self.columns, splits=self.splits, classes=self.classes)
        return alone.fields(None, number)


@dataclass(frozen=True, kw_only=True)
class ColumnNames:
    """Other names for columns, or fewer columns; no value is written.

    Attributes:
        names: For each column concerned its new name, or None if it goes.
    """

    names: Mapping[str, str | None]
    message: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    sealed: Sequence[Sealed] = ()

    def fields(self, base: Snapshot | None, number: int) -> Fields:
        """The same rows under other names."""
        known = [column.name for column in base.columns] if base else []
        if base is None or not set(self.names) <= set(known):
            raise SnapshotConflict(f"columns are renamed or dropped that are there: {known}; got {sorted(self.names)}")
        columns = [
            column.model_copy(update={"name": name, "array": column.stored if name != column.stored else None})
            for column in base.columns
            if (name := self.names.get(column.name, column.name)) is not None
        ]
        if len({column.name for column in columns}) < len(columns):
            raise InvalidRequest(f"each column has a name of its own; after the change: {[c.name for c in columns]}")
        before, after = _counted(base.columns), _counted(columns)
        return {
            "columns": tuple(columns),
            # Counts are of what `split` and `label` name; where those go, so do they.
            "splits": base.splits if before.get("split") == after.get("split") else {},
            "statistics": base.statistics if before.get("label") == after.get("label") else {},
        }


@dataclass(frozen=True, kw_only=True)
class Compaction:
    """The same rows in fewer folders.

    Attributes:
        before: Neighbouring parts, as they were.
        part: What stands for them.
    """

    before: Sequence[Part]
    part: Part
    message: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sealed(self) -> Sequence[Sealed]:
        """The one folder."""
        return (self.part,)

    def fields(self, base: Snapshot | None, number: int) -> Fields:
        """The other parts, and this one in its place."""
        parts = list(base.parts) if base else []
        count = len(self.before)
        for at in range(len(parts) - count + 1):
            if parts[at : at + count] == list(self.before):
                return {"parts": (*parts[:at], self.part, *parts[at + count :])}
        raise SnapshotConflict("parts are put together as they were looked at; these have changed meanwhile; " + _AGAIN)


def arrays_in_use(base: Snapshot) -> set[str]:
    """Names of arrays that no new column may have: those of columns, and of layers, of dropped columns too."""
    layers = (layer for part in base.parts for layer in part.layers)
    of_columns = {array for column in base.columns for array in (column.stored, *column.arrays)}
    return of_columns | {array for layer in layers for array in layer.arrays}


def lying_at(base: Snapshot, names: Collection[str]) -> dict[str, str]:
    """Of each of these names that a column has, where its values lie."""
    return {column.name: column.stored for column in base.columns if column.name in names}


def extend(after: Sequence[Column], before: Sequence[Column]) -> bool:
    """Whether columns are the same as before, but for labels that are new at the end."""

    def without_labels(columns: Sequence[Column]) -> list[Column]:
        return [column.model_copy(update={"labels": None}) for column in columns]

    grown = all(
        (new.labels or ())[: len(old.labels or ())] == (old.labels or ())
        for new, old in zip(after, before, strict=False)
    )
    return grown and without_labels(after) == without_labels(before)


def _rows(parts: Sequence[Part]) -> list[tuple[str, Sealed | None]]:
    return [(part.id, part.deleted) for part in parts]


def _counted(columns: Sequence[Column]) -> dict[str, str]:
    # Where the values lie that rows are counted by.
    return {column.name: column.stored for column in columns if column.name in ("split", "label")}


def _classes(base: Snapshot | None) -> dict[str, int]:
    return base.statistics.get("classes", {}) if base else {}


def _statistics(classes: Mapping[str, int]) -> dict[str, Any]:
    return {"classes": dict(classes)} if classes else {}
