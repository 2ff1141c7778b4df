"""Everything that can be done to a dataset, in any order, beside the same done to lists in memory."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from s3_buckets import make_bucket

from ceph_server import CephServer
from mms_sdk.errors import SnapshotNotFound
from mms_sdk.schema.dataset import Column, Layer
from mms_sdk.storage import snapshots
from mms_sdk.storage.changes import Addition, ColumnNames, NewColumns, Together
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.edits import (
    compact,
    delete_rows,
    deletion,
    rename_columns,
    spread,
    with_free_arrays,
    write_column,
)
from mms_sdk.storage.retention import collect_garbage, expire, tag, tags, untag
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.stores.base import Store
from mms_sdk.storage.stores.local import LocalStore
from mms_sdk.storage.stores.opening import store_at

NUMBER = Column(name="number", kind="number", dtype="int64")  # a table
VECTOR = Column(name="vector", kind="embedding", dtype="float32", shape=(16,))  # raw rows
TEXT = Column(name="text", kind="text", dtype="uint8", shape=None)  # ragged
NAMES = ("number", "vector", "text", "a", "b")

pytestmark = pytest.mark.slow


@dataclass
class Model:
    """A snapshot as lists: values of each column, and which snapshot brought each row."""

    columns: dict[str, list[Any]]
    since: list[int] = field(default_factory=list)

    def changed(self, **columns: list[Any]) -> Model:
        return Model({**self.columns, **columns}, self.since)


def values_of(column: Column, numbers: list[int]) -> list[Any]:
    """Values that tell which number they were made from."""
    if column.shape is None:
        return [b"%d," % number * (number % 5) for number in numbers]
    if column.shape:
        return [np.full(column.shape, number, column.dtype) for number in numbers]
    return [np.int64(number) for number in numbers]


def as_array(column: Column, values: list[Any]) -> Any:
    return (
        values if column.shape is None else np.array(values, column.dtype).reshape(len(values), *(column.shape or ()))
    )


class DatasetMachine(RuleBasedStateMachine):
    def make_store(self, folder: Path) -> Store:
        return LocalStore(folder / "flowers")

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mms-machine-", dir="/dev/shm"))
        self.store = self.make_store(self.folder)
        self.dataset = Dataset.create(self.store, "flowers")
        self.kinds = {"number": NUMBER, "vector": VECTOR, "text": TEXT}
        self.models: dict[int, Model] = {}
        self.tags: dict[str, int] = {}
        self.next = 0
        self._append(3)

    def teardown(self) -> None:
        for number, model in self.models.items():
            self._compare(number, model)
        shutil.rmtree(self.folder)

    @property
    def newest(self) -> Model:
        return self.models[max(self.models)]

    @rule(rows=st.integers(0, 9))
    def append(self, rows: int) -> None:
        self._append(rows)

    @precondition(lambda self: self.newest.since)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        count = len(self.newest.since)
        rows = data.draw(st.sets(st.integers(0, count - 1), min_size=1), label="rows")
        delete_rows(self.dataset, sorted(rows, reverse=True), of=self.dataset.snapshot())
        kept = [row for row in range(count) if row not in rows]
        columns = {name: [values[row] for row in kept] for name, values in self.newest.columns.items()}
        self._committed(Model(columns, [self.newest.since[row] for row in kept]))

    @rule(name=st.sampled_from(NAMES), kind=st.sampled_from([NUMBER, VECTOR, TEXT]), data=st.data())
    def write(self, name: str, kind: Column, data: st.DataObject) -> None:
        source = data.draw(st.sampled_from(sorted(self.newest.columns)), label="from")

        def derive(columns: dict[str, Any]) -> Any:
            return as_array(kind, values_of(kind, [_weight(value) for value in columns[source]]))

        column = kind.model_copy(update={"name": name})
        write_column(self.dataset, column, derive, inputs=[source], of=self.dataset.snapshot())  # type: ignore[arg-type]
        values = values_of(kind, [_weight(value) for value in self.newest.columns[source]])
        self.kinds[name] = column
        self._committed(self.newest.changed(**{name: values}))

    @rule(old=st.sampled_from(NAMES), new=st.sampled_from(NAMES))
    def rename(self, old: str, new: str) -> None:
        if old not in self.newest.columns or new in self.newest.columns:
            return
        rename_columns(self.dataset, {old: new}, of=self.dataset.snapshot())
        self.kinds[new] = self.kinds[old].model_copy(update={"name": new})
        columns = {new if name == old else name: values for name, values in self.newest.columns.items()}
        self._committed(Model(columns, self.newest.since))

    @rule(name=st.sampled_from(NAMES))
    def drop(self, name: str) -> None:
        if name not in self.newest.columns or len(self.newest.columns) == 1:
            return
        rename_columns(self.dataset, {name: None}, of=self.dataset.snapshot())
        columns = {each: values for each, values in self.newest.columns.items() if each != name}
        self._committed(Model(columns, self.newest.since))

    @precondition(lambda self: len(self.newest.since) > 1 and len(self.newest.columns) > 1)
    @rule(data=st.data())
    def clean(self, data: st.DataObject) -> None:
        count = len(self.newest.since)
        rows = data.draw(st.sets(st.integers(0, count - 1), min_size=1), label="rows")
        written, dropped = data.draw(st.permutations(sorted(self.newest.columns)), label="columns")[:2]
        of, kind = self.dataset.snapshot(), self.kinds[written]
        replaced = of.column(written).stored
        numbers = [_weight(value) + 1 for value in self.newest.columns[written]]
        stored = with_free_arrays(of, kind)
        layers = {}
        for part in of.record.parts:
            first, live = of.rows_of(part.id)
            values = as_array(kind, values_of(kind, numbers[first : first + len(live)]))
            with self.dataset.writer((stored,)) as writer:
                writer.write({stored.name: spread(kind, values, live, part.rows)})
                layers[part.id] = Layer(**writer.close().model_dump(), arrays=(stored.name,))
        column = kind.model_copy(update={"array": stored.name if stored.name != kind.name else None})
        changes = (
            NewColumns(before=of.record.parts, columns=[column], replaced={written: replaced}, layers=layers),
            ColumnNames(names={dropped: None}),
            deletion(self.dataset, np.array(sorted(rows)), of=of, sealed=[]),
        )
        self.dataset.commit(Together(changes=changes), base=of.record, rebase=True)
        kept = [row for row in range(count) if row not in rows]
        columns = {**self.newest.columns, written: values_of(kind, numbers)}
        left = {name: [values[row] for row in kept] for name, values in columns.items() if name != dropped}
        self._committed(Model(left, [self.newest.since[row] for row in kept]))

    @rule(most=st.sampled_from([1, 7, 20, 1000]))
    def compact(self, most: int) -> None:
        before = len(self.dataset.record().parts)
        for _ in compact(self.dataset, of=self.dataset.snapshot(), max_part_rows=most):
            self._committed(self.newest)
        record = self.dataset.record()
        assert len(record.parts) <= before
        assert not any(part.deleted or part.layers for part in record.parts)

    @rule(name=st.sampled_from(["x", "y"]), data=st.data())
    def tag(self, name: str, data: st.DataObject) -> None:
        if name in self.tags:
            untag(self.dataset, name)
            del self.tags[name]
        else:
            self.tags[name] = tag(self.dataset, name, data.draw(st.sampled_from(sorted(self.models)), label="snapshot"))
        assert tags(self.dataset) == self.tags

    @rule(keep=st.integers(1, 5))
    def expire(self, keep: int) -> None:
        gone = [number for number in sorted(self.models)[:-keep] if number not in self.tags.values()]
        assert expire(self.dataset, keep=keep) == gone
        for number in gone:
            del self.models[number]
            with pytest.raises(SnapshotNotFound):
                self.dataset.record(number)

    @rule(grace_s=st.sampled_from([0.0, 1e9]))
    def collect(self, grace_s: float) -> None:
        with self.dataset.writer((NUMBER,)) as writer:  # a part that was sealed and never committed
            writer.write({"number": np.arange(3)})
            lost = writer.close()
        collect_garbage(self.dataset, grace_s=grace_s)
        used = {
            each.id for number in self.models for part in self.dataset.record(number).parts for each in part.folders
        }
        there = set(self.store.names("parts"))
        assert used <= there
        assert grace_s == 0.0 or lost.id in there
        assert grace_s > 0 or there == used

    @rule()
    def reopen(self) -> None:
        self.dataset = Dataset.open(self.store, "flowers")

    @rule(data=st.data())
    def travel(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.models)), label="snapshot")
        self._compare(number, self.models[number])

    @invariant()
    def the_newest_is_as_in_memory(self) -> None:
        if self.models:
            assert self.dataset.snapshots() == sorted(self.models)
            self._compare(max(self.models), self.newest)

    def _append(self, rows: int) -> None:
        numbers = list(range(self.next, self.next + rows))
        self.next += rows
        columns = self.dataset.record().columns if self.models else tuple(self.kinds.values())
        fresh = {column.name: values_of(self.kinds[column.name], numbers) for column in columns}
        with self.dataset.writer(columns) as writer:
            writer.write({name: as_array(self.kinds[name], values) for name, values in fresh.items()})
            part = writer.close()
        base = self.dataset.record() if self.models else None
        number = self.dataset.commit(Addition(parts=[part], columns=columns), base=base, rebase=False).number
        before = self.newest if self.models else Model({name: [] for name in fresh})
        both = {name: [*before.columns[name], *values] for name, values in fresh.items()}
        self.models[number] = Model(both, [*before.since, *[number] * rows])

    def _taken(self, snapshot: OpenSnapshot, name: str, rows: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(snapshots, "_KEPT_ROWS", -1)
            snapshot = OpenSnapshot(self.store.below("parts"), snapshot.record)
            return snapshot.take(name, rows)

    def _committed(self, model: Model) -> None:
        self.models[max(self.models) + 1] = model

    def _compare(self, number: int, model: Model) -> None:
        snapshot = self.dataset.snapshot(number)
        assert snapshot.rows == len(model.since)
        assert {column.name for column in snapshot.record.columns} == set(model.columns)
        backwards = np.arange(snapshot.rows)[::-1]
        for name, values in model.columns.items():
            column = snapshot.column(name)
            if column.shape is None:
                assert snapshot.gather(name, backwards) == values[::-1]
                continue
            np.testing.assert_array_equal(snapshot.values(name), as_array(column, values))
            np.testing.assert_array_equal(snapshot.gather(name, backwards), as_array(column, values)[::-1])
            np.testing.assert_array_equal(self._taken(snapshot, name, backwards), as_array(column, values)[::-1])
        half = number // 2
        assert snapshot.rows_since(half).tolist() == [row for row, since in enumerate(model.since) if since > half]


def _weight(value: Any) -> int:
    # A number from any value, the same for what was read as for what is kept in memory.
    return len(value) if isinstance(value, bytes) else int(np.sum(value, dtype=np.float64)) % 1000


TestDataset = DatasetMachine.TestCase
TestDataset.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_the_same_holds_on_s3(ceph: CephServer) -> None:
    url = make_bucket(ceph.endpoint)

    class OnS3(DatasetMachine):
        def make_store(self, folder: Path) -> Store:
            return store_at(url, copies=folder / "copies").below(folder.name)

    few = settings(TestDataset.settings, max_examples=20)
    run_state_machine_as_test(OnS3, settings=few)  # type: ignore[no-untyped-call]
