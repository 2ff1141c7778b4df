"""Artifacts: files that a job left."""

from __future__ import annotations

from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.base import Schema


class Artifact(Schema):
    """One file.

    Attributes:
        name: Its path within what the job left, with `/` between names.
        bytes: How large it is.
        at: When it was last written.
    """

    name: str
    bytes: int
    at: str


def check_artifact(name: str) -> None:
    """Refuses what is no name of an artifact.

    Raises:
        InvalidRequest: It leads elsewhere.
    """
    if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
        raise InvalidRequest(f"an artifact is named as in the list of them, e.g. figures/loss.png; got {name[:200]!r}")
