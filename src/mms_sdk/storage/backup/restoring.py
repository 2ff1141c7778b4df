"""A workspace made of a copy."""

from __future__ import annotations

import os
import shutil
import socket
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from mms_sdk.errors import Conflict, InvalidRequest
from mms_sdk.schema.backup import Backup, Promotion
from mms_sdk.schema.job import Attempt, Ended
from mms_sdk.storage import files
from mms_sdk.storage.backup import catalog_rows
from mms_sdk.storage.backup.copies import CATALOG, Copies, Held, Tell, some_of
from mms_sdk.storage.catalog import Catalog
from mms_sdk.storage.databases import database_at
from mms_sdk.storage.ids import now
from mms_sdk.storage.stores.base import Store
from mms_sdk.storage.stores.opening import store_at
from mms_sdk.storage.stores.remote import at_once

_MARK = "restoring.json"
_DATASETS = "datasets/"


def restore(
    copies: Copies,
    root: Path,
    *,
    backup: str | None = None,
    datasets: str | None = None,
    catalog: str | None = None,
    goes_on: bool = False,
    tell: Tell = lambda *_: None,
) -> Backup:
    """Makes a workspace of a copy, byte for byte; until all of it is there, it is none.

    Restoring that was cut short is gone on with by the same call. Jobs that an engine was to run, or ran, are lost
    there, since the workspace that they are of may go on with them.

    Args:
        copies: Where the copies lie.
        root: The new workspace's folder: absent, empty, or one that the same was restored to before in part.
        backup: Which copy; the newest if left out.
        datasets: Where its datasets are to lie; a folder in it if left out.
        catalog: The URL of an empty PostgreSQL database for its catalog; a SQLite file if left out.
        goes_on: Such jobs stay as they are, and are run, or tried again, there.
        tell: See `Tell`.

    Raises:
        BackupNotFound: There is none.
        InvalidRequest: The folder holds something else.
        Conflict: The catalog's database holds something.
        Damaged: An object is gone or not what was written.
    """
    record = copies.get(backup)
    root = root.expanduser().absolute()
    _mark(root, record)
    store = store_at(datasets or root / "datasets", copies=root / "copies")
    held: dict[str, list[Held]] = {}
    for each in copies.files(record):
        held.setdefault(each.path, []).append(each)
    own = [*held.pop(CATALOG), *held.pop("workspace.json")]
    done = 0
    for some in some_of(held.values()):
        at_once(partial(_bring, copies, record, root, store), some)
        done += len(some)
        tell("files restored", done, len(held))
    _fill_catalog(copies, record, own[0], root, catalog, goes_on=goes_on)
    _describe(copies, record, own[1], root, catalog=catalog, datasets=store.url if datasets else None)
    return record


def promote(copies: Copies, root: Path, **options: Any) -> Backup:
    """Makes the newest copy the workspace that is gone on with; from then on the one it was copied from is refused.

    Args:
        copies: Where the copies lie.
        root: See `restore`.
        options: Likewise.

    Raises:
        Conflict: They became another workspace already.
        Damaged: See `restore`; an earlier copy may be whole.
    """
    record = copies.get(options.pop("backup", None))
    here = Promotion(backup=record.id, host=socket.gethostname(), workspace=str(root.absolute()), created_at=now())
    done = copies.promote(here)
    if (done.host, done.workspace) != (here.host, here.workspace):
        raise Conflict(
            f"copies become one workspace; those at {copies.store.url} became {done.workspace} on {done.host} at "
            f"{done.created_at}; go on with that one, or restore them without promoting"
        )
    return restore(copies, root, backup=done.backup, goes_on=True, **options)


def _mark(root: Path, record: Backup) -> None:
    # Says what is being restored here, so that a second try goes on and nothing else takes the folder for its own.
    files.make_folder(root)
    mark = root / _MARK
    if mark.is_file():
        begun = orjson.loads(mark.read_bytes())["backup"]
        if begun != record.id:
            raise InvalidRequest(
                f"restoring that was cut short is gone on with; {root} holds part of backup {begun}, asked for was "
                f"{record.id}; name that one, or another folder"
            )
        return
    if any(root.iterdir()):
        raise InvalidRequest(
            f"a workspace is restored to an empty or absent folder; {root} holds something; name another"
        )
    files.publish(mark, orjson.dumps({"backup": record.id}))


def _bring(copies: Copies, record: Backup, root: Path, datasets: Store, stretches: list[Held]) -> None:
    held = stretches[0]
    what = f"{held.path} in backup {record.id}"
    if held.path.startswith(_DATASETS) and not datasets.local:
        key = held.path.removeprefix(_DATASETS)
        if not _is_there(datasets, key, held):
            draft = datasets.draft(key)
            copies.download(held, draft / "file", what=what)
            datasets.upload(key, draft / "file")
            files.remove_tree(draft)
        return
    path = root / held.path
    if held.path.startswith(_DATASETS):
        path = Path(datasets.url) / held.path.removeprefix(_DATASETS)
    alone = len(stretches) == 1 and held.at == 0
    if alone and path.is_file() and path.stat().st_size == held.bytes and files.sha256_file(path) == held.sha256:
        return
    files.make_folder(path.parent)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(6).hex()}")
    try:
        if alone:
            copies.download(held, draft, what=what)
        else:
            _join(copies, stretches, draft, what=what)
        files.fsync_file(draft)
        draft.replace(path)
        files.fsync_folder(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def _join(copies: Copies, stretches: list[Held], to: Path, *, what: str) -> None:
    part = to.with_name(f"{to.name}.part")
    try:
        with open(to, "xb", opener=files.private) as whole:
            for each in stretches:
                copies.download(each, part, what=what)
                whole.seek(each.at)
                with part.open("rb") as source:
                    shutil.copyfileobj(source, whole)
                part.unlink()
    finally:
        part.unlink(missing_ok=True)


def _is_there(store: Store, key: str, held: Held) -> bool:
    try:
        return store.stat(key).bytes == held.bytes and store.sha256(key) == held.sha256
    except FileNotFoundError:
        return False


def _fill_catalog(
    copies: Copies, record: Backup, held: Held, root: Path, catalog: str | None, *, goes_on: bool
) -> None:
    spool = root / f".{CATALOG}"
    spool.unlink(missing_ok=True)
    copies.download(held, spool, what=f"the catalog in backup {record.id}")
    path = root / "catalog.sqlite"
    try:
        if catalog is None:
            for each in root.glob("catalog.sqlite*"):  # of a try that was cut short
                each.unlink()
        with spool.open("rb") as lines:
            catalog_rows.fill(catalog or path, record.workspace, lines, revision=record.catalog)
    finally:
        spool.unlink(missing_ok=True)
    if goes_on:
        return
    filled = Catalog(catalog or path)
    try:
        filled.attempts.give_up(partial(_how_it_ended, root))
    finally:
        filled.close()


def _how_it_ended(root: Path, attempt: Attempt) -> Ended:
    # What its folder says is newer than the catalog's rows, which were read first.
    told = root / "jobs" / attempt.job / "attempts" / str(attempt.number) / "ended.json"
    if told.is_file():
        return Ended.model_validate_json(told.read_bytes())
    detail = "it ran when the backup was made that this is a copy of; run it anew with job.retry()"
    return Ended(reason="lost", detail=detail, at=now())


def _describe(
    copies: Copies, record: Backup, held: Held, root: Path, *, catalog: str | None, datasets: str | None
) -> None:
    draft = root / ".workspace.json"
    draft.unlink(missing_ok=True)
    copies.download(held, draft, what=f"workspace.json in backup {record.id}")
    told = orjson.loads(draft.read_bytes())
    draft.unlink()
    told["catalog"] = database_at(catalog).name if catalog else "sqlite"
    told["datasets"] = datasets or "datasets"
    files.replace(root / "workspace.json", orjson.dumps(told, option=orjson.OPT_INDENT_2))
    (root / _MARK).unlink()
    files.fsync_folder(root)
