"""Copies of a workspace in another store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mms_sdk.client.tables import Table
from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.backup import Backup, Verified
from mms_sdk.settings import CATALOG_VARIABLE, DATASETS_VARIABLE, default_catalog, default_datasets
from mms_sdk.storage.backup.copies import Copies
from mms_sdk.storage.backup.restoring import promote, restore
from mms_sdk.storage.stores.opening import store_at

if TYPE_CHECKING:
    from mms_sdk.client.workspace import WorkspaceClient


class Backups:
    """The copies of a workspace that `workspace.backup()` made in a place.

    Args:
        where: The place: a folder, or a URL such as `s3://bucket/folder`, see `connect(datasets=)`.

    Example:
        ```python
        workspace.backup("s3://another-place/mms")
        mms.Backups("s3://another-place/mms").restore("~/mms-again")
        ```
    """

    def __init__(self, where: str | Path) -> None:
        self._copies = Copies(store_at(where, copies=Path.home() / ".cache" / "mms"))

    def __repr__(self) -> str:
        return repr(self._copies)

    @property
    def where(self) -> str:
        """The place."""
        return self._copies.store.url

    def list(self) -> Table[Backup]:
        """All of them, oldest first.

        Raises:
            BackupNotFound: There is no such place.
        """
        records = self._copies.records()
        rows = [
            {"id": each.id, "when": each.created_at, "files": each.files, "bytes": each.bytes, "new": each.sent_bytes}
            for each in records
        ]
        return Table(records, title="backups", rows=rows)

    def verify(self, backup: str | None = None) -> Verified:
        """Reads every byte of one, or of all, and compares it with its digest.

        Args:
            backup: Its id; all of them if left out.

        Raises:
            BackupNotFound: There is none of that id.
            Damaged: The objects that are gone or not as they were written, and the files they hold.
        """
        return self._copies.verify(backup)

    def restore(
        self,
        workspace: str | Path,
        *,
        backup: str | None = None,
        datasets: str | None = None,
        catalog: str | None = None,
    ) -> WorkspaceClient:
        """Makes a workspace of one, byte for byte, and opens it. Called again after a crash, it goes on.

        Args:
            workspace: Its folder, absent or empty.
            backup: Which; the newest if left out.
            datasets: Where its datasets are to lie, see `connect`; in its folder if left out.
            catalog: The URL of an empty PostgreSQL database for its catalog; a file in its folder if left out.

        Raises:
            BackupNotFound: There is none.
            InvalidRequest: The folder holds something else; or the environment names a place, and no argument does.
            Conflict: The catalog's database holds something.
            Damaged: An object is gone or not what was written.
        """
        _refuse_other_places(datasets, catalog)
        restore(self._copies, Path(workspace), backup=backup, datasets=datasets, catalog=catalog)
        return _opened(workspace, datasets, catalog)

    def promote(
        self, workspace: str | Path, *, datasets: str | None = None, catalog: str | None = None
    ) -> WorkspaceClient:
        """Makes the newest the workspace that is gone on with: the one it was copied from is no longer backed up here.

        Args, errors: See `restore`; a `Conflict` also if they became another workspace before.
        """
        _refuse_other_places(datasets, catalog)
        promote(self._copies, Path(workspace), datasets=datasets, catalog=catalog)
        return _opened(workspace, datasets, catalog)

    def prune(self, keep: int) -> int:
        """Lets all but the newest go, and what they alone held after 48 hours; returns how many went."""
        return self._copies.prune(keep)


def _refuse_other_places(datasets: str | None, catalog: str | None) -> None:
    # Not taken for an answer: the place that it names may be the one that the copies are of.
    for given, named, variable, argument in (
        (datasets, default_datasets(), DATASETS_VARIABLE, "datasets="),
        (catalog, default_catalog(), CATALOG_VARIABLE, "catalog="),
    ):
        if given is None and named is not None:
            raise InvalidRequest(
                f"all of a restored workspace lies in its folder unless {argument} says where; ${variable} is set, by "
                f"which it could not be opened afterwards; unset it, or give {argument}"
            )


def _opened(workspace: str | Path, datasets: str | None, catalog: str | None) -> WorkspaceClient:
    from mms_sdk.client.workspace import connect

    return connect(workspace=workspace, datasets=datasets, catalog=catalog)
