"""Uploads: files that are sent from elsewhere, to be brought into a dataset."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mms_sdk.schema.base import Asked, Schema


class UploadRequest(Asked):
    """Files that are to be sent.

    Attributes:
        name: What the file, or the folder of them, is called; the first name of each path.
    """

    name: Annotated[str, Field(min_length=1, max_length=255)]


class UploadedFile(Schema):
    """A file of an upload.

    Attributes:
        path: Within the upload, with `/` between names.
        bytes: How many of it are there; the next piece begins there.
        complete: Whether that is all of it.
    """

    path: str
    bytes: int
    complete: bool


class Upload(Schema):
    """Files that are sent from elsewhere.

    Attributes:
        id: Sorts by time of creation.
        name: What the file, or the folder of them, is called.
        complete: Whether nothing will be added; only then something is made of it.
        files: How many are there whole.
        bytes: Of these.
        created_at: When it was begun.
        expires_at: When it is removed, unless something is added before.
    """

    id: str
    name: str
    complete: bool
    files: int
    bytes: int
    created_at: str
    expires_at: str

    @property
    def path(self) -> str:
        """By which a source names it, e.g. `upload:01J9…/photos`."""
        return f"{PREFIX}{self.id}/{self.name}"


PREFIX = "upload:"
"""With what the path of a source begins that is an upload."""
