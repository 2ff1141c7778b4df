"""What is said of copies of a workspace."""

from __future__ import annotations

from mms_sdk.schema.base import Schema


class Backup(Schema):
    """One copy of a workspace as it was at one time.

    Attributes:
        id: Sorts by the time it was begun.
        workspace: The workspace's id.
        created_at: When it was complete, ISO 8601 in UTC.
        files: How many it holds.
        bytes: Their size.
        sent_files: How many of them no earlier copy held.
        sent_bytes: Their size: what had to be sent.
        index: SHA-256 of the list of its files.
        catalog: Revision of the catalog's tables.
    """

    id: str
    workspace: str
    created_at: str
    files: int
    bytes: int
    sent_files: int
    sent_bytes: int
    index: str
    catalog: str

    def __str__(self) -> str:
        return (
            f"backup {self.id} of {self.created_at}: {self.files:,} files, {self.bytes:,} bytes, of which "
            f"{self.sent_files:,} files, {self.sent_bytes:,} bytes were new"
        )

    __repr__ = __str__


class Verified(Schema):
    """What was found when copies were compared with their digests.

    Attributes:
        backups: How many.
        objects: Different contents that they hold.
        bytes: Their size, all of it read.
    """

    backups: int
    objects: int
    bytes: int

    def __str__(self) -> str:
        many = "" if self.backups == 1 else "s"
        read = f"{self.objects:,} objects, {self.bytes:,} bytes"
        return f"{self.backups:,} backup{many}: {read}, all as they were written"

    __repr__ = __str__


class Promotion(Schema):
    """Which workspace a copy became, in place of the one it was a copy of.

    Attributes:
        backup: Which copy.
        host: The machine.
        workspace: The folder on it.
        created_at: When.
    """

    backup: str
    host: str
    workspace: str
    created_at: str
