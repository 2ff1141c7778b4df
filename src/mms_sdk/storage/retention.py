"""What stays and what goes: tags, expired snapshots, and folders that nothing refers to any more.

Nobody is locked out. A folder that is being written changes all the time, one that is about to be committed was sealed
a short while ago, or belongs to a writing in which something was, and a snapshot that is being read expired a short
while ago; what nobody has touched for `GRACE_S` and no snapshot names is nobody's.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass

import orjson

from mms_sdk.errors import Conflict, Damaged, InvalidName, InvalidRequest, SnapshotNotFound
from mms_sdk.schema.names import parse_snapshot
from mms_sdk.storage import manifest
from mms_sdk.storage.datasets import SNAPSHOT_FILE, Dataset, read_snapshot, snapshot_key
from mms_sdk.storage.ids import is_id, now
from mms_sdk.storage.remedies import RESTORE
from mms_sdk.storage.stores.clock import agreed_time
from mms_sdk.storage.writing import BEGUN, WRITINGS, parts_of

GRACE_S = 48 * 3600.0
"""Twice the time within which a sealed folder has to be committed, so that clocks may differ by a day."""

_TAG = re.compile(r"(.+)\.json")


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What was removed.

    Attributes:
        folders: Of parts, layers and deleted rows, that no snapshot names.
        bytes: Their size.
        snapshots: Records of snapshots that expired long ago.
        drafts: Files that writers left behind when they were killed.
        writings: Writings of many processes that were committed or abandoned long ago.
    """

    folders: int
    bytes: int
    snapshots: int
    drafts: int
    writings: int = 0


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
    try:
        body = {"snapshot": record.number, "created_at": now()}
        dataset.store.create(f"tags/{name}.json", orjson.dumps(body, option=orjson.OPT_INDENT_2))
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
    dataset.store.delete(f"tags/{name}.json")


def tags(dataset: Dataset) -> dict[str, int]:
    """Names of snapshots, and their numbers.

    Raises:
        Damaged: A tag's file cannot be read.
    """
    found = {}
    for match in filter(None, map(_TAG.fullmatch, dataset.store.names("tags"))):
        key = f"tags/{match[0]}"
        try:
            found[match[1]] = int(orjson.loads(dataset.store.read(key))["snapshot"])
        except FileNotFoundError:  # taken away in this moment
            continue
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            where = f"{dataset.store.url}/{key}"
            raise Damaged(f"{where} is not a tag; remove it, or {RESTORE}") from error
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
    for number in gone:
        key = snapshot_key(number)
        # Named as expired before it is gone: a kill between the two leaves it in both places, and is done again.
        dataset.store.replace(_expired_key(number), dataset.store.read(key))
        dataset.store.delete(key)
    return gone


def collect_garbage(dataset: Dataset, *, grace_s: float = GRACE_S) -> Collected:
    """Removes folders that no snapshot and no living writing names, and what killed writers left behind.

    Safe beside readers and writers as long as none of them takes longer than the grace between two signs of life.

    Args:
        dataset: Whose folders.
        grace_s: Seconds for which nobody may have touched something; 0 if nobody else is at work.

    Raises:
        Conflict: This machine's clock and the store's differ by more than a day; nothing was removed.
        Damaged: A snapshot cannot be read, so that it is not known what is still in use; nothing was removed.
    """
    if grace_s < 0:
        raise InvalidRequest(f"a grace is 0 seconds or more; got grace_s={grace_s}")
    before = agreed_time(dataset.store) - grace_s
    # Folders first, what names them after: what is sealed or committed in between is then seen as in use.
    candidates = [name for name in dataset.store.names("parts") if is_id(name)]
    writings = {name: _is_live(dataset, name, before) for name in dataset.store.names(WRITINGS) if is_id(name)}
    expired = _expired(dataset)
    ended = [key for key, modified in expired.items() if modified <= before]
    held = [read_snapshot(dataset.store, key) for key in expired if key not in ended]
    records = [*(dataset.record(number) for number in dataset.snapshots()), *held]
    used = {sealed.id for record in records for part in record.parts for sealed in part.folders}
    used |= {part for name, live in writings.items() if live for part in parts_of(dataset.store, name)}
    over = [name for name, live in writings.items() if not live]
    for name in over:
        with contextlib.suppress(FileNotFoundError):  # another collection is at work
            dataset.store.remove(f"{WRITINGS}/{name}", first=BEGUN)
    folders = size = 0
    for part in (f"parts/{name}" for name in candidates if name not in used):
        with contextlib.suppress(FileNotFoundError):  # its writer gave up in this moment and removes it itself
            found = dataset.store.walk(part) or [dataset.store.stat(part)]
            if max(each.modified for each in found) <= before:
                dataset.store.remove(part, first=manifest.NAME)
                folders, size = folders + 1, size + sum(each.bytes for each in found)
    for key in ended:
        dataset.store.delete(key)
    drafts = dataset.store.sweep(before)
    return Collected(folders=folders, bytes=size, snapshots=len(ended), drafts=drafts, writings=len(over))


def _expired(dataset: Dataset) -> dict[str, float]:
    # Descriptions of expired snapshots, and when they expired.
    found = dataset.store.walk("expired")
    return {f"expired/{each.key}": each.modified for each in found if SNAPSHOT_FILE.fullmatch(each.key)}


def _expired_key(number: int) -> str:
    return snapshot_key(number).replace("snapshots/", "expired/")


def _is_live(dataset: Dataset, writing: str, before: float) -> bool:
    return any(each.modified > before for each in dataset.store.walk(f"{WRITINGS}/{writing}"))
