"""Opening a source: by its type."""

from __future__ import annotations

from pathlib import Path

from mms_sdk.compute.data.sources.folders import open_folder
from mms_sdk.compute.data.sources.prepared import open_prepared
from mms_sdk.compute.data.sources.rows import Table
from mms_sdk.compute.data.sources.samples import Collection
from mms_sdk.compute.data.sources.tables import open_table
from mms_sdk.compute.data.sources.united import united
from mms_sdk.schema.sources import TFDS, AudioFolder, ImageFolder, Source, Union


def open_source(source: Source | Union, *, spool: Path) -> Collection | Table:
    """Looks through a source.

    Args:
        source: Where the rows are.
        spool: A folder for what can be read only once.

    Raises:
        InvalidRequest: There is no such source.
        NothingToIngest: Nothing is in it, or nothing can be read.
    """
    if isinstance(source, Union):
        return united(
            source.named, [open_source(each, spool=_below(spool, at)) for at, each in enumerate(source.sources)]
        )
    if isinstance(source, ImageFolder | AudioFolder):
        return open_folder(source)
    if isinstance(source, TFDS):
        return open_prepared(source)
    return open_table(source, spool=spool)


def _below(spool: Path, number: int) -> Path:
    folder = spool / str(number)
    folder.mkdir(exist_ok=True)
    return folder
