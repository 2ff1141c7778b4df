"""A dataset on disk: `dataset.json`, immutable parts, and snapshots whose exclusive creation is the commit."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from mms_sdk.errors import Conflict, Damaged, DatasetNotFound, InvalidRequest, SnapshotConflict, SnapshotNotFound
from mms_sdk.schema.dataset import FORMAT_VERSION, Column, Part, Snapshot
from mms_sdk.schema.names import check_name
from mms_sdk.storage import files, manifest
from mms_sdk.storage.ids import now
from mms_sdk.storage.parts import PartWriter
from mms_sdk.storage.snapshots import OpenSnapshot

_SNAPSHOT_FILE = re.compile(r"(\d{8})\.json")


@dataclass(frozen=True, kw_only=True)
class Addition:
    """What a commit adds to the snapshot it is based on.

    Attributes:
        parts: Sealed parts; none records that somebody looked and found nothing new.
        columns: All columns of the dataset, with their labels, as they are after the addition.
        splits: Rows the parts add to each split.
        classes: Rows the parts add to each class.
    """

    parts: Sequence[Part]
    columns: Sequence[Column]
    message: str = ""
    splits: Mapping[str, int] = field(default_factory=dict)
    classes: Mapping[str, int] = field(default_factory=dict)
    split_rule: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)


class Dataset:
    """One dataset folder. Safe to use from any number of processes at once.

    Args:
        folder: The dataset's folder; use `create` or `open` instead of calling this.
        name: Its name.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name

    @classmethod
    def create(cls, folder: Path, name: str) -> Dataset:
        """Makes an empty dataset; it exists for others once it has a snapshot.

        Raises:
            Conflict: There is one already.
        """
        check_name(name, what="dataset")
        for part in (folder, folder / "parts", folder / "snapshots"):
            files.make_folder(part)
        told = {"format": "mms-dataset", "format_version": FORMAT_VERSION, "name": name, "created_at": now()}
        try:
            files.publish(folder / "dataset.json", orjson.dumps(told, option=orjson.OPT_INDENT_2))
        except FileExistsError as error:
            raise Conflict(f"a dataset name is used once; {name!r} exists at {folder}; open it instead") from error
        return cls(folder, name)

    @classmethod
    def open(cls, folder: Path, name: str) -> Dataset:
        """Opens an existing dataset.

        Raises:
            DatasetNotFound: There is none.
            Damaged: `dataset.json` is not readable, or of a newer format.
        """
        path = folder / "dataset.json"
        try:
            told = orjson.loads(path.read_bytes())
            version = told["format_version"]
        except FileNotFoundError as error:
            raise DatasetNotFound(f"no dataset {name!r} at {folder}; list them with: mms datasets") from error
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise Damaged(f"{path} is not a dataset description; restore it from a backup") from error
        if version != FORMAT_VERSION:
            raise Damaged(f"{path} has format version {version}; this MMS reads {FORMAT_VERSION}; upgrade mms-sdk")
        return cls(folder, name)

    @classmethod
    def open_or_create(cls, folder: Path, name: str) -> Dataset:
        """Opens the dataset, or makes it if it is not there."""
        try:
            return cls.open(folder, name)
        except DatasetNotFound:
            pass
        try:
            return cls.create(folder, name)
        except Conflict:  # somebody made it between the two calls
            return cls.open(folder, name)

    def snapshots(self) -> list[int]:
        """Numbers of all snapshots, oldest first."""
        folder = self.folder / "snapshots"
        names = (_SNAPSHOT_FILE.fullmatch(path.name) for path in folder.iterdir()) if folder.is_dir() else ()
        return sorted(int(match[1]) for match in names if match)

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
        path = self._snapshot_path(number)
        try:
            return _decode(path.read_bytes(), path)
        except FileNotFoundError as error:
            raise SnapshotNotFound(
                f"dataset {self.name!r} has no snapshot {number}; it has {_ranges(self.snapshots())}"
            ) from error

    def snapshot(self, number: int | None = None) -> OpenSnapshot:
        """Opens a snapshot for reading; it stays the same whatever is committed meanwhile."""
        return OpenSnapshot(self.folder / "parts", self.record(number))

    def verify(self) -> tuple[int, int]:
        """Reads every byte of every snapshot and of every part they name, and compares digests.

        Returns:
            Parts and bytes read.

        Raises:
            Damaged: Something is not what was written; the message names the file.
        """
        checked: dict[str, int] = {}
        for number in self.snapshots():
            for part in self.record(number).parts:
                if part.id not in checked:
                    folder = self.folder / "parts" / part.id
                    what = f"part {part.id} of dataset {self.name!r}"
                    manifest.check(folder, what=what, expected=part.manifest, content=True)
                    checked[part.id] = files.tree_bytes(folder)
        return len(checked), sum(checked.values())

    def writer(self, columns: Sequence[Column]) -> PartWriter:
        """A writer for one new part; commit what it returns."""
        return PartWriter(self.folder / "parts", columns)

    def commit(self, addition: Addition, *, base: Snapshot | None, rebase: bool) -> Snapshot:
        """Makes parts visible, all or nothing.

        Args:
            addition: What is added; its parts are sealed.
            base: The snapshot it was made on; None for the first.
            rebase: Put it on top of whatever was committed meanwhile. Right for rows that stand for themselves;
                wrong where the addition was chosen by looking at what is there.

        Returns:
            The new snapshot, which is on disk.

        Raises:
            SnapshotConflict: Somebody committed first and the two do not commute.
        """
        while True:
            snapshot = _on_top(self.name, base, addition)
            try:
                files.publish(self._snapshot_path(snapshot.number), _encode(snapshot))
            except FileExistsError as error:
                newest = self.record()
                if not rebase or newest.columns != tuple(addition.columns):
                    raise SnapshotConflict(
                        f"snapshot {snapshot.number} of {self.name!r} was committed by somebody else meanwhile; read "
                        f"snapshot {newest.number} and do it again"
                    ) from error
                base = newest
            else:
                return snapshot

    def _snapshot_path(self, number: int) -> Path:
        return self.folder / "snapshots" / f"{number:08d}.json"


def _on_top(name: str, base: Snapshot | None, addition: Addition) -> Snapshot:
    before = base.parts if base else ()
    twice = {part.id for part in before} & {part.id for part in addition.parts}
    if twice:
        raise InvalidRequest(
            f"a part is committed once; {sorted(twice)} are in snapshot {base and base.number} already"
        )
    splits = Counter(base.splits if base else {}) + Counter(addition.splits)
    classes = Counter(base.statistics.get("classes", {}) if base else {}) + Counter(addition.classes)
    return Snapshot(
        dataset=name,
        number=base.number + 1 if base else 1,
        parent=base.number if base else None,
        created_at=now(),
        message=addition.message,
        columns=tuple(addition.columns),
        parts=(*before, *addition.parts),
        splits=dict(splits),
        split_rule=dict(addition.split_rule) or (base.split_rule if base else {}),
        statistics={"classes": dict(classes)} if classes else {},
        provenance=dict(addition.provenance),
    )


def _encode(snapshot: Snapshot) -> bytes:
    body = snapshot.model_dump(mode="json")
    return orjson.dumps({"snapshot": body, "sha256": _digest(body)}, option=orjson.OPT_INDENT_2)


def _decode(data: bytes, path: Path) -> Snapshot:
    try:
        told = orjson.loads(data)
        body, digest = told["snapshot"], told["sha256"]
        intact = _digest(body) == digest
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise Damaged(f"{path} is not a snapshot description; restore it from a backup") from error
    if not intact:
        raise Damaged(f"{path} is damaged: its digest is not the one written with it; restore it from a backup")
    if body.get("format_version") != FORMAT_VERSION:
        version = body.get("format_version")
        raise Damaged(f"{path} has format version {version}; this MMS reads {FORMAT_VERSION}; upgrade mms-sdk")
    return Snapshot.model_validate(body)


def _digest(body: Any) -> str:
    return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _ranges(numbers: list[int]) -> str:
    if not numbers:
        return "none"
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
