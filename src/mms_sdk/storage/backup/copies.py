"""Copies of a workspace in a store: every content once, by its digest, and for each copy a list of what it holds.

```
backup.json                   which workspace's copies these are
backups/ID.json               one copy; written last, so that what it names is there
objects/ab/abcd…              a file's bytes, by their SHA-256; lists of files too
promoted.json                 which workspace they became, if they did
```

So a copy brings only what no earlier one held, one that was cut short is gone on with, and any byte that is not as it
was written is found.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import orjson

from mms_sdk.errors import BackupNotFound, Conflict, Damaged, InvalidRequest, Unavailable
from mms_sdk.schema.backup import Backup, Promotion, Verified
from mms_sdk.schema.base import Schema
from mms_sdk.storage import files, records
from mms_sdk.storage.backup import catalog_rows
from mms_sdk.storage.backup.contents import Content, contents_of
from mms_sdk.storage.ids import new_id, now
from mms_sdk.storage.stores.base import Store
from mms_sdk.storage.stores.clock import agreed_time
from mms_sdk.storage.stores.local import LocalStore
from mms_sdk.storage.stores.remote import at_once
from mms_sdk.storage.workspace import Workspace

VERSION = 1
CATALOG = "catalog.jsonl"
GRACE_S = 48 * 3600.0
_AT_A_TIME = 256
_DIGEST_PIECE = 2**20

Tell = Callable[[str, int, int], None]
"""Called now and then with what is being done, how much of it is done, and how much there is, or 0 if unknown."""
_Item = TypeVar("_Item")
_Record = TypeVar("_Record", bound=Schema)


class Held(NamedTuple):
    """A file of a copy, or a stretch of one with holes.

    Attributes:
        path: Where it lies in a workspace.
        bytes: Its size.
        sha256: Its digest, by which the object with its bytes is found.
        at: Where in the file it begins; what lies before it, and in no other stretch, is a hole.
    """

    path: str
    bytes: int
    sha256: str
    at: int = 0


class Copies:
    """The copies of one workspace in a store.

    Args:
        store: Where they lie, and nothing else.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def __repr__(self) -> str:
        return f"<backups at {self.store.url}>"

    def records(self) -> list[Backup]:
        """All of them, oldest first.

        Raises:
            BackupNotFound: There is no such folder.
            Damaged: One cannot be read.
        """
        if isinstance(self.store, LocalStore) and not self.store.folder.is_dir():
            raise BackupNotFound(
                f"backups are where one was made; there is no folder {self.store.url}; check the name, or "
                f"make the first with: mms backup {shlex.quote(self.store.url)}"
            )
        names = [name for name in self.store.names("backups") if name.endswith(".json")]
        return [record for record in at_once(self._record, names) if record is not None]

    def get(self, backup: str | None = None) -> Backup:
        """One of them.

        Args:
            backup: Its id; the newest if left out.

        Raises:
            BackupNotFound: There is none.
        """
        found = [each for each in self.records() if backup in (None, each.id)]
        if not found:
            there = [each.id for each in self.records()] or "none yet"
            raise BackupNotFound(f"no backup {backup or ''} at {self.store.url}; there are {there}".replace("  ", " "))
        return found[-1]

    def files(self, backup: Backup) -> list[Held]:
        """What a copy holds, sorted by path.

        Raises:
            Damaged: The list is not what was written.
        """
        data = self._read_object(backup.index, what=f"the list of files of backup {backup.id}")
        held = [Held(**json.loads(line)) for line in data.splitlines()]
        outside = next((each.path for each in held if not files.is_below(each.path)), None)
        if outside is not None:
            raise Damaged(
                f"what a backup holds lies in its workspace; {outside!r} of {backup.id} would not; take a new backup"
            )
        return held

    def take(self, workspace: Workspace, *, tell: Tell = lambda *_: None) -> Backup:
        """Copies a workspace as it is now, while jobs go on.

        What the store holds already is not sent again, whichever copy brought it and whether that one was completed.

        Raises:
            Conflict: These are copies of another workspace, or became a workspace themselves.
            Unavailable: The store does not answer, or old copies were let go meanwhile.
            Damaged: Something in the workspace is not what was written; all else was copied.
        """
        self._check_ours(workspace)
        if isinstance(self.store, LocalStore) and self.store.folder.resolve().is_relative_to(workspace.root.resolve()):
            raise InvalidRequest(
                f"a backup lies elsewhere than what it is of; {self.store.url} is within {workspace.root}; name "
                f"another place"
            )
        made = new_id()
        with tempfile.TemporaryDirectory(dir=files.make_folder(workspace.root / "staging")) as name:
            sending = _Sending(self.store, Path(name))
            rows = list(catalog_rows.dump(workspace.catalog))
            held = [sending.bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows), CATALOG)]
            held.append(sending.bytes((workspace.root / "workspace.json").read_bytes(), "workspace.json"))
            for some in some_of(contents_of(workspace, rows)):
                held += [each for each in at_once(sending.content, some) if each is not None]
                tell("files copied", len(held), 0)
            kept = sorted(each for each in held if not sending.is_gone(each.path))
            # Not by orjson: a script may have given a file a name that is no UTF-8.
            index = sending.bytes("".join(f"{json.dumps(each._asdict())}\n" for each in kept).encode(), "index")
            sending.refuse_damage()
        backup = Backup(
            id=made,
            workspace=workspace.id,
            created_at=now(),
            files=len({each.path for each in kept}),
            bytes=sum(each.bytes for each in kept),
            sent_files=sending.files,
            sent_bytes=sending.sent,
            index=index.sha256,
            catalog=catalog_rows.REVISION,
        )
        self.store.create(f"backups/{made}.json", records.signed(backup, "record"))
        self._refuse_pruned(backup, kept)
        return backup

    def verify(self, backup: str | None = None, *, tell: Tell = lambda *_: None) -> Verified:
        """Reads every byte of a copy, or of all, and compares it with its digest.

        Raises:
            Damaged: The objects that are gone or not as they were written, and which files of which copies they hold.
        """
        backups = [self.get(backup)] if backup else self.records()
        holders: dict[str, tuple[int, str]] = {}
        for each in backups:
            for held in self.files(each):
                holders.setdefault(held.sha256, (held.bytes, f"{held.path} of backup {each.id}"))
        wrong: list[str] = []
        done = 0
        for some in some_of(holders):
            found = at_once(self._digest, some)
            wrong += [digest for digest, seen in zip(some, found, strict=True) if seen != digest]
            done += len(some)
            tell("objects compared", done, len(holders))
        if wrong:
            told = "; ".join(f"{_object(digest)}: {holders[digest][1]}" for digest in wrong[:10])
            raise Damaged(
                f"{len(wrong)} of {len(holders)} objects at {self.store.url} are gone or not what was written: {told}"
                f"{'; …' if len(wrong) > 10 else ''}; remove them and back up again while the workspace still has them"
            )
        return Verified(backups=len(backups), objects=len(holders), bytes=sum(size for size, _ in holders.values()))

    def prune(self, keep: int, *, grace_s: float = GRACE_S) -> int:
        """Lets old copies go, and contents that no other holds.

        Args:
            keep: How many of the newest stay.
            grace_s: Contents younger than that stay: a copy that is being made may hold them.

        Returns:
            How many copies went.

        Raises:
            Conflict: This machine's clock and the store's differ by more than a day; nothing went.
            Damaged: The list of files of one that stays is not what was written; nothing went.
        """
        if keep < 1:
            raise InvalidRequest(f"at least the newest backup stays; got keep={keep}")
        before = agreed_time(self.store) - grace_s
        backups = self.records()
        # Read before anything goes: if one that stays is damaged, an older one may be the last that is whole.
        used = {each.index for each in backups[-keep:]}
        used |= {held.sha256 for each in backups[-keep:] for held in self.files(each)}
        for gone in backups[:-keep]:
            self.store.delete(f"backups/{gone.id}.json")
        for each in self.store.walk("objects"):
            digest = each.key.rsplit("/", 1)[-1]
            if not each.key.endswith("/") and digest not in used and each.modified <= before:
                self.store.delete(f"objects/{each.key}")
        return len(backups[:-keep])

    def download(self, held: Held, to: Path, *, what: str) -> None:
        """Brings a file of a copy to this machine.

        Raises:
            Damaged: It is gone, or not what was written; nothing stays at `to`.
        """
        try:
            self.store.download(_object(held.sha256), to)
        except FileNotFoundError as error:
            raise Damaged(f"{what} is damaged: {self.store.url}/{_object(held.sha256)} is gone") from error
        if files.sha256_file(to) != held.sha256:
            to.unlink()
            raise Damaged(
                f"{what} is damaged: the bytes of {self.store.url}/{_object(held.sha256)} are not those that were "
                f"written; restore an earlier backup"
            )

    def promotion(self) -> Promotion | None:
        """Which workspace these copies became, if they did."""
        try:
            return _opened(self.store.read("promoted.json"), Promotion, f"{self.store.url}/promoted.json")
        except FileNotFoundError:
            return None

    def promote(self, promotion: Promotion) -> Promotion:
        """Writes down which workspace they became, unless that was done; returns what is written down."""
        try:
            self.store.create("promoted.json", records.signed(promotion, "record"))
        except FileExistsError:
            return self.promotion() or promotion
        return promotion

    def _refuse_pruned(self, backup: Backup, kept: Iterable[Held]) -> None:
        # Somebody who let old copies go meanwhile did not know that this one holds what they held.
        there = {each.key.rsplit("/", 1)[-1] for each in self.store.walk("objects")}
        if {backup.index, *(held.sha256 for held in kept)} - there:
            self.store.delete(f"backups/{backup.id}.json")
            raise Unavailable(f"old backups at {self.store.url} were let go while this one was made; back up again")

    def _check_ours(self, workspace: Workspace) -> None:
        told = {"format": "mms-backup", "format_version": VERSION, "workspace": workspace.id, "created_at": now()}
        try:
            self.store.create("backup.json", orjson.dumps(told, option=orjson.OPT_INDENT_2))
        except FileExistsError:
            told = orjson.loads(self.store.read("backup.json"))
        if told.get("format_version") != VERSION or told.get("workspace") != workspace.id:
            raise Conflict(
                f"a place holds the backups of one workspace; {self.store.url} holds those of {told.get('workspace')} "
                f"in format {told.get('format_version')}, this one is {workspace.id}; name another place"
            )
        if (promotion := self.promotion()) is not None:
            raise Conflict(
                f"these copies became the workspace {promotion.workspace} on {promotion.host} at "
                f"{promotion.created_at}; go on with that one, or back this one up to another place"
            )

    def _record(self, name: str) -> Backup | None:
        try:
            data = self.store.read(f"backups/{name}")
        except FileNotFoundError:  # let go in this moment
            return None
        return _opened(data, Backup, f"{self.store.url}/backups/{name}")

    def _digest(self, digest: str) -> str | None:
        try:
            return self.store.sha256(_object(digest))
        except FileNotFoundError:
            return None

    def _read_object(self, digest: str, *, what: str) -> bytes:
        try:
            data = self.store.read(_object(digest))
        except FileNotFoundError as error:
            raise Damaged(f"{what} is damaged: {self.store.url}/{_object(digest)} is gone") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise Damaged(f"{what} is damaged: {self.store.url}/{_object(digest)} is not what was written")
        return data


class _Sending:
    """Contents on their way into a store, each once."""

    def __init__(self, store: Store, scratch: Path) -> None:
        self._store = store
        self._scratch = scratch
        self._there = {each.key.rsplit("/", 1)[-1]: each.bytes for each in store.walk("objects")}
        self._gone: set[str] = set()
        self._damaged: list[str] = []
        self.files = 0
        self.sent = 0

    def bytes(self, data: bytes, path: str) -> Held:
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._there:
            self._store.replace(_object(digest), data)
            self._count(digest, len(data))
        return Held(path, len(data), digest)

    def content(self, content: Content) -> Held | None:
        if content.sha256 is not None and self._there.get(content.sha256) == content.bytes:
            return Held(content.path, content.bytes, content.sha256, content.at)
        copy = self._scratch / new_id()
        try:
            digest = _copied(content, copy)
            if content.sha256 not in (None, digest):
                self._damaged.append(f"{content.store.url}/{content.key}")
                return None
            if self._there.get(digest) != content.bytes:
                self._store.upload(_object(digest), copy)
                self._count(digest, content.bytes)
            return Held(content.path, content.bytes, digest, content.at)
        except FileNotFoundError:
            if content.group is None:
                self._damaged.append(f"{content.store.url}/{content.key}")
            else:
                self._gone.add(content.group)
            return None
        finally:
            copy.unlink(missing_ok=True)

    def is_gone(self, path: str) -> bool:
        return any(path == group or path.startswith(f"{group}/") for group in self._gone)

    def refuse_damage(self) -> None:
        if self._damaged:
            raise Damaged(
                f"what is backed up is what was written; {len(self._damaged)} files are gone or are not, e.g. "
                f"{self._damaged[0]}; all others were copied, but no backup was made of them. Restore those files "
                f"from an earlier backup, or expire the snapshots that hold them, and back up again"
            )

    def _count(self, digest: str, size: int) -> None:
        self._there[digest] = size
        self.files += 1
        self.sent += size


def _copied(content: Content, to: Path) -> str:
    # A copy first: what is sent must be what was hashed, also of a file that grows.
    if not content.store.local:  # as it is there now, not as it was when somebody read it
        content.store.download(content.key, to)
        if to.stat().st_size != content.bytes:
            raise FileNotFoundError(f"{content.store.url}/{content.key} is not as long as it was")
        return files.sha256_file(to)
    digest, left = hashlib.sha256(), content.bytes
    with content.store.open(content.key) as source, files.writing(to), to.open("xb") as out:
        source.seek(content.at)
        while left and (piece := source.read(min(left, _DIGEST_PIECE))):
            digest.update(piece)
            out.write(piece)
            left -= len(piece)
    if left:
        raise FileNotFoundError(f"{content.store.url}/{content.key} is shorter than it was")
    return digest.hexdigest()


def _object(digest: str) -> str:
    return f"objects/{digest[:2]}/{digest}"


def some_of(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    """A few at a time."""
    rest = iter(items)
    while some := list(islice(rest, _AT_A_TIME)):
        yield some


def _opened(data: bytes, kind: type[_Record], where: str) -> _Record:
    what, remedy = "a record of backups", "remove it, and take a new backup"
    return kind.model_validate(records.opened(data, "record", where=where, what=what, remedy=remedy))
