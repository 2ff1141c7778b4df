"""Alembic migrations of the catalog, oldest first in `versions/`."""
