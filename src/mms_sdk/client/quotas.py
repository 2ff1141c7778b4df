"""Quotas: how much the jobs of a project may take at once."""

from __future__ import annotations

from typing import Any

from mms_sdk.client.api import Api
from mms_sdk.client.tables import Table
from mms_sdk.schema.job import Resources
from mms_sdk.schema.quota import Quota
from mms_sdk.told import size


class Quotas:
    """The quotas of a workspace. A project without one may take what there is."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def list(self) -> Table[Quota]:
        """All of them, by project."""
        found = self._api.get("/v1/quotas", list[Quota])
        return Table(found, title="quotas", rows=map(_row, found))

    def set(
        self, project: str, *, cpus: int | None = None, gpus: int | None = None, memory: int | str | None = None
    ) -> None:
        """Gives a project a quota, in place of an earlier one; what runs goes on.

        Args:
            project: Whose.
            cpus: Most cores that its running jobs have together; None for any.
            gpus: Likewise GPUs.
            memory: Likewise memory that they ask for, e.g. `64GB`, or bytes.

        Raises:
            InvalidRequest: No project is called so, or no quota is so large.
        """
        least: Any = memory
        asked = {"project": project, "cpus": cpus, "gpus": gpus, "memory": Resources(memory=least).memory}
        self._api.send("PUT", f"/v1/quotas/{project}", Quota, asked)

    def remove(self, project: str) -> None:
        """Takes the quota of a project away.

        Raises:
            NotFound: It has none.
        """
        self._api.delete(f"/v1/quotas/{project}")


def _row(quota: Quota) -> dict[str, Any]:
    memory = None if quota.memory is None else size(quota.memory)
    bounds = {"cpus": quota.cpus, "gpus": quota.gpus, "memory": memory}
    return {"project": quota.project} | {name: "any" if most is None else most for name, most in bounds.items()}
