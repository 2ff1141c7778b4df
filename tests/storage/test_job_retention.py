"""What old jobs left goes, what somebody refers to stays, and whoever is killed on the way leaves nothing half-made."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from mms_sdk.errors import Conflict, NotFound
from mms_sdk.schema.job import Job, JobKind, JobRequest, JobSpec, JobState
from mms_sdk.storage import bundles, job_retention, tables
from mms_sdk.storage.catalog import Catalog
from mms_sdk.storage.ids import new_id, now
from mms_sdk.storage.job_retention import CleanedJobs, clean
from mms_sdk.storage.workspace import Workspace

DAY = 86400.0


@pytest.fixture
def workspace(tmp_path: Path, catalog_at: Path | str) -> Iterator[Workspace]:
    workspace = Workspace(tmp_path / "workspace", catalog=catalog_at if isinstance(catalog_at, str) else None)
    yield workspace
    workspace.close()


def at(days: float) -> str:
    return (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def job(
    workspace: Workspace,
    *,
    days: float = 40,
    state: JobState = "succeeded",
    kind: JobKind = "train",
    parent: str | None = None,
    engine: str | None = None,
    result: dict[str, Any] | None = None,
    **spec: Any,
) -> str:
    """A job that ended so many days ago, with 1,000 bytes in its folder."""
    ended = at(days) if state not in ("queued", "starting", "running") else None
    made = Job(
        id=new_id(),
        kind=kind,
        name="x",
        state=state,
        created_at=at(days + 1),
        ended_at=ended,
        spec=spec,
        result=result or {},
        parent=parent,
        engine=engine,
        owner="1:1@a.b",
    )
    with workspace.catalog.writing() as connection:
        connection.execute(sa.insert(tables.jobs).values(made.model_dump(mode="json")))
    folder = workspace.job_folder(made.id)
    (folder / "checkpoints" / "1").mkdir(parents=True)
    (folder / "metrics.jsonl").write_bytes(b"x" * 600)
    (folder / "checkpoints" / "1" / "arrays").write_bytes(b"y" * 400)
    return made.id


def bundle(workspace: Workspace, content: bytes, *, days: float) -> str:
    """One that came so many days ago."""
    digest = workspace.bundles.keep(bundles.pack({"a.py": content}))
    os.utime(workspace.root / "bundles" / f"{digest}.zip", (time.time() - days * DAY,) * 2)
    return digest


def there(workspace: Workspace) -> set[str]:
    return {path.name for path in (workspace.root / "jobs").iterdir()}


def cleaned(workspace: Workspace, **asked: Any) -> CleanedJobs:
    return clean(workspace, older_than_s=30 * DAY, **asked)


def named_by_a_version(workspace: Workspace, trained_by: str) -> None:
    row = {"model": "m", "version": 1, "created_at": now(), "artifact": new_id(), "digest": "0" * 64, "bytes": 1}
    with workspace.catalog.writing() as connection:
        connection.execute(sa.insert(tables.model_versions).values(**row, card={"lineage": {"job": trained_by}}))


def test_what_ended_long_ago_goes_and_its_row_says_since_when(workspace: Workspace) -> None:
    old, young, runs = job(workspace), job(workspace, days=3), job(workspace, state="running")

    told = cleaned(workspace)

    assert (told.jobs, told.job_bytes, told.in_use) == (1, 1000, 0)
    assert there(workspace) == {young, runs}
    jobs = workspace.catalog.jobs
    assert jobs.get(old).cleaned_at is not None
    assert jobs.kept(young).cleaned_at is None
    with pytest.raises(NotFound, match=f"that of job {old} was removed at 20"):
        jobs.kept(old)
    assert cleaned(workspace) == CleanedJobs(jobs=0, job_bytes=0, bundles=0, bundle_bytes=0, in_use=0)


def test_a_key_stands_for_its_job_though_nothing_else_is_left_of_it(workspace: Workspace) -> None:
    spec = JobSpec(bundle=bundle(workspace, b"1", days=40), entrypoint="a.py")
    asked = JobRequest(kind="script", name="x", spec=spec, key="nightly")
    first = workspace.catalog.attempts.submit(asked)
    with workspace.catalog.writing() as connection:
        connection.execute(sa.update(tables.jobs).values(state="succeeded", ended_at=at(40)))

    assert cleaned(workspace).bundles == 1
    assert workspace.catalog.attempts.submit(asked).id == first.id
    with pytest.raises(Conflict):
        workspace.catalog.attempts.submit(asked.model_copy(update={"name": "y"}))


@pytest.mark.parametrize("state", ["running", "succeeded"])
def test_a_study_and_its_trials_go_together_or_not_at_all(workspace: Workspace, state: JobState) -> None:
    study = job(workspace, kind="tune")
    trials = [job(workspace, kind="trial", parent=study) for _ in range(3)]
    within = job(workspace, parent=trials[0], days=5, state=state)

    assert cleaned(workspace).jobs == 0
    assert clean(workspace, older_than_s=4 * DAY).jobs == (0 if state == "running" else 5)
    assert there(workspace) == ({study, *trials, within} if state == "running" else set())


def test_what_a_model_version_was_trained_by_stays_with_all_its_parts(workspace: Workspace) -> None:
    script = job(workspace, kind="script")
    training, other = job(workspace, parent=script), job(workspace)
    named_by_a_version(workspace, training)

    told = cleaned(workspace)

    assert (told.jobs, told.in_use) == (1, 1)
    assert there(workspace) == {script, training}
    assert workspace.catalog.jobs.get(other).cleaned_at is not None


def test_what_a_young_job_goes_on_from_stays_but_not_what_that_went_on_from(workspace: Workspace) -> None:
    first = job(workspace, resumed_from=None)
    second = job(workspace, resumed_from=first)
    third = job(workspace, days=1, resumed_from=second)
    told = job(workspace, kind="script", days=2, args=["--from", f"jobs/{first[:-1]}Z/checkpoints"])

    assert cleaned(workspace).in_use == 1
    assert there(workspace) == {second, third, told}


def test_a_study_that_goes_on_keeps_the_trainings_of_its_trials(workspace: Workspace) -> None:
    study = job(workspace, kind="tune", state="running")
    training, other = job(workspace), job(workspace)
    trial = job(workspace, kind="trial", parent=study, result={"train_jobs": [training]})

    assert cleaned(workspace).jobs == 1
    assert there(workspace) == {study, trial, training}
    assert workspace.catalog.jobs.get(other).cleaned_at is not None


@pytest.mark.parametrize(("keep", "stay"), [(0, 0), (2, 2), (3, 3), (50, 3)])
def test_the_newest_stay_however_old(workspace: Workspace, keep: int, stay: int) -> None:
    ids = [job(workspace) for _ in range(3)]
    cleaned(workspace, keep=keep)
    assert there(workspace) == set(ids[3 - stay :])


def test_a_dry_run_counts_what_would_go_and_touches_nothing(workspace: Workspace) -> None:
    digest = bundle(workspace, b"1", days=40)
    job(workspace, kind="script", engine="local", bundle=digest)
    held = job(workspace)
    named_by_a_version(workspace, held)
    before = sorted((path, path.stat().st_mtime) for path in workspace.root.glob("[bj]*/**/*"))

    would = cleaned(workspace, dry_run=True)

    assert sorted((path, path.stat().st_mtime) for path in workspace.root.glob("[bj]*/**/*")) == before
    assert would == cleaned(workspace)
    assert (would.jobs, would.bundles, would.in_use) == (1, 1, 1)


def test_a_bundle_goes_once_no_job_needs_it_and_nobody_may_be_about_to(workspace: Workspace) -> None:
    needed, spare, fresh, again = (bundle(workspace, bytes([x]), days=d) for x, d in enumerate([40, 40, 0.5, 40]))
    job(workspace, kind="script", days=1, engine="local", bundle=needed)
    looked_at = bundle(workspace, b"9", days=40)
    bundle_of = workspace.bundles
    bundle_of.keep(bundles.pack({"a.py": bytes([3])}))  # sent once more, as whoever submits the same code does
    bundle_of.names(looked_at)  # as whoever runs a job anew does
    draft = workspace.root / "bundles" / f".{spare}.zip.12.0123456789ab"
    draft.write_bytes(b"half")
    os.utime(draft, (time.time() - 2 * DAY,) * 2)

    told = cleaned(workspace)

    left = {path.stem for path in (workspace.root / "bundles").glob("*.zip")}
    assert left == {needed, fresh, again, looked_at}
    assert told.bundles == 2
    assert not draft.exists()


def test_what_begins_in_this_moment_and_needs_an_old_job_keeps_it(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, other = job(workspace), job(workspace)
    marked = job_retention._marked
    begun: list[str] = []

    def later(*arguments: Any) -> Any:
        begun.append(job(workspace, state="running", resumed_from=old))
        return marked(*arguments)

    monkeypatch.setattr(job_retention, "_marked", later)
    told = cleaned(workspace)

    assert (told.jobs, told.in_use) == (1, 1)
    assert there(workspace) == {old, *begun}
    assert workspace.catalog.jobs.get(other).cleaned_at is not None


def test_what_is_gone_is_not_gone_on_with(workspace: Workspace) -> None:
    lost = job(workspace, kind="tune", state="lost")
    cleaned(workspace)
    with pytest.raises(NotFound, match="was removed at"):
        workspace.catalog.jobs.reopen(lost)


def test_links_lead_nowhere_and_a_folder_that_is_closed_goes_too(workspace: Workspace, tmp_path: Path) -> None:
    outside = tmp_path / "data"
    outside.mkdir()
    (outside / "precious").write_bytes(b"z" * 10**6)
    folder = workspace.root / "jobs" / job(workspace)
    (folder / "data").symlink_to(outside)
    (folder / "one").symlink_to(outside / "precious")
    (folder / "checkpoints" / "1").chmod(0o000)

    told = cleaned(workspace)

    assert not folder.exists()
    assert (outside / "precious").exists()
    assert 1000 <= told.job_bytes < 2000
    assert outside.stat().st_mode & 0o777 == 0o755


def dies(root: Path, step: int) -> bool:
    """Whether a cleaning in a process of its own was killed, at one of its transactions and removals."""
    child = os.fork()
    if child == 0:
        left = step

        def may_die() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        def stepping(does: Callable[..., Any]) -> Callable[..., Any]:
            def stepped(*given: Any, **named: Any) -> Any:
                may_die()
                return does(*given, **named)

            return stepped

        writing = Catalog.writing

        @contextlib.contextmanager
        def seen(catalog: Catalog) -> Iterator[Any]:
            with writing(catalog) as connection:
                yield connection
                may_die()
            may_die()

        Catalog.writing = seen  # type: ignore[method-assign]
        os.unlink, os.rmdir = stepping(os.unlink), stepping(os.rmdir)  # type: ignore[assignment]
        own = Workspace(root)
        cleaned(own)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings(r"ignore:os.fork\(\) was called")  # by JAX, if a test before has loaded it
def test_whoever_is_killed_leaves_jobs_whole_or_recorded_as_gone_and_the_next_one_ends_it(
    tmp_path: Path, memory_path: Path
) -> None:
    workspace = Workspace(tmp_path / "workspace")
    digest = bundle(workspace, b"1", days=40)
    old = {job(workspace, kind="script", engine="local", bundle=digest) for _ in range(2)}
    stays = job(workspace, kind="script", days=1, engine="local", bundle=bundle(workspace, b"2", days=40))
    workspace.close()
    step, killed = 0, True

    while killed:
        root = memory_path / str(step)
        shutil.copytree(workspace.root, root)
        killed, step = dies(root, step), step + 1
        found = Workspace(root)
        for each in old | {stays}:
            left = sorted(path.name for path in (root / "jobs" / each).rglob("*"))
            if found.catalog.jobs.get(each).cleaned_at is None:
                assert left == ["1", "arrays", "checkpoints", "metrics.jsonl"]
        if killed:
            cleaned(found)
        assert there(found) == {stays}
        assert len(list((root / "bundles").glob("*.zip"))) == 1
        found.close()
    assert step > 12
