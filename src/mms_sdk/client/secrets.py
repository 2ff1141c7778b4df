"""Secrets: values that jobs see as variables, known here by their names alone."""

from __future__ import annotations

from mms_sdk.client.api import Api
from mms_sdk.client.tables import Table
from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.secret_names import check_secret_name


class Secrets:
    """The secrets of a workspace. Whoever may submit jobs may use all of them."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def list(self) -> Table[str]:
        """What they are called."""
        names = self._api.get("/v1/secrets", list[str])
        return Table(names, title="secrets", rows=[{"secret": name} for name in names])

    def set(self, name: str, value: str) -> None:
        """Keeps a value under a name, in place of an earlier one; attempts that begin from now on see it.

        Args:
            name: That of the variable by which jobs see it, e.g. `HF_TOKEN`.
            value: Read it from somewhere: what is written into a notebook is no secret.

        Raises:
            InvalidName: No secret is called so.
            InvalidRequest: No variable can have that value.
        """
        try:
            content = value.encode()
        except (AttributeError, UnicodeEncodeError) as error:
            raise InvalidRequest(
                f"a secret is a text that can be written as UTF-8; what was given for {name} is a "
                f"{type(value).__name__} that is none"
            ) from error
        path, headers = f"/v1/secrets/{check_secret_name(name)}", {"content-type": "application/octet-stream"}
        self._api.send_bytes("PUT", path, content, type(None), headers=headers)

    def remove(self, name: str) -> None:
        """Forgets a secret.

        Raises:
            NotFound: There is none of that name.
        """
        self._api.delete(f"/v1/secrets/{check_secret_name(name)}")
