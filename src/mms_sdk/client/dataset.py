"""A dataset at one snapshot: what it holds, and what is done to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import numpy as np

from mms_sdk import told
from mms_sdk.client import pages
from mms_sdk.client.api import Api
from mms_sdk.client.descriptions import Description
from mms_sdk.client.jobs import Job
from mms_sdk.client.previews import Preview
from mms_sdk.client.tables import Table
from mms_sdk.compute.data import describe as statistics
from mms_sdk.compute.data import preview as looking
from mms_sdk.compute.data.kinds.tabular import told_values
from mms_sdk.errors import ColumnNotFound, InvalidRequest
from mms_sdk.schema.cleaning import CleaningReport, CleanStep, PictureStep, Reject, TableStep
from mms_sdk.schema.dataset import Column, DatasetInfo, SnapshotDiff, meant_column
from mms_sdk.schema.job import Job as JobRecord
from mms_sdk.schema.names import parse_snapshot
from mms_sdk.schema.specs import CleanSpec
from mms_sdk.storage import edits
from mms_sdk.storage.row_numbers import row_numbers
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.workspace import Workspace
from mms_sdk.types import Rows


class Dataset:
    """A dataset at one snapshot. It stays the same whatever is ingested later."""

    def __init__(self, api: Api, info: DatasetInfo, workspace: Workspace | None) -> None:
        self._api = api
        self.info = info
        self._workspace = workspace

    def __repr__(self) -> str:
        classes = f", {told.counted(self.num_classes, 'class')}" if self.labels else ""
        splits = ", ".join(f"{name} {rows:,}" for name, rows in self.splits.items())
        cleaning = self.cleaning
        nothing = f"; {cleaning.nothing_new}" if cleaning is not None and cleaning.nothing_new else ""
        return f"<dataset {self.ref}: {told.counted(self.rows, 'row')}{classes}{splits and '; '}{splits}{nothing}>"

    def _repr_html_(self) -> str:
        return pages.page(self)

    def facts(self) -> dict[str, Any]:
        """What matters about it, by name."""
        return pages.facts(self)

    @property
    def name(self) -> str:
        """Its name."""
        return self.info.name

    @property
    def ref(self) -> str:
        """The reference that names exactly these rows, e.g. `flowers@7`."""
        return f"{self.info.name}@{self.info.snapshot}"

    @property
    def reference(self) -> str:
        """As `ref`: by which jobs name what they read."""
        return self.ref

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.info.rows

    @property
    def splits(self) -> dict[str, int]:
        """Rows in each split."""
        return {name: self.info.splits[name] for name in ("train", "val", "test") if self.info.splits.get(name)}

    @property
    def classes(self) -> dict[str, int]:
        """Rows in each class, in order of the labels' codes."""
        counts = self.info.statistics.get("classes", {})
        return {label: counts.get(label, 0) for label in self.labels}

    def classes_by_split(self) -> dict[str, dict[str, int]]:
        """Rows of each class in each split, counted now; two small columns are read whole.

        Raises:
            ColumnNotFound: It has no classes, or no splits.
            InvalidRequest: It lies on a server.
        """
        opened = self.open()
        columns = [opened.column(name).labels or () for name in ("label", "split")]
        return pages.by_split(opened.values("label"), opened.values("split"), *columns)

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in order of their codes."""
        return next((column.labels or () for column in self.info.columns if column.name == "label"), ())

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.labels)

    @property
    def picture_shape(self) -> tuple[int, ...] | None:
        """(height, width, channels) of its pictures, or None where they differ in size."""
        column = next((column for column in self.info.columns if column.name == "image"), None)
        return None if column is None or column.varies else column.fixed

    @property
    def cleaning(self) -> CleaningReport | None:
        """What cleaning found when this snapshot was ingested."""
        told = self.info.provenance.get("cleaning")
        return None if told is None else CleaningReport.model_validate(told)

    @property
    def embedded(self) -> bool:
        """Whether its rows can be read here."""
        return self._workspace is not None

    @property
    def workspace(self) -> Workspace:
        """The workspace folder it lies in.

        Raises:
            InvalidRequest: It lies on a server.
        """
        if self._workspace is None:
            raise InvalidRequest(
                f"training and looking at rows need a dataset of this machine's workspace; {self.ref} lies on a "
                f"server; run it there, with mms.connect() without a URL"
            )
        return self._workspace

    def head(self, rows: int = 10) -> Table[dict[str, Any]]:
        """The first rows, as a table: texts and labels by name, arrays by their shape.

        Args:
            rows: How many.
        """
        if isinstance(rows, bool) or not isinstance(rows, int | np.integer) or rows < 0:
            raise InvalidRequest(f"the first rows are a whole number from 0; got rows={rows!r}, e.g. head(10)")
        opened = self.open()
        numbers = np.arange(min(rows, opened.rows))
        columns = [column for column in opened.record.columns if column.kind != "id"]
        shown = {column.name: told_values(column, opened.gather(column.name, numbers)) for column in columns}
        found = [dict(zip(shown, row, strict=True)) for row in zip(*shown.values(), strict=True)]
        return Table(found, title="rows", rows=found)

    def describe(self, split: str | None = None) -> Description:
        """Its columns in numbers, ids left out. Every row is read, twice, some at a time.

        Of numbers: how many there are, the ends, mean, standard deviation and a histogram, over all items where a row
        has several; of names and texts: how many different ones and the commonest; of times the first and last; of rows
        of varying length, how long they are; of pictures their sizes.

        Args:
            split: Of its rows only; of all if left out.

        Raises:
            SplitNotFound: There is no such split.
            InvalidRequest: It lies on a server.
        """
        opened = self.open()
        found = statistics.describe(opened, opened.split_rows(split))
        return Description(found, title=f"columns of {self.ref}{f'/{split}' if split else ''}")

    def preview(
        self,
        rows: Sequence[int] | None = None,
        *,
        split: str | None = None,
        captions: Sequence[str] | None = None,
    ) -> Preview:
        """Some rows to look at: pictures, sounds to hear, series as lines, and words, numbers and times as they are.

        Args:
            rows: Row numbers; some of each class if left out, or some from everywhere where there are no classes.
            split: Of its rows only, where `rows` is left out.
            captions: What to write below each instead of its class.

        Raises:
            SplitNotFound: There is no such split.
            InvalidRequest: A row number is out of range or none; `rows` and `split` at once; another number of
                captions than rows; or it lies on a server.
        """
        opened = self.open()
        numbers = self._to_show(opened, split) if rows is None else row_numbers(rows)
        if rows is not None and split is not None:
            raise InvalidRequest(f"rows are given by number or by split; got rows and split={split!r}; leave one out")
        if captions is not None and not isinstance(captions, Sequence):
            raise InvalidRequest(f"captions are a list of texts, one for each row; got {captions!r}")
        if captions is not None and len(captions) != len(numbers):
            raise InvalidRequest(f"there is one caption for each row; got {len(captions)} for {len(numbers)} rows")
        return Preview(opened, numbers, captions)

    def _to_show(self, opened: OpenSnapshot, split: str | None) -> Rows:
        rows = opened.split_rows(split)
        codes = opened.values("label")[rows] if self.labels else None
        chosen: Rows = looking.choose(codes, rows, classes=self.num_classes, most=24 if self.labels else 12)
        return chosen

    def rejects(self) -> Table[Reject]:
        """Every file or record that was left out when this snapshot was made, and why.

        Raises:
            InvalidRequest: It was made by neither an ingest nor a stream; or too much had been left out before.
        """
        job, span = (self.info.provenance.get(name) for name in ("job", "rejects"))
        if job is None:
            raise InvalidRequest(f"an ingest's job keeps what was left out; {self.ref} has none; look at .cleaning")
        if span is None and "rejects" in self.info.provenance:
            raise InvalidRequest(
                f"a follower lists what it leaves out up to 64 MiB; {self.ref} came later; .cleaning has the counts"
            )
        listed = self._api.read(f"/v1/jobs/{job}/artifacts/rejects.jsonl")
        lines = listed[slice(*span or (None,))].splitlines()
        found = [Reject.model_validate_json(line) for line in lines]
        return Table(found, title="rejects", rows=(reject.model_dump() for reject in found))

    def delete_rows(self, rows: Sequence[int], *, message: str = "") -> Dataset:
        """The dataset without some rows, as a new snapshot; this one stays as it is.

        Args:
            rows: Row numbers in this snapshot. Rows that somebody added meanwhile stay.
            message: Kept with the snapshot.

        Raises:
            InvalidRequest: A row number is out of range, or there is none.
            SnapshotConflict: Somebody deleted from the same parts meanwhile.
        """
        body = {"snapshot": self.info.snapshot, "rows": row_numbers(rows).tolist(), "message": message}
        return self._now(self._api.send("POST", f"/v1/datasets/{self.name}:delete-rows", DatasetInfo, body))

    def rename_columns(self, names: Mapping[str, str | None], *, message: str = "") -> Dataset:
        """The dataset with other names for columns, or, with None, without them; no value is written.

        Raises:
            ColumnNotFound: There is no such column.
            InvalidRequest: Two columns would have one name, or none is left.
        """
        if not isinstance(names, Mapping):
            raise InvalidRequest(f"columns are renamed by old and new names, e.g. {{'age': 'years'}}; got {names!r}")
        for name in names:
            if all(column.name != name for column in self.info.columns):
                meant = meant_column(name, self.info.columns)
                raise ColumnNotFound(f"{self.ref} has no column {name!r}{meant or '; look at .info.columns'}")
        body = {"snapshot": self.info.snapshot, "names": dict(names), "message": message}
        return self._now(self._api.send("POST", f"/v1/datasets/{self.name}:rename-columns", DatasetInfo, body))

    def write_column(
        self, column: Column, derive: Callable[[Mapping[str, Any]], Any], *, inputs: Sequence[str], message: str = ""
    ) -> Dataset:
        """The dataset with one column more, or other values in one that is there, as a new snapshot.

        Args:
            column: Name, kind, dtype, shape and labels: `mms.Column(name="age", kind="number", dtype="int64")`.
            derive: Called with a few thousand rows at a time: values of `inputs` by name, as arrays of shape
                (rows, *column.shape) or lists of bytes; returns the new values for them, in the same order.
            inputs: Columns that `derive` is given.
            message: Kept with the snapshot.

        Raises:
            ColumnNotFound: An input is not there.
            InvalidRequest: Values that do not fit the column; or the dataset lies on a server.
            SnapshotConflict: Somebody changed which rows there are meanwhile.
        """
        (described,) = columns_of([column])
        names = (inputs,) if isinstance(inputs, str) else tuple(inputs)
        of, dataset = self.open(), self.workspace.dataset(self.name)
        done = edits.write_column(dataset, described, derive, inputs=names, of=of, message=message)
        return self._now(self._api.get(f"/v1/datasets/{self.name}", DatasetInfo, snapshot=done.number))

    def clean(self, clean: CleanStep | Sequence[CleanStep], *, message: str = "", progress: bool = True) -> Dataset:
        """The dataset's newest snapshot, cleaned: rows that go and values that change, as one new snapshot.

        Args:
            clean: Steps in order, e.g. `[mms.drop_missing(), mms.clip("age", min=0)]`.
            message: Kept with the snapshot.
            progress: Show a bar on a terminal.

        Raises:
            InvalidRequest: A step does not suit what the dataset holds; or this is an older snapshot.
            ColumnNotFound: A step names a column that is not there.
            SnapshotConflict: Others changed the dataset meanwhile, time after time.
        """
        if self.info.snapshot != self.info.newest:
            raise InvalidRequest(
                f"what is cleaned is the newest snapshot; {self.ref} is an older one, and the newest is "
                f"{self.info.newest}; get it with ws.datasets.get({self.name!r})"
            )
        spec = CleanSpec(clean=steps_of(clean), message=message)
        record = self._api.send("POST", f"/v1/datasets/{self.name}:clean", JobRecord, spec.model_dump(mode="json"))
        job = Job(self._api, record).wait(progress=progress)
        return self._now(self._api.get(f"/v1/datasets/{self.name}", DatasetInfo, snapshot=job.result["snapshot"]))

    def tag(self, name: str) -> None:
        """Gives this snapshot a name that stays with it: `flowers@paper`. A tagged snapshot does not expire.

        Raises:
            InvalidName: The name is none, or begins like a number.
            Conflict: The name is taken.
        """
        parse_snapshot(name)
        body = {"snapshot": self.info.snapshot}
        self._api.send("PUT", f"/v1/datasets/{self.name}/tags/{name}", DatasetInfo, body)

    def diff(self, older: int | str) -> SnapshotDiff:
        """What became of the dataset from an older snapshot, by number or tag, to this one."""
        query = {"older": older, "newer": self.info.snapshot}
        return self._api.get(f"/v1/datasets/{self.name}:diff", SnapshotDiff, **query)

    def _now(self, info: DatasetInfo) -> Dataset:
        return Dataset(self._api, info, self._workspace)

    def open(self) -> OpenSnapshot:
        """The rows themselves: NumPy arrays by column, gathered by row number."""
        return self.workspace.dataset(self.name).snapshot(self.info.snapshot)


def steps_of(clean: CleanStep | Sequence[CleanStep]) -> tuple[CleanStep, ...]:
    """Cleaning steps, one or several.

    Raises:
        InvalidRequest: One is none.
    """
    steps = tuple(clean) if isinstance(clean, Sequence) and not isinstance(clean, str) else (clean,)
    if wrong := [step for step in steps if not isinstance(step, PictureStep | TableStep)]:
        kinds = (*get_args(PictureStep), *get_args(TableStep))
        calls = {kind.model_fields["step"].default.replace("-", "_") for kind in kinds}
        named = str(wrong[0]).replace("-", "_")
        call = named if named in calls else "drop_duplicates"
        raise InvalidRequest(f"a cleaning step is made by a call such as mms.{call}(); got {wrong[0]!r}")
    return steps


def columns_of(columns: Sequence[Column]) -> tuple[Column, ...]:
    """Columns that somebody describes.

    Raises:
        InvalidRequest: One is no description.
    """
    given = tuple(columns) if isinstance(columns, Sequence) and not isinstance(columns, str) else (columns,)
    if wrong := [column for column in given if not isinstance(column, Column)]:
        raise InvalidRequest(
            f"columns that are written are told as mms.Column(name='age', kind='number', dtype='int64'), in a list if "
            f"there may be several; got {wrong[0]!r}"
        )
    return given
