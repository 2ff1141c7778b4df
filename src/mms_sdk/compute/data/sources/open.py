"""Opening a source: by its type."""

from __future__ import annotations

from pathlib import Path

from mms_sdk.compute.data.bring import Tell
from mms_sdk.compute.data.sources.addresses import open_addresses
from mms_sdk.compute.data.sources.arrays import open_arrays
from mms_sdk.compute.data.sources.files import open_files
from mms_sdk.compute.data.sources.folders import open_folder
from mms_sdk.compute.data.sources.hugging_face import open_hugging_face
from mms_sdk.compute.data.sources.meant import folder_meant
from mms_sdk.compute.data.sources.prepared import open_prepared
from mms_sdk.compute.data.sources.rows import Table
from mms_sdk.compute.data.sources.samples import Collection
from mms_sdk.compute.data.sources.tables import open_table
from mms_sdk.compute.data.sources.united import united
from mms_sdk.compute.data.sources.webdataset import open_webdataset
from mms_sdk.errors import NothingToIngest
from mms_sdk.schema.sources import (
    HTTP,
    TFDS,
    AudioFolder,
    Files,
    HuggingFace,
    Icechunk,
    ImageFolder,
    Source,
    Union,
    VideoFolder,
    WebDataset,
    Zarr,
)


def open_source(source: Source | Union, *, spool: Path, tell: Tell) -> Collection | Table:
    """Looks through a source.

    Args:
        source: Where the rows are.
        spool: A folder for what can be read only once.
        tell: Called with the progress, where it takes long.

    Raises:
        InvalidRequest: There is no such source.
        NothingToIngest: Nothing is in it, or nothing can be read.
    """
    if isinstance(source, Union):
        opened = [open_source(each, spool=_below(spool, at), tell=tell) for at, each in enumerate(source.sources)]
        return united(source.named, opened)
    if isinstance(source, ImageFolder | AudioFolder | VideoFolder):
        return _folder(source)
    if isinstance(source, Files):
        return open_files(source)
    if isinstance(source, WebDataset):
        return open_webdataset(source)
    if isinstance(source, TFDS):
        return open_prepared(source)
    if isinstance(source, HTTP):
        return open_addresses(source, spool=spool, tell=tell)
    if isinstance(source, Zarr | Icechunk):
        return open_arrays(source)
    if isinstance(source, HuggingFace):
        return open_hugging_face(source)
    return open_table(source, spool=spool)


def _folder(source: ImageFolder | AudioFolder | VideoFolder) -> Collection:
    try:
        return open_folder(source)
    except NothingToIngest as error:
        raise NothingToIngest(f"{error.message}{folder_meant(source)}") from error


def _below(spool: Path, number: int) -> Path:
    folder = spool / str(number)
    folder.mkdir(exist_ok=True)
    return folder
