"""The catalog: a page of jobs out of 100,000, in SQLite and, where its programs are installed, in PostgreSQL."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from statistics import median

import sqlalchemy as sa
from tests.postgres_server import MISSING, postgres_server, programs

from benchmarks.table import Row, in_turns
from mms_sdk.storage import tables
from mms_sdk.storage.catalog import Catalog
from mms_sdk.storage.ids import new_id

JOBS, LIMIT_S = 100_000, 0.1
PAGES = (50, 500)  # what a client asks for when it says nothing, and the most it may


def rows(folder: Path, *, quick: bool) -> list[Row]:
    """The rows of this topic."""
    jobs = JOBS // 100 if quick else JOBS
    with ExitStack() as stack:
        places: dict[str, Path | str] = {"SQLite": folder / "catalog.sqlite"}
        if found := programs():
            places["PostgreSQL"] = stack.enter_context(postgres_server(found)).make_database()
        else:
            print(f"PostgreSQL is left out; it {MISSING}")
        catalogs = {kind: stack.enter_context(closing(Catalog(place))) for kind, place in places.items()}
        runs = {
            f"{kind}: {page} of {jobs:,} jobs, from the middle of the list": partial(_timed_page, catalog, page, middle)
            for kind, catalog in catalogs.items()
            for middle in [_fill(catalog, jobs)]
            for page in PAGES
        }
        seen = in_turns(runs, 3 if quick else 100)
    return [
        Row(
            what=what,
            mms=f"{1000 * median(seconds):.1f} ms",
            beside=f"{1000 * LIMIT_S:.0f} ms",
            ratio=median(seconds) / LIMIT_S,
            target="<= 1.0",
        )
        for what, seconds in seen.items()
    ]


def _fill(catalog: Catalog, jobs: int) -> str:
    """So many jobs that differ in their ids; returns that in the middle."""
    first = catalog.jobs.start("ingest", "flowers", {"source": "photos/", "clean": ["unreadable", "duplicates"]})
    ids = [new_id() for _ in range(jobs - 1)]
    with catalog.writing() as connection:
        connection.execute(
            sa.insert(tables.jobs), [first.model_dump(mode="json") | {"id": each, "state": "succeeded"} for each in ids]
        )
    return ids[jobs // 2]


def _timed_page(catalog: Catalog, page: int, before: str) -> float:
    began = time.perf_counter()
    assert len(catalog.jobs.list(limit=page, before=before)) == page
    return time.perf_counter() - began
