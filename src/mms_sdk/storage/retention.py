"""What stays and what goes: tags, expired snapshots, and folders that nothing refers to any more.

Nobody is locked out. A folder that is being written changes all the time, one that is about to be committed was sealed
a short while ago, and a snapshot that is being read expired a short while ago; what nobody has touched for `GRACE_S`
and no snapshot names is nobody's.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from mms_sdk.errors import Conflict, Damaged, InvalidName, InvalidRequest, SnapshotNotFound
from mms_sdk.schema.names import parse_snapshot
from mms_sdk.storage import files
from mms_sdk.storage.datasets import Dataset, read_snapshot
from mms_sdk.storage.ids import is_id, now

GRACE_S = 48 * 3600.0
"""Twice the time within which a sealed folder has to be committed, so that clocks may differ by a day."""

_EXPIRED = re.compile(r"\d{8}\.json")
_TAG = re.compile(r"(.+)\.json")


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What was removed.

    Attributes:
        folders: Of parts, layers and deleted rows, that no snapshot names.
        bytes: Their size.
        snapshots: Records of snapshots that expired long ago.
        drafts: Files that writers left behind when they were killed.
    """

    folders: int
    bytes: int
    snapshots: int
    drafts: int


def tag(dataset: Dataset, name: str, number: int | None = None) -> int:
    """Gives a snapshot a name that stays with it; a tagged snapshot does not expire.

    Args:
        dataset: Whose snapshot.
        name: e.g. `paper-2025`.
        number: Which one; None is the newest.

    Returns:
        The snapshot's number.

    Raises:
        InvalidName: The name is none, or begins like a number.
        Conflict: The name is taken.
        SnapshotNotFound: There is no such snapshot.
    """
    if isinstance(parse_snapshot(name), int):
        raise InvalidName(f"a tag is not a number, which names a snapshot already; got {name!r}; add a letter")
    record = dataset.record(number)
    files.make_folder(_tags(dataset))
    try:
        body = {"snapshot": record.number, "created_at": now()}
        files.publish(_tags(dataset) / f"{name}.json", orjson.dumps(body, option=orjson.OPT_INDENT_2))
    except FileExistsError as error:
        raise Conflict(
            f"a tag stays where it is; {name!r} names snapshot {tags(dataset)[name]} of {dataset.name!r}; remove it "
            f"first, or take another name"
        ) from error
    if record.number not in dataset.snapshots():  # it expired in this moment, before anybody saw the tag
        untag(dataset, name)
        raise SnapshotNotFound(f"snapshot {record.number} of {dataset.name!r} expired; tag one that is there")
    return record.number


def untag(dataset: Dataset, name: str) -> None:
    """Takes a name away.

    Raises:
        SnapshotNotFound: There is no such tag.
    """
    resolve_tag(dataset, name)
    path = _tags(dataset) / f"{name}.json"
    with files.writing(path):
        path.unlink(missing_ok=True)
        files.fsync_folder(path.parent)


def tags(dataset: Dataset) -> dict[str, int]:
    """Names of snapshots, and their numbers.

    Raises:
        Damaged: A tag's file cannot be read.
    """
    folder = _tags(dataset)
    found = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = _TAG.fullmatch(path.name)
        if match is None or path.name.startswith("."):
            continue
        try:
            found[match[1]] = int(orjson.loads(path.read_bytes())["snapshot"])
        except FileNotFoundError:  # taken away in this moment
            continue
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise Damaged(f"{path} is not a tag; restore it from a backup, or remove it") from error
    return found


def resolve_tag(dataset: Dataset, name: str) -> int:
    """The number of the snapshot that a tag names.

    Raises:
        SnapshotNotFound: There is no such tag.
    """
    known = tags(dataset)
    if name not in known:
        raise SnapshotNotFound(f"dataset {dataset.name!r} has no tag {name!r}; it has {sorted(known) or 'none'}")
    return known[name]


def resolve(dataset: Dataset, snapshot: int | str | None) -> int:
    """The number of a snapshot that was named by number, by tag, or as the newest, by None.

    Raises:
        SnapshotNotFound: There is no such snapshot.
    """
    if isinstance(snapshot, str):
        return resolve_tag(dataset, snapshot)
    return dataset.record(snapshot).number


def expire(dataset: Dataset, *, keep: int = 1) -> list[int]:
    """Lets old snapshots go; their numbers are never used again, and newer ones stay as they are.

    What they alone refer to is removed by `collect_garbage`, after a grace in which whoever reads them reads on.

    Args:
        dataset: Whose snapshots.
        keep: How many of the newest stay; tagged ones stay besides.

    Returns:
        Numbers of those that expired.
    """
    if keep < 1:
        raise InvalidRequest(f"at least the newest snapshot stays; got keep={keep}")
    tagged = set(tags(dataset).values())
    gone = [number for number in dataset.snapshots()[:-keep] if number not in tagged]
    folder = files.make_folder(_expired(dataset))
    for number in gone:
        path = dataset.folder / "snapshots" / f"{number:08d}.json"
        with files.writing(path):
            # Named as expired before it is gone: a kill between the two leaves it in both places, and is done again.
            files.replace(folder / path.name, path.read_bytes())
            path.unlink()
            files.fsync_folder(path.parent)
    return gone


def collect_garbage(dataset: Dataset, *, grace_s: float = GRACE_S) -> Collected:
    """Removes folders that no snapshot names, and what killed writers left behind.

    Safe beside readers and writers as long as none of them takes longer than the grace between two signs of life.

    Args:
        dataset: Whose folders.
        grace_s: Seconds for which nobody may have touched something; 0 if nobody else is at work.

    Raises:
        Damaged: A snapshot cannot be read, so that it is not known what is still in use; nothing was removed.
    """
    if grace_s < 0:
        raise InvalidRequest(f"a grace is 0 seconds or more; got grace_s={grace_s}")
    before = time.time() - grace_s
    # Folders first, snapshots after: what is committed in between is then seen as in use.
    candidates = list(_folders(dataset))
    ended = [path for path in _expired_files(dataset) if path.stat().st_mtime <= before]
    held = [read_snapshot(path) for path in _expired_files(dataset) if path not in ended]
    records = [*(dataset.record(number) for number in dataset.snapshots()), *held]
    used = {sealed.id for record in records for part in record.parts for sealed in part.folders}
    folders = size = 0
    for folder in candidates:
        with contextlib.suppress(FileNotFoundError):  # its writer gave up in this moment and removes it itself
            if folder.name not in used and _touched(folder) <= before:
                weight = files.tree_bytes(folder)
                _remove(folder)
                folders, size = folders + 1, size + weight
    drafts = [path for path in _drafts(dataset) if path.stat().st_mtime <= before]
    for path in (*ended, *drafts):
        path.unlink(missing_ok=True)
    return Collected(folders=folders, bytes=size, snapshots=len(ended), drafts=len(drafts))


def _remove(folder: Path) -> None:
    # Under another name first, so that a kill half-way leaves nothing that looks like a part.
    doomed = folder.with_name(f".{folder.name}.gone")
    folder.rename(doomed)
    files.fsync_folder(folder.parent)
    files.remove_tree(doomed)


def _folders(dataset: Dataset) -> Iterator[Path]:
    for path in (dataset.folder / "parts").iterdir():
        if path.is_dir() and is_id(path.name):
            yield path
        elif path.name.endswith(".gone"):  # a collection before this one was killed
            files.remove_tree(path)


def _touched(folder: Path) -> float:
    # When anything in it changed last.
    return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))


def _drafts(dataset: Dataset) -> list[Path]:
    folders = [dataset.folder, dataset.folder / "snapshots", _tags(dataset), _expired(dataset)]
    return [path for folder in folders if folder.is_dir() for path in folder.iterdir() if files.is_draft(path)]


def _expired_files(dataset: Dataset) -> list[Path]:
    folder = _expired(dataset)
    return sorted(path for path in folder.iterdir() if _EXPIRED.fullmatch(path.name)) if folder.is_dir() else []


def _tags(dataset: Dataset) -> Path:
    return dataset.folder / "tags"


def _expired(dataset: Dataset) -> Path:
    return dataset.folder / "expired"
