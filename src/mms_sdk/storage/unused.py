"""Folders that were sealed and not committed: whoever wrote them removes them, unless a snapshot names them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from mms_sdk.errors import MmsError, Unavailable
from mms_sdk.schema.dataset import Sealed, Snapshot
from mms_sdk.storage import manifest
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.writing import records_after


@contextlib.contextmanager
def removed_after_errors(dataset: Dataset, base: Snapshot | None) -> Iterator[list[Sealed]]:
    """Removes the folders that are listed within, if that ends by an error and none of them is committed.

    Not if the store could not be reached: what was asked of it last may still be done.

    Args:
        dataset: Whose folders.
        base: The snapshot that was looked at.
    """
    sealed: list[Sealed] = []
    try:
        yield sealed
    except BaseException as error:
        # An interrupt or an error may come after the link that is the commit; then the folders are in use.
        if not isinstance(error, Unavailable):
            remove_unused(dataset, sealed, records_after(dataset, base.number if base else 0))
        raise


def remove_unused(dataset: Dataset, sealed: Iterable[Sealed], where: Iterable[Snapshot]) -> None:
    """Removes folders, but those that snapshots name; if it cannot, they are garbage.

    Args:
        dataset: Whose folders.
        sealed: They.
        where: The snapshots that may name them.
    """
    with contextlib.suppress(OSError, MmsError):  # what went wrong on the way here says more
        used = {folder.id for snapshot in where for part in snapshot.parts for folder in part.folders}
        for each in sealed:
            if each.id not in used:
                dataset.store.remove(f"parts/{each.id}", first=manifest.NAME)
