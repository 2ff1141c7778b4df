"""Quotas of projects, as the catalog keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from mms_sdk.errors import NotFound
from mms_sdk.schema.quota import Quota
from mms_sdk.storage import tables

if TYPE_CHECKING:
    from mms_sdk.storage.catalog import Catalog


class Quotas:
    """The quotas of a catalog. A project without one may take what there is."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def list(self) -> list[Quota]:
        """All of them, by project."""
        query = sa.select(tables.quotas).order_by(tables.quotas.c.project)
        with self._catalog.reading() as connection:
            return [Quota.model_validate(dict(row)) for row in connection.execute(query).mappings()]

    def of(self, project: str) -> Quota | None:
        """That of a project; None if it has none."""
        return next((each for each in self.list() if each.project == project), None)

    def set(self, quota: Quota) -> None:
        """Gives a project a quota, in place of an earlier one. What runs goes on."""
        with self._catalog.writing() as connection:
            connection.execute(sa.delete(tables.quotas).where(tables.quotas.c.project == quota.project))
            connection.execute(sa.insert(tables.quotas).values(quota.model_dump()))

    def remove(self, project: str) -> None:
        """Takes the quota of a project away.

        Raises:
            NotFound: It has none.
        """
        with self._catalog.writing() as connection:
            query = sa.delete(tables.quotas).where(tables.quotas.c.project == project)
            if not connection.execute(query).rowcount:
                raise NotFound(f"project {project} has no quota")
