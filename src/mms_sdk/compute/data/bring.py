"""What every ingest does: tells how far it is, and commits the part it wrote or leaves nothing behind."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

from mms_sdk.errors import SnapshotConflict
from mms_sdk.schema.dataset import Snapshot
from mms_sdk.schema.job import Progress
from mms_sdk.storage import manifest
from mms_sdk.storage.changes import Addition, Replacement
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.parts import PartWriter

Tell = Callable[[Progress], None]
EXAMPLES = 5
"""Rejects of a step that its report shows; the job keeps all."""

_ATTEMPTS = 5
_TELL_EVERY_S = 0.1
_Item = TypeVar("_Item")


def told(
    items: Iterable[_Item], what: str, total: int, tell: Tell, *, size: Callable[[_Item], int] = lambda _: 1
) -> Iterator[_Item]:
    """The items, telling how many of them were taken.

    Args:
        items: Passed on.
        what: They are, for people.
        total: How many there will be.
        tell: Called at most ten times a second.
        size: How many an item stands for.
    """
    last, done = 0.0, 0
    for item in items:
        done += size(item)
        if time.monotonic() - last > _TELL_EVERY_S or done == total:
            last = time.monotonic()
            tell(Progress(done=done, total=total, what=what))
        yield item


def tried(ingest: Callable[[], _Item]) -> _Item:
    """Does an ingest again on what others committed meanwhile; gives up when that happens time after time."""
    for _ in range(_ATTEMPTS - 1):
        with contextlib.suppress(SnapshotConflict):
            return ingest()
    return ingest()


def commit_part(
    dataset: Dataset, writer: PartWriter, change: Addition | Replacement, *, base: Snapshot | None
) -> Snapshot:
    """Closes a part and commits it on top of what was looked at; if that fails, the part goes too.

    Raises:
        SnapshotConflict: Somebody committed meanwhile.
    """
    sealed = writer.close()
    try:
        return dataset.commit(replace(change, parts=(sealed,)), base=base, rebase=False)
    except BaseException:
        # An interrupt or an error may come after the link that is the commit; then the part is in use.
        if not dataset.snapshots() or sealed.id not in {part.id for part in dataset.record().parts}:
            with contextlib.suppress(OSError):  # what went wrong on the way here says more
                dataset.store.remove(f"parts/{sealed.id}", first=manifest.NAME)
        raise
