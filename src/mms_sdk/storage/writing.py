"""One snapshot written by many processes: each fills a part under a key of its own, and one commit joins them.

Schedulers run a task again when its machine is lost, and beside itself when it is slow. So what counts is the key: the
first writer to seal it is kept, and whatever another one wrote under it is removed. Where a task cannot know that it
has all its rows, each attempt has a key, and the commit names those that count. That a key was sealed is a file below
`writing/`, created exclusively; that the writing was committed is told by the snapshot itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import orjson
from pydantic import ValidationError

from mms_sdk.errors import Conflict, Damaged, InvalidRequest, MmsError, SnapshotConflict
from mms_sdk.schema.dataset import Column, Snapshot, Written
from mms_sdk.storage import manifest
from mms_sdk.storage.changes import Addition, extend
from mms_sdk.storage.counts import by_label
from mms_sdk.storage.datasets import COMMIT_WITHIN_S, SNAPSHOT_FILE, Dataset, holds, read_snapshot
from mms_sdk.storage.ids import is_id, new_id, now
from mms_sdk.storage.parts import PartWriter, refuse_shared_arrays
from mms_sdk.storage.records import opened, signed
from mms_sdk.storage.stores.base import Store

WRITINGS = "writing"
"""Where the writings of a dataset lie."""
BEGUN = "begun.json"
"""A writing is there as long as this is."""
_CLOSED = "closed.json"
_KEY_FILE = re.compile(r"[0-9a-f]{64}\.json")


@dataclass(frozen=True, kw_only=True)
class Writing:
    """What many processes write, to be committed as one snapshot. Made by `ws.datasets.write()`.

    It is a few names: pickle it and send it to whichever processes see the same folder or bucket.

    Attributes:
        name: The dataset.
        store: Where it lies.
        columns: What every batch brings.
        id: Its own.
        after: Number of the newest snapshot when it began; 0 if there was none.
    """

    name: str
    store: Store
    columns: tuple[Column, ...]
    id: str
    after: int

    def writer(self, key: str) -> KeyedWriter:
        """A context manager that fills one part; leaving it normally seals the part under its key.

        Args:
            key: Which share of the rows this is, e.g. `share-00017`: the same whenever the share is written again,
                with the same rows. Rows of the snapshot are in the order of the keys as texts.

        Raises:
            InvalidRequest: The key is no text, or an empty one.
            Conflict: On entering or leaving: the writing is over, and the key is not among its own.
        """
        if not isinstance(key, str) or not key:
            raise InvalidRequest(f"a key is a text, e.g. f'{{number:05}}'; got {key!r}; number shares with zeros ahead")
        return KeyedWriter(self, key)

    def sealed(self) -> list[Written]:
        """What is sealed so far, in the order of the keys.

        Raises:
            Damaged: The file of a key is not what was written.
        """
        return sorted(_all(self.store, self.id), key=lambda written: written.key)

    def holds(self, key: str) -> bool:
        """Whether a key is sealed."""
        return _is_there(self.store, self._file(key))

    def commit(
        self,
        *,
        message: str = "",
        once: tuple[str, int] | None = None,
        expect: int | None = None,
        keys: Collection[str] | None = None,
        rebase: bool = True,
        split_rule: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> Snapshot:
        """Commits what is sealed, as one snapshot; no key is sealed afterwards.

        Again, or from several processes at once, it gives that same snapshot.

        Args:
            message: Kept with the snapshot.
            once: A stream's name and the number of one of its batches, which count up from 0. If that batch or a later
                one is committed already, by whichever writing, nothing is.
            expect: How many keys there must be.
            keys: Which of them; None for all. Right where each attempt at a share seals a key of its own, and the
                scheduler says which attempts count.
            rebase: Put it on top of whatever was committed since the writing began. Wrong where the rows were chosen by
                looking at what was there.
            split_rule: The rule that placed rows in splits; kept with the snapshot.
            provenance: Where the rows came from; kept with the snapshot.

        Returns:
            The snapshot, which is on disk; the newest one if the batch was committed already.

        Raises:
            InvalidRequest: No row is sealed, or not as many keys as expected, or not those that were named.
            SnapshotConflict: The dataset has got other columns since the writing began, or, without `rebase`, anything
                was committed.
            Conflict: Nothing was sealed for a day, so that garbage collection may have begun to take it.
        """
        dataset = Dataset(self.store, self.name)
        if (done := self._done(dataset, _newest(dataset), once)) is not None:
            return done
        self._refuse_incomplete(expect, keys)
        keyed = (each.modified for each in self.store.walk(self._own) if _KEY_FILE.fullmatch(each.key))
        alive = max(keyed, default=0.0)
        self._close(abandoned=False)
        written = [each for each in self.sealed() if keys is None or each.key in keys]
        told = {"writing": self.id, "writers": len(written), **(provenance or {})}
        while True:
            # On exactly the snapshot that was looked through: whoever commits the writing too takes the same number.
            base = _newest(dataset)
            if (done := self._done(dataset, base, once)) is not None:
                return done
            if not rebase and _number(base) != self.after:
                raise SnapshotConflict(
                    f"snapshot {_number(base)} of {self.name!r} was committed by somebody else meanwhile; read it and "
                    f"do it again"
                )
            addition = self._addition(written, base, message=message, split_rule=split_rule or {}, provenance=told)
            try:
                return dataset.commit(addition, base=base, rebase=False, once=once, kept_until=alive)
            except SnapshotConflict:
                if _number(_newest(dataset)) == _number(base):
                    raise

    def abandon(self) -> None:
        """Removes what is sealed, of a writing that is committed without `rebase`; unless somebody may still do so."""
        dataset = Dataset(self.store, self.name)
        if self._close(abandoned=True) or self._is_overtaken(dataset):
            for written in self.sealed():
                if written.part is not None:
                    self.store.remove(f"parts/{written.part.id}", first=manifest.NAME)
            self.forget()

    def _is_overtaken(self, dataset: Dataset) -> bool:
        base = _newest(dataset)
        return _number(base) > self.after and self._done(dataset, base, None) is None

    def forget(self) -> None:
        """Removes what was noted down about it, for once it is committed and nobody writes its keys any more."""
        with contextlib.suppress(FileNotFoundError):
            self.store.remove(self._own, first=BEGUN)

    def _addition(self, written: Sequence[Written], base: Snapshot | None, **told: Any) -> Addition:
        # Labels may have grown meanwhile.
        grown = base is not None and extend(base.columns, self.columns)
        return Addition(
            parts=[each.part for each in written if each.part is not None],
            columns=base.columns if base is not None and grown else self.columns,
            splits=sum((Counter(each.splits) for each in written), Counter()),
            classes=sum((Counter(each.classes) for each in written), Counter()),
            **told,
        )

    def _done(self, dataset: Dataset, base: Snapshot | None, once: tuple[str, int] | None) -> Snapshot | None:
        if once is not None and holds(base, once):
            return base
        # Streams are carried from snapshot to snapshot for ever; a writing is looked for where it may be.
        return next(
            (each for each in records_after(dataset, self.after) if each.provenance.get("writing") == self.id), None
        )

    def _refuse_incomplete(self, expect: int | None, keys: Collection[str] | None) -> None:
        if not self._has_begun:
            raise Conflict(f"{self._over}; begin another with ws.datasets.write({self.name!r})")
        written = [each for each in self.sealed() if keys is None or each.key in keys]
        found = [each.key for each in written]
        if missing := sorted(set(keys or ()) - set(found)):
            raise InvalidRequest(f"keys are committed that are sealed; {_some(missing)} are not; write them first")
        if expect is not None and len(found) != expect:
            raise InvalidRequest(
                f"a writing is committed once all keys are sealed; expected {expect}, sealed are {len(found)}, "
                f"{_some(found)}; write those that are missing"
            )
        if not found or not (self.after or any(each.rows for each in written)):
            raise InvalidRequest(
                f"a commit brings rows; {len(found)} keys are sealed, with no row; write some and leave the block of "
                f"writer() without an error"
            )

    def _seal(self, written: Written) -> None:
        if self.holds(written.key):
            return
        self._refuse_over(written.key)
        with contextlib.suppress(FileExistsError):
            self.store.create(self._file(written.key), signed(written, "written"))
            if (
                self.is_closed or not self._has_begun
            ):  # whoever closed it then looks what is sealed: before or after this
                raise Conflict(
                    f"a writing is committed once all its writers are done; {self.id} was while {written.key!r} was "
                    f"being sealed; commit() tells the snapshot, count its rows"
                )

    def names(self, written: Written) -> bool:
        """Whether it is this that was sealed under its key."""
        return self.holds(written.key) and _read(self.store, self._file(written.key)) == written

    def _refuse_over(self, key: str) -> None:
        if self.is_closed or not self._has_begun:
            raise Conflict(f"{self._over}, without the key {key!r}; write its rows with another writing")

    @property
    def is_closed(self) -> bool:
        """Whether somebody has begun to commit it."""
        return _is_there(self.store, f"{self._own}/{_CLOSED}")

    @property
    def is_abandoned(self) -> bool:
        """Whether what it sealed is removed, or is about to be."""
        return self.is_closed and bool(orjson.loads(self.store.read(f"{self._own}/{_CLOSED}"))["abandoned"])

    @property
    def _has_begun(self) -> bool:
        return _is_there(self.store, f"{self._own}/{BEGUN}")

    def _close(self, *, abandoned: bool) -> bool:
        # Either to commit it or to remove it, whoever is first; returns whether it was this call.
        try:
            self.store.create(f"{self._own}/{_CLOSED}", orjson.dumps({"closed_at": now(), "abandoned": abandoned}))
        except FileExistsError:
            if not abandoned and self.is_abandoned:
                raise SnapshotConflict(f"{self._over}: what it wrote did not fit; do it again") from None
            return False
        return True

    def _file(self, key: str) -> str:
        return f"{self._own}/{hashlib.sha256(key.encode()).hexdigest()}.json"

    @property
    def _own(self) -> str:
        return f"{WRITINGS}/{self.id}"

    @property
    def _over(self) -> str:
        return f"a writing ends with its commit, or when nothing was sealed for two days; {self.id} is over"


class KeyedWriter:
    """Fills the part of one key; see `Writing.writer`. One thread at a time."""

    def __init__(self, writing: Writing, key: str) -> None:
        self.key = key
        self._writing = writing
        self._part: PartWriter | None = None
        self._splits: Counter[str] = Counter()
        self._classes: Counter[str] = Counter()

    def write(self, batch: Mapping[str, Any]) -> None:
        """Appends rows.

        Args:
            batch: For each column an array of shape (rows, *column.shape), or a sequence of `bytes` or arrays for a
                column of varying length. Rows without a value are masked, or None in a sequence.

        Raises:
            InvalidRequest: A column is missing, unknown, or of another dtype, shape or length; or a code of `label` or
                `split` names none.
        """
        if self._part is None:  # the key is sealed already
            return
        counted = {
            column.name: by_label(column, batch[column.name]) for column in self._counted if column.name in batch
        }
        self._part.write(batch)
        self._splits.update(counted.get("split", {}))
        self._classes.update(counted.get("label", {}))

    @property
    def _counted(self) -> list[Column]:
        return [column for column in self._writing.columns if column.name in ("split", "label") and column.labels]

    def __enter__(self) -> Self:
        if not self._writing.holds(self.key):
            self._writing._refuse_over(self.key)
            self._part = PartWriter(self._writing.store.below("parts"), self._writing.columns)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._part is None:
            return
        with self._part as part:  # removes what is not closed
            if error is None:
                self._seal(part)

    def _seal(self, part: PartWriter) -> None:
        sealed = part.close() if part.rows else None
        written = Written(key=self.key, part=sealed, splits=self._splits, classes=self._classes)
        try:
            self._writing._seal(written)
        finally:
            # Another attempt may have been first; or an error came after the link that names this part.
            if sealed is not None and not self._writing.names(written):
                with contextlib.suppress(OSError, MmsError):  # why it is not kept says more
                    self._writing.store.remove(f"parts/{sealed.id}", first=manifest.NAME)


def begin(dataset: Dataset, columns: Sequence[Column] | None, *, work: str = "", after: int | None = None) -> Writing:
    """Begins to write into a dataset.

    Args:
        dataset: Where to.
        columns: What is written; None for the columns of the newest snapshot.
        work: A digest of what is written, on what. Where an earlier writing of the same work was begun and neither
            committed nor abandoned, it is that one: what it has sealed need not be written again.
        after: Number of the snapshot that the rows were chosen on, 0 for none.

    Raises:
        SnapshotConflict: The newest snapshot is another than `after`.
        InvalidRequest: There are none; two share an array; or the newest snapshot has others.
    """
    base = _newest(dataset)
    if after is not None and _number(base) != after:
        raise SnapshotConflict(
            f"snapshot {_number(base)} of {dataset.name!r} was committed by somebody else meanwhile; read it and do it "
            f"again"
        )
    chosen = tuple(columns if columns is not None else base.columns if base else ())
    if not chosen:
        raise InvalidRequest(f"a dataset begins with its columns; {dataset.name!r} has no snapshot yet; give columns=")
    refuse_shared_arrays(chosen)
    if base is not None and not extend(chosen, base.columns):
        raise InvalidRequest(
            f"rows are added with the columns that are there, labels may grow at their end; snapshot {base.number} of "
            f"{dataset.name!r} has {[column.name for column in base.columns]}, asked for were "
            f"{[column.name for column in chosen]}, or others of these names; leave columns= out"
        )
    made = Writing(name=dataset.name, store=dataset.store, columns=chosen, id=new_id(), after=_number(base))
    if work and (begun := next(_begun(made, work), None)) is not None:
        return begun
    dataset.store.create(f"{made._own}/{BEGUN}", orjson.dumps({"begun_at": now(), "work": work}))
    return made


def _begun(like: Writing, work: str) -> Iterator[Writing]:
    # One that shows no life for hours may be garbage before it could be committed.
    fresh = time.time() - COMMIT_WITHIN_S / 2
    for id in filter(is_id, like.store.names(WRITINGS)):
        writing = replace(like, id=id)
        with contextlib.suppress(FileNotFoundError, orjson.JSONDecodeError):
            alive = any(each.modified >= fresh for each in like.store.walk(writing._own))
            same = orjson.loads(like.store.read(f"{writing._own}/{BEGUN}"))["work"] == work
            if alive and same and not writing.is_abandoned:
                yield writing


def parts_of(store: Store, writing: str) -> set[str]:
    """Ids of the parts that are sealed in a writing.

    Raises:
        Damaged: The file of a key is not what was written.
    """
    return {written.part.id for written in _all(store, writing) if written.part is not None}


def _all(store: Store, writing: str) -> list[Written]:
    folder = f"{WRITINGS}/{writing}"
    return [_read(store, f"{folder}/{name}") for name in store.names(folder) if _KEY_FILE.fullmatch(name)]


def _is_there(store: Store, key: str) -> bool:
    try:
        store.stat(key)
    except FileNotFoundError:
        return False
    return True


def _some(keys: Sequence[str]) -> str:
    return f"{', '.join(keys[:5]) or 'none'}{', …' if len(keys) > 5 else ''}"


def _read(store: Store, key: str) -> Written:
    path = f"{store.url}/{key}"
    what, remedy = "what a writer sealed", "write everything again"
    try:
        return Written.model_validate(opened(store.read(key), "written", where=path, what=what, remedy=remedy))
    except ValidationError as error:
        raise Damaged(f"{path} is not {what}; {remedy}") from error


def _newest(dataset: Dataset) -> Snapshot | None:
    return dataset.record() if dataset.snapshots() else None


def _number(snapshot: Snapshot | None) -> int:
    return snapshot.number if snapshot else 0


def records_after(dataset: Dataset, after: int) -> Iterator[Snapshot]:
    """Descriptions of all snapshots above a number."""
    # Expired ones too, and second: one that expires in this moment is found where it went.
    for folder in ("snapshots", "expired"):
        for match in filter(None, map(SNAPSHOT_FILE.fullmatch, dataset.store.names(folder))):
            if int(match[1]) > after:
                with contextlib.suppress(FileNotFoundError):
                    yield read_snapshot(dataset.store, f"{folder}/{match[0]}")
