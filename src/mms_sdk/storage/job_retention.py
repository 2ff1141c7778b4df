"""How long what jobs left is kept: their folders, and the code that no job refers to any more.

The row of a job stays for good. It is the record of what ran, how it ended and what it took; its key stands for it, so
that whoever asks again does not run it twice; and it is a small part of what the folder takes. It says since when the
files are gone.

That is written first, and the files go after it: a job with half of its files never passes for a whole one, and what a
kill leaves is removed the next time. A job and its parts, such as a study and its trials, go together or not at all.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, get_args

import sqlalchemy as sa

from mms_sdk.schema.job import ENDED, JobState
from mms_sdk.storage import files, tables
from mms_sdk.storage.ids import is_id, now
from mms_sdk.storage.workspace import Workspace

BUNDLE_GRACE_S = 24 * 3600.0
"""So long a bundle stays that no job names: its job may be about to be submitted."""
_AT_ONCE = 200  # whole jobs in a transaction, in which nobody else writes
_NOT_ENDED = tuple(state for state in get_args(JobState) if state not in ENDED)  # by these there is an index
_ID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")


@dataclass(frozen=True, kw_only=True)
class CleanedJobs:
    """What was removed, or would be.

    Attributes:
        jobs: Jobs and parts of jobs whose folders are gone.
        job_bytes: The size of these.
        bundles: Bundles of code.
        bundle_bytes: Theirs.
        in_use: Jobs that are old enough, and stay, since something refers to them.
    """

    jobs: int
    job_bytes: int
    bundles: int
    bundle_bytes: int
    in_use: int


def clean(
    workspace: Workspace,
    *,
    older_than_s: float,
    keep: int = 0,
    dry_run: bool = False,
    grace_s: float = BUNDLE_GRACE_S,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> CleanedJobs:
    """Removes the folders of jobs that ended long ago, and the bundles that only they needed.

    A job stays that a model version, or a younger job, names in what is recorded of it, e.g. as what it was trained by,
    or goes on from. Safe beside whoever submits, runs or cleans.

    Args:
        workspace: Whose jobs.
        older_than_s: Those that ended longer ago.
        keep: How many of the newest that have ended stay, however old.
        dry_run: Only look.
        grace_s: How long ago a bundle must have come, or been asked for, to be removed.
        tell: Hears how many jobs are done, and of how many.
    """
    wholes = _wholes(workspace)
    old = _old(wholes, older_than_s, keep)
    named = _named(workspace, wholes, old)
    free = [whole for whole in old if not whole.jobs & named]
    left = _left_behind(workspace, wholes)
    total = len(left) + sum(len(whole.jobs) for whole in free)
    sizes: dict[str, int] = {}
    gone = set[str]()
    for jobs in chain([left], (whole.jobs for whole in (free if dry_run else _marked(workspace, free)))):
        for job in sorted(jobs):
            folder = workspace.root / "jobs" / job
            if folder.is_dir():
                sizes[job] = _size(folder) if dry_run else _removed(folder)
        gone |= jobs
        tell(len(gone), total)
    used = _bundles_of(workspace, but=gone)
    bundles = workspace.bundles.remove_unused(used, before=time.time() - grace_s, dry_run=dry_run)
    return CleanedJobs(
        jobs=len(sizes),
        job_bytes=sum(sizes.values()),
        bundles=len(bundles),
        bundle_bytes=sum(bundles),
        in_use=sum(1 for whole in old if not whole.jobs & gone),
    )


class _Whole(NamedTuple):
    """A job with all its parts; when the last of them ended, None as long as one has not."""

    id: str
    jobs: frozenset[str]
    ended_at: str | None


def _wholes(workspace: Workspace) -> list[_Whole]:
    # Of those whose files are kept.
    columns = tables.jobs.c
    query = sa.select(columns.id, columns.parent, columns.state, columns.created_at, columns.ended_at)
    with workspace.catalog.reading() as connection:
        rows = {row.id: row for row in connection.execute(query.where(columns.cleaned_at.is_(None)))}
    parts: dict[str, list[str]] = defaultdict(list)
    for id in rows:
        first = id
        while (parent := rows[first].parent) in rows:
            first = parent
        parts[first].append(id)
    return [_Whole(first, frozenset(ids), _last_end([rows[id] for id in ids])) for first, ids in sorted(parts.items())]


def _last_end(rows: Sequence[Any]) -> str | None:
    if any(row.state not in ENDED for row in rows):
        return None
    return str(max(row.ended_at or row.created_at for row in rows))


def _old(wholes: Sequence[_Whole], older_than_s: float, keep: int) -> list[_Whole]:
    before = (datetime.now(UTC) - timedelta(seconds=older_than_s)).isoformat()
    ended = [whole for whole in wholes if whole.ended_at is not None]
    return [whole for whole in ended[: max(0, len(ended) - keep)] if (whole.ended_at or "") < before]


def _named(workspace: Workspace, wholes: Sequence[_Whole], old: Sequence[_Whole]) -> frozenset[str]:
    # By model versions, and by jobs that stay as they are young. What these name does not keep anything for its part:
    # of a training that is gone on with day after day, each day holds what it needs of the day before.
    going = {whole.id for whole in old}
    young = {job for whole in wholes if whole.id not in going for job in whole.jobs}
    columns = tables.jobs.c
    told = (sa.cast(columns.spec, sa.String).label("spec"), sa.cast(columns.result, sa.String).label("result"))
    jobs = sa.select(columns.id, *told).where(columns.cleaned_at.is_(None)).execution_options(yield_per=1000)
    cards = sa.select(sa.cast(tables.model_versions.c.card, sa.String))
    found: set[str] = set()
    with workspace.catalog.reading() as connection:
        for row in connection.execute(jobs):
            if row.id in young:
                found.update(_ID.findall(row.spec), _ID.findall(row.result))
        for card in connection.execute(cards).scalars():
            found.update(_ID.findall(card))
    return frozenset(found)


def _marked(workspace: Workspace, free: Sequence[_Whole]) -> Iterator[_Whole]:
    # Whoever has begun meanwhile and needs one of them has been written down before this looks, or finds it marked.
    this = sa.update(tables.jobs).where(tables.jobs.c.id == sa.bindparam("job"))
    for first in range(0, len(free), _AT_ONCE):
        with workspace.catalog.writing() as connection:
            in_use = _in_use(connection)
            some = [whole for whole in free[first : first + _AT_ONCE] if not whole.jobs & in_use]
            if some:
                ids = [{"job": job} for whole in some for job in whole.jobs]
                connection.execute(this.values(cleaned_at=now()), ids)
        yield from some


def _in_use(connection: sa.Connection) -> set[str]:
    # By what waits or runs at this moment.
    columns = tables.jobs.c
    query = sa.select(columns.id, columns.parent, sa.cast(columns.spec, sa.String).label("spec"))
    rows = connection.execute(query.where(columns.state.in_(_NOT_ENDED)))
    return {id for row in rows for id in (row.id, row.parent, *_ID.findall(row.spec)) if id}


def _left_behind(workspace: Workspace, wholes: Sequence[_Whole]) -> frozenset[str]:
    # By a cleaning that was killed.
    folder, columns = workspace.root / "jobs", tables.jobs.c
    there = {name for name in os.listdir(folder) if is_id(name)} if folder.is_dir() else set()
    rest = sorted(there.difference(*(whole.jobs for whole in wholes)))
    found = set[str]()
    with workspace.catalog.reading() as connection:
        for first in range(0, len(rest), _AT_ONCE):
            this = (columns.id.in_(rest[first : first + _AT_ONCE]), columns.cleaned_at.is_not(None))
            found.update(connection.execute(sa.select(columns.id).where(*this)).scalars())
    return frozenset(found)


def _removed(folder: Path) -> int:
    # Its size. Who may not remove something from a folder of their own takes that right first.
    for place, names, _ in os.walk(folder):
        for inner in (os.path.join(place, name) for name in names):
            if not os.path.islink(inner) and not os.access(inner, os.R_OK | os.W_OK | os.X_OK):
                with contextlib.suppress(OSError):
                    os.chmod(inner, files.FOLDER_MODE)
    size = _size(folder)
    files.remove_tree(folder)
    return size


def _size(folder: Path) -> int:
    # Of a link, its own and not that of what it leads to.
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                size += os.lstat(os.path.join(place, name)).st_size
    return size


def _bundles_of(workspace: Workspace, *, but: AbstractSet[str]) -> set[str]:
    columns = tables.jobs.c
    query = sa.select(columns.id, columns.spec["bundle"].as_string().label("bundle"))
    query = query.where(columns.engine.is_not(None), columns.cleaned_at.is_(None))
    with workspace.catalog.reading() as connection:
        return {row.bundle for row in connection.execute(query) if row.id not in but}
