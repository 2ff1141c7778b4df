"""What a job left: the files that MMS writes for jobs of its kind, and those that its code kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from mms_sdk.compute.engines.folder import ARTIFACTS, LOG, attempt_folder
from mms_sdk.errors import NotFound, TooLarge
from mms_sdk.schema.artifact import Artifact, check_artifact
from mms_sdk.schema.job import Job
from mms_sdk.service.logs import kept_bytes
from mms_sdk.storage.workspace import Workspace

OWN = ("evaluation.json", "log.txt", "metrics.jsonl", "predictions.parquet", "rejects.jsonl", "returned.npz")
"""Names of the files that MMS writes; a file of such a name that code keeps beside one is not reached."""
_MOST = 10_000


def listed(workspace: Workspace, job: Job, *, attempt: int | None) -> list[Artifact]:
    """The files of a job, or of one attempt at it, by name.

    Raises:
        NotFound: There is no such attempt.
        TooLarge: They are more than a list holds.
    """
    folder = _folder(workspace, job, attempt)
    found = dict(_kept(folder / ARTIFACTS))
    found |= _own(workspace, job, folder)
    return [each for name in sorted(found) if (each := _artifact(name, found[name]))]


def path_of(workspace: Workspace, job: Job, name: str, *, attempt: int | None) -> Path:
    """Where a file of a job lies.

    Raises:
        InvalidRequest: That is no name of one.
        NotFound: The job left no such file.
    """
    check_artifact(name)
    folder = _folder(workspace, job, attempt)
    if own := _own(workspace, job, folder).get(name):
        return own
    if not _is_plain(folder / ARTIFACTS, name):
        raise NotFound(f"job {job.id} has no file {name[:200]}; it is {job.state}; list them with job.artifacts()")
    return folder / ARTIFACTS / name


def _own(workspace: Workspace, job: Job, folder: Path) -> dict[str, Path]:
    # Work that is described leaves its files with the job: an attempt goes on with what those before it had done.
    places = [folder, workspace.root / "jobs" / job.id] if job.spec.get("request") is not None else [folder]
    return {name: place / name for place in places for name in OWN if (place / name).is_file()}


def _is_plain(folder: Path, name: str) -> bool:
    # Without a link on the way, which may lead anywhere.
    path = folder / name
    places = [path, *path.parents][: name.count("/") + 2]
    try:
        return path.is_file() and not any(place.is_symlink() for place in places)
    except OSError:  # a name that is longer than a file's may be
        return False


def _folder(workspace: Workspace, job: Job, attempt: int | None) -> Path:
    folder = workspace.root / "jobs" / job.id
    numbers = [each.number for each in workspace.catalog.attempts.of(job.id)]
    if attempt is not None and attempt not in numbers:
        raise NotFound(f"job {job.id} has no attempt {attempt}; there are {numbers or 'none'}")
    return attempt_folder(folder, attempt or numbers[-1]) if numbers else folder


def _kept(folder: Path) -> Iterator[tuple[str, Path]]:
    # Plain files with names that can be said; what a link leads to is somebody else's.
    pending, count = [folder] if not folder.is_symlink() else [], 0
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except OSError:  # none is there, or no longer
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                pending.append(Path(entry.path))
            elif entry.is_file(follow_symlinks=False) and _is_text(entry.name):
                count += 1
                if count > _MOST:
                    raise TooLarge(f"a list of artifacts holds {_MOST:,}; this job has more; put them into an archive")
                path = Path(entry.path)
                yield path.relative_to(folder).as_posix(), path


def _is_text(name: str) -> bool:
    return name.isprintable() and name.encode(errors="replace").decode() == name


def _artifact(name: str, path: Path) -> Artifact | None:
    try:
        seen = path.lstat()
        size = kept_bytes(path) if name == LOG else seen.st_size
    except FileNotFoundError:  # a job that runs has removed it in this moment
        return None
    at = datetime.fromtimestamp(seen.st_mtime, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Artifact(name=name, bytes=size, at=at)
