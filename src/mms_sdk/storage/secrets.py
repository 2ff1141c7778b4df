"""Secrets: values that jobs see as variables, each in a file that its owner alone can read. They are in no backup.

Imports little, since what looks after a job reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mms_sdk.errors import InvalidRequest, NotFound
from mms_sdk.schema.secret_names import check_secret_name

MAX_BYTES = 100_000  # as of any variable
FOLDER = "secrets"
"""Of a workspace."""


class Secrets:
    """The secrets of a workspace.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __repr__(self) -> str:
        return f"<secrets {', '.join(self.names()) or 'none yet'}>"

    def names(self) -> list[str]:
        """What they are called, sorted."""
        from mms_sdk.storage import files

        if not self._folder.is_dir():
            return []
        return sorted(path.name for path in self._folder.iterdir() if not files.is_draft(path))

    def set(self, name: str, value: bytes) -> None:
        """Keeps a value under a name, in place of an earlier one. Attempts that begin from now on see it.

        Raises:
            InvalidName: No secret is called so.
            InvalidRequest: No variable can have that value.
        """
        from mms_sdk.storage import files

        path = self._folder / check_secret_name(name)
        if not 0 < len(value) <= MAX_BYTES or b"\0" in value:
            raise InvalidRequest(
                f"a secret has 1 to {MAX_BYTES:,} bytes, and no byte 0; what was given for {name} has {len(value):,}"
            )
        files.make_folder(self._folder)
        files.replace(path, value)

    def remove(self, name: str) -> None:
        """Forgets a secret.

        Raises:
            NotFound: There is none of that name.
        """
        path = self._folder / check_secret_name(name)
        try:
            path.unlink()
        except FileNotFoundError as error:
            raise self._missing(name) from error
        for left in self._folder.glob(f".{name}.*"):  # of somebody who was killed while setting it
            left.unlink(missing_ok=True)

    def check(self, names: Sequence[str]) -> None:
        """Refuses names of which there is no secret.

        Raises:
            NotFound: There is none of that name.
        """
        known = self.names()
        for name in names:
            if name not in known:
                raise self._missing(name)

    def values(self, names: Sequence[str]) -> dict[bytes, bytes]:
        """Names and values, as the variables of a process.

        Raises:
            NotFound: There is none of that name.
        """
        found = {}
        for name in names:
            try:
                found[name.encode()] = (self._folder / check_secret_name(name)).read_bytes()
            except FileNotFoundError as error:
                raise self._missing(name) from error
        return found

    def _missing(self, name: str) -> NotFound:
        there = ", ".join(self.names()) or "none yet"
        return NotFound(f"no secret {name} in this workspace, there are {there}; set it first: mms secrets set {name}")
