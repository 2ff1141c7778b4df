"""A dataset in a store: `dataset.json`, immutable parts, and snapshots whose exclusive creation is the commit."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from itertools import groupby

import orjson
from pydantic import ValidationError

from mms_sdk.errors import (
    Conflict,
    Damaged,
    DatasetNotFound,
    InvalidRequest,
    SnapshotConflict,
    SnapshotNotFound,
)
from mms_sdk.schema.dataset import FORMAT_VERSION, Column, Position, Snapshot
from mms_sdk.schema.findings import reasons
from mms_sdk.schema.lineage import Reference
from mms_sdk.schema.names import check_name
from mms_sdk.storage import fence, manifest, noting, records
from mms_sdk.storage.changes import Change
from mms_sdk.storage.ids import now
from mms_sdk.storage.parts import PartWriter
from mms_sdk.storage.remedies import RESTORE
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.stores.base import Store
from mms_sdk.storage.stores.clock import DIFFER_S

COMMIT_WITHIN_S = 24 * 3600.0
MAX_POSITION_BYTES = 64 * 1024
SNAPSHOT_FILE = re.compile(r"(\d{8})\.json")


class Dataset:
    """One dataset. Safe to use from any number of processes at once.

    Args:
        store: Where it lies, and nothing else; use `create` or `open` instead of calling this.
        name: Its name.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.name = name

    @classmethod
    def create(cls, store: Store, name: str) -> Dataset:
        """Makes an empty dataset; it exists for others once it has a snapshot.

        Raises:
            Conflict: There is one already.
        """
        check_name(name, what="dataset")
        told = {"format": "mms-dataset", "format_version": FORMAT_VERSION, "name": name, "created_at": now()}
        try:
            store.create("dataset.json", orjson.dumps(told, option=orjson.OPT_INDENT_2))
        except FileExistsError as error:
            raise Conflict(f"a dataset name is used once; {name!r} exists at {store.url}; open it instead") from error
        return cls(store, name)

    @classmethod
    def open(cls, store: Store, name: str) -> Dataset:
        """Opens an existing dataset.

        Raises:
            DatasetNotFound: There is none.
            Damaged: `dataset.json` is not readable, or of a newer format.
        """
        path = f"{store.url}/dataset.json"
        try:
            told = orjson.loads(store.read("dataset.json"))
            version = told["format_version"]
        except FileNotFoundError as error:
            raise DatasetNotFound(f"no dataset {name!r} at {store.url}; list them with: mms datasets") from error
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise Damaged(f"{path} is not a dataset description; {RESTORE}") from error
        if version != FORMAT_VERSION:
            raise Damaged(f"{path} has format version {version}; this MMS reads {FORMAT_VERSION}; upgrade mms-sdk")
        return cls(store, name)

    @classmethod
    def open_or_create(cls, store: Store, name: str) -> Dataset:
        """Opens the dataset, or makes it if it is not there."""
        try:
            return cls.open(store, name)
        except DatasetNotFound:
            pass
        try:
            return cls.create(store, name)
        except Conflict:  # somebody made it between the two calls
            return cls.open(store, name)

    def snapshots(self) -> list[int]:
        """Numbers of all snapshots, oldest first."""
        found = map(SNAPSHOT_FILE.fullmatch, self.store.names("snapshots"))
        return sorted(int(match[1]) for match in found if match)

    def record(self, number: int | None = None) -> Snapshot:
        """The description of one snapshot, checked against its digest.

        Args:
            number: Which one; None is the newest.

        Raises:
            SnapshotNotFound: There is no such snapshot.
            Damaged: Its file is not what was written.
        """
        if number is None:
            numbers = self.snapshots()
            if not numbers:
                raise SnapshotNotFound(f"dataset {self.name!r} has no snapshot yet; ingest something into it first")
            number = numbers[-1]
        try:
            return read_snapshot(self.store, snapshot_key(number))
        except FileNotFoundError as error:
            raise SnapshotNotFound(
                f"dataset {self.name!r} has no snapshot {number}; it has {_ranges(self.snapshots())}"
            ) from error

    def snapshot(self, number: int | None = None) -> OpenSnapshot:
        """Opens a snapshot for reading; it stays the same whatever is committed meanwhile."""
        return OpenSnapshot(self.store.below("parts"), self.record(number))

    def verify(self) -> tuple[int, int]:
        """Reads every byte of every snapshot and of every part they name, and compares digests.

        Returns:
            Parts and bytes read.

        Raises:
            Damaged: Something is not what was written; the message names the file.
        """
        checked: dict[str, int] = {}
        for number in self.snapshots():
            for sealed in (each for part in self.record(number).parts for each in part.folders):
                if sealed.id not in checked:
                    folder = self.store.below(f"parts/{sealed.id}")
                    what = f"part {sealed.id} of dataset {self.name!r}"
                    manifest.check(folder, what=what, expected=sealed.manifest, content=True)
                    checked[sealed.id] = sum(each.bytes for each in folder.walk(""))
        return len(checked), sum(checked.values())

    def writer(self, columns: Sequence[Column]) -> PartWriter:
        """A writer for one new part; commit what it returns."""
        return PartWriter(self.store.below("parts"), columns)

    def commit(
        self,
        change: Change,
        *,
        base: Snapshot | None,
        rebase: bool,
        once: tuple[str, int] | None = None,
        position: Position = None,
        kept_until: float = 0.0,
    ) -> Snapshot:
        """Makes a change visible, all or nothing.

        Args:
            change: What it brings is sealed.
            base: The snapshot it was made on; None for the first.
            rebase: Put it on top of whatever was committed meanwhile, if the two commute. Right for a change that
                stands for itself; wrong where it was chosen by looking at what is there.
            once: A stream's name and the number of one of its batches, which count up. If that batch or a later one is
                committed already, by whomever, nothing is; what was written for it is garbage.
            position: Where that stream goes on behind the batch, as JSON; None where it has no positions.
            kept_until: When a writing that what is committed belongs to showed life last, in seconds since 1970: no
                garbage collection took it until then, however long ago it was sealed.

        Returns:
            The new snapshot, which is on disk; the newest one if the batch was committed already.

        Raises:
            SnapshotConflict: Somebody committed first and the two do not commute.
            InvalidRequest: A batch's number is negative; or a position is no JSON, or more than 64 KiB.
            Conflict: This process is of an attempt at a job that is over.
        """
        if once is not None and once[1] < 0:
            raise InvalidRequest(f"batches of a stream are numbered from 0; got {once[1]} of {once[0]!r}; count up")
        position = _checked(position)
        if once is not None and holds(base, once):  # a repeated batch may name parts that were collected long ago
            return self.record()
        self._check_fresh(change, kept_until)
        while True:
            snapshot = self._on_top(change, base, once, position)
            fence.check()
            try:
                self.store.create(snapshot_key(snapshot.number), records.signed(snapshot, "snapshot"))
            except FileExistsError as error:
                base = self.record()
                if once is not None and holds(base, once):
                    return base
                if not rebase:
                    raise SnapshotConflict(
                        f"snapshot {snapshot.number} of {self.name!r} was committed by somebody else meanwhile; read "
                        f"snapshot {base.number} and do it again"
                    ) from error
            else:
                noting.note(Reference(what="dataset", name=self.name, at=snapshot.number), where=self.store.url)
                return snapshot

    def _check_fresh(self, change: Change, kept_until: float) -> None:
        # What lies about for longer may be taken for garbage; and what is not there cannot be committed.
        for sealed in change.sealed:
            made = f"parts/{sealed.id}/{manifest.NAME}"
            try:
                age = time.time() - max(self.store.stat(made).modified, kept_until)
            except FileNotFoundError as error:
                raise Damaged(f"what is committed is there; {self.store.url}/{made} is gone; write it again") from error
            if age < -DIFFER_S:
                raise Conflict(
                    f"what was written is committed by clocks that agree within a day; {sealed.id} was sealed "
                    f"{-age / 3600:.1f} hours after now; set the clock of this machine, or that of {self.store.url}"
                )
            if age > COMMIT_WITHIN_S:
                raise Conflict(
                    f"what was written is committed within {COMMIT_WITHIN_S / 3600:g} hours, after which it may be "
                    f"collected as garbage; {sealed.id} is {age / 3600:.1f} hours old; write it again"
                )

    def _on_top(
        self, change: Change, base: Snapshot | None, once: tuple[str, int] | None, position: Position
    ) -> Snapshot:
        number = base.number + 1 if base else 1
        before = {"columns": (), "parts": ()} if base is None else dict(base)
        told = {
            "dataset": self.name,
            "number": number,
            "parent": base.number if base else None,
            "created_at": now(),
            "message": change.message,
            "provenance": dict(change.provenance),
            "streams": {**(base.streams if base else {}), **dict([once] if once else [])},
            "positions": {**(base.positions if base else {}), **_at(once, position)},
        }
        return Snapshot(**{**before, **told, **change.fields(base, number)})


def snapshot_key(number: int) -> str:
    """Where in a dataset's store a snapshot's description lies."""
    return f"snapshots/{number:08d}.json"


def holds(base: Snapshot | None, once: tuple[str, int]) -> bool:
    """Whether a batch of a stream, or a later one, is committed."""
    stream, batch = once
    return base is not None and base.streams.get(stream, -1) >= batch


def _at(once: tuple[str, int] | None, position: Position) -> dict[str, Position]:
    return {} if once is None or position is None else {once[0]: position}


def _checked(position: Position) -> Position:
    # Every later snapshot carries it, and it is read back as JSON has it.
    try:
        data = orjson.dumps(position)
    except TypeError as error:
        raise InvalidRequest(
            f"a stream's position is JSON: texts, whole numbers up to 64 bits, lists and objects; got "
            f"{str(position)[:200]}: {error}"
        ) from error
    if len(data) > MAX_POSITION_BYTES:
        raise InvalidRequest(
            f"a stream's position is at most {MAX_POSITION_BYTES // 1024} KiB, for every snapshot carries it; got "
            f"{len(data) / 1024:.0f} KiB; tell where to begin in fewer words"
        )
    return orjson.loads(data)


def read_snapshot(store: Store, key: str) -> Snapshot:
    """Reads a snapshot's file.

    Raises:
        FileNotFoundError: There is none.
        Damaged: It is not what was written, or of another format.
    """
    path = f"{store.url}/{key}"
    body = records.opened(store.read(key), "snapshot", where=path, what="a snapshot description", remedy=RESTORE)
    if body.get("format_version") != FORMAT_VERSION:
        version = body.get("format_version")
        raise Damaged(f"{path} has format version {version}; this MMS reads {FORMAT_VERSION}; upgrade mms-sdk")
    try:
        snapshot = Snapshot.model_validate(body)
    except ValidationError as error:
        raise Damaged(f"{path} is no snapshot that could be: {reasons(error.errors())}; {RESTORE}") from error
    if snapshot_key(snapshot.number) != f"snapshots/{key.rpartition('/')[2]}":
        raise Damaged(f"{path} describes snapshot {snapshot.number}; {RESTORE}")
    return snapshot


def _ranges(numbers: list[int]) -> str:
    # Numbers less their places are equal within a run of consecutive ones.
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda each: each[1] - each[0])]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs) or "none"
