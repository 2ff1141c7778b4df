"""How a snapshot lies in files, and what compacting would make of it. One small file a part is read."""

from __future__ import annotations

from collections import Counter

from mms_sdk.schema.dataset import Compact, Layout
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.edits import groups
from mms_sdk.storage.ids import is_id
from mms_sdk.storage.snapshots import OpenSnapshot


def layout(dataset: Dataset, of: OpenSnapshot) -> Layout:
    """Bytes by column, parts, and what is in them that the snapshot does not need.

    Args:
        dataset: Whose folders are counted.
        of: The snapshot.
    """
    parts = of.record.parts
    together = list(groups(parts, Compact().max_part_rows))
    rewritten = {part.id for group in together for part in group}
    column_of = {array: column.name for column in of.record.columns for array in column.arrays}
    columns: Counter[str] = Counter({column.name: 0 for column in of.record.columns})
    total = freed = 0
    for part, sizes in of.sizes():
        size = sum(sizes.values())
        total += size
        gone = 0
        for array, count in sizes.items():
            if array in column_of:
                columns[column_of[array]] += count
            elif array:
                gone += count
        if part.id in rewritten:
            described = sizes.get("", 0)
            freed += gone + (size - gone - described) * (part.rows - part.live) // max(1, part.rows)
    named = {sealed.id for part in parts for sealed in part.folders}
    return Layout(
        bytes=total,
        columns=dict(columns),
        parts=len(parts),
        parts_compacted=len(parts) - sum(len(group) - 1 for group in together),
        small_parts=sum(len(group) for group in together if len(group) > 1),
        layers=sum(len(part.layers) for part in parts),
        deleted=sum(part.rows - part.live for part in parts),
        freed_bytes=freed,
        other_folders=sum(is_id(name) and name not in named for name in dataset.store.names("parts")),
    )
