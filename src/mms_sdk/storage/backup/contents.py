"""What a workspace consists of, file by file, while jobs go on.

What is sealed never changes, and its digests are known. A file that still grows is taken as long as it is now.
"""

from __future__ import annotations

import contextlib
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mms_sdk.errors import Damaged
from mms_sdk.storage import manifest, metric_index
from mms_sdk.storage.backup import catalog_rows
from mms_sdk.storage.checkpoints import STEP
from mms_sdk.storage.datasets import Dataset, snapshot_key
from mms_sdk.storage.holes import Stretch, stretches
from mms_sdk.storage.stores.base import Store
from mms_sdk.storage.stores.local import LocalStore
from mms_sdk.storage.workspace import Workspace

_LOG = "metrics.jsonl"
_ELSEWHERE = ("checkpoints/", f"{metric_index.FOLDER}/")  # sealed ones, above; and what is made of the log
# Who looks after an attempt: a process of this machine, which a copy must not take for its own.
_OF_THIS_MACHINE = re.compile(r"attempts/\d+/supervisor\.json")
# What jobs print, of which the middle may have been given up.
_MAY_HAVE_HOLES = re.compile(r"attempts/\d+/log(\.\d+)?\.txt")
_MOST_STRETCHES = 16  # a job could make many of them itself


@dataclass(frozen=True, kw_only=True)
class Content:
    """One file.

    Attributes:
        path: Where it lies in a workspace.
        store: Where it lies now.
        key: Its name there.
        bytes: Its size; of one that may grow, how much of it is taken; of one with holes, of a stretch of it.
        at: Where in the file that begins.
        sha256: Digest it must have; None where nobody recorded it.
        group: A folder that may go meanwhile, with everything in it; None where that would be damage.
    """

    path: str
    store: Store
    key: str
    bytes: int
    at: int = 0
    sha256: str | None = None
    group: str | None = None


def contents_of(workspace: Workspace, rows: list[dict[str, Any]]) -> Iterator[Content]:
    """The files of artefacts and jobs that rows of the catalog name, their code, and of all datasets.

    Raises:
        Damaged: A manifest or snapshot is not what was written.
    """
    root = LocalStore(workspace.root)
    for row in (each["row"] for each in rows if each["table"] == "model_versions"):
        what = f"the artefact of {row['model']}@{row['version']}"
        yield from _sealed(
            root.below(f"artifacts/{row['artifact']}"), f"artifacts/{row['artifact']}", what, row["digest"]
        )
    for row in (each["row"] for each in rows if each["table"] == "jobs"):
        yield from _of_job(root.below(f"jobs/{row['id']}"), f"jobs/{row['id']}")
    jobs = (each["row"] for each in rows if each["table"] == "jobs")
    run = (row["spec"] for row in jobs if row["engine"] is not None and row["cleaned_at"] is None)
    for digest in sorted({spec["bundle"] for spec in run if spec["bundle"] is not None}):
        key = f"bundles/{digest}.zip"
        size = _size(root.folder / key)
        yield Content(path=key, store=root, key=key, bytes=size, sha256=digest)
    for name in workspace.dataset_names():
        yield from _of_dataset(workspace.dataset(name), f"datasets/{name}")


def verify(workspace: Workspace, *, tell: Callable[[str, int, int], None] = lambda *_: None) -> tuple[int, int]:
    """Reads every byte of a workspace that has a digest, and compares.

    Returns:
        Files and bytes read.

    Raises:
        Damaged: Files that are gone or not what was written.
    """
    files = size = 0
    wrong: list[str] = []
    rows = list(catalog_rows.dump(workspace.catalog))
    for content in (each for each in contents_of(workspace, rows) if each.sha256):
        try:
            right = content.store.sha256(content.key) == content.sha256
        except FileNotFoundError:
            right = content.group is not None
        if not right:
            wrong.append(f"{content.store.url}/{content.key}")
        files, size = files + 1, size + content.bytes
        tell("files compared", files, 0)
    if wrong:
        raise Damaged(
            f"{len(wrong)} of {files} files are gone or not what was written: {'; '.join(wrong[:10])}; restore them"
        )
    return files, size


def _of_dataset(dataset: Dataset, path: str) -> Iterator[Content]:
    store = dataset.store
    done: set[str] = set()
    for number in dataset.snapshots():
        for sealed in (each for part in dataset.record(number).parts for each in part.folders):
            if sealed.id not in done:
                done.add(sealed.id)
                what = f"part {sealed.id} of dataset {dataset.name!r}"
                part = f"parts/{sealed.id}"
                yield from _sealed(store.below(part), f"{path}/{part}", what, sealed.manifest)
        yield _plain(store, snapshot_key(number), path)
    for each in store.walk("tags"):
        yield _plain(store, f"tags/{each.key}", path)
    yield _plain(store, "dataset.json", path)


def _of_job(store: LocalStore, path: str) -> Iterator[Content]:
    for name in filter(STEP.fullmatch, store.names("checkpoints")):
        folder = store.below(f"checkpoints/{name}")
        where = f"{path}/checkpoints/{name}"
        try:
            yield from _sealed(folder, where, f"checkpoint {name} of {path}", None, group=where)
        except (Damaged, FileNotFoundError):
            if folder.folder.exists():
                raise
            # It made room for a newer one in this moment.
    for each in store.walk(""):
        if not each.key.startswith(_ELSEWHERE) and _is_plain(store.folder / each.key, each.key):
            where = f"{path}/{each.key}"
            for begin, end in _taken(store.folder / each.key, each.key, each.bytes):
                yield Content(path=where, store=store, key=each.key, bytes=end - begin, at=begin, group=where)


def _sealed(store: Store, path: str, what: str, expected: str | None, *, group: str | None = None) -> Iterator[Content]:
    entries, digest = manifest.entries_of(store, what=what, expected=expected)
    for entry in entries:
        yield Content(
            path=f"{path}/{entry['path']}",
            store=store,
            key=entry["path"],
            bytes=entry["bytes"],
            sha256=entry["sha256"],
            group=group,
        )
    size = store.stat(manifest.NAME).bytes
    yield Content(
        path=f"{path}/{manifest.NAME}", store=store, key=manifest.NAME, bytes=size, sha256=digest, group=group
    )


def _plain(store: Store, key: str, path: str) -> Content:
    return Content(path=f"{path}/{key}", store=store, key=key, bytes=store.stat(key).bytes)


def _taken(path: Path, key: str, size: int) -> list[Stretch]:
    if key == _LOG:
        return [Stretch(0, _whole_lines(path))]
    if _MAY_HAVE_HOLES.fullmatch(key):
        with contextlib.suppress(FileNotFoundError):
            kept = stretches(path)
            if 1 < len(kept) <= _MOST_STRETCHES and kept[-1].end >= size:
                return kept
    return [Stretch(0, size)]


def _is_plain(path: Path, key: str) -> bool:
    # What a script makes where it runs may be anything: links, pipes, sockets. Of these there is no copy.
    try:
        return stat.S_ISREG(path.lstat().st_mode) and _OF_THIS_MACHINE.fullmatch(key) is None
    except FileNotFoundError:
        return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # which is damage, and told where its bytes are wanted
        return 0


def _whole_lines(path: Path) -> int:
    # A log is written line by line; half of one may be there after a full disk.
    try:
        return path.read_bytes().rfind(b"\n") + 1
    except FileNotFoundError:
        return 0
