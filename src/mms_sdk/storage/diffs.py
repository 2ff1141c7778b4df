"""What was changed in a job's code since the commit it names, in the job's folder."""

from __future__ import annotations

import contextlib
from pathlib import Path

from mms_sdk.errors import NotWritable, StorageFull
from mms_sdk.storage import files

_NAME = "changes.diff"


def keep_diff(folder: Path, diff: str) -> None:
    """Keeps a diff, if there is one and none is kept yet; on a full disk the job goes without."""
    if diff:
        with contextlib.suppress(FileExistsError, StorageFull, NotWritable):
            files.publish(files.make_folder(folder) / _NAME, diff.encode(errors="replace"))


def diff_in(folder: Path) -> str:
    """The diff that is kept; empty if there is none."""
    try:
        return (folder / _NAME).read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return ""
