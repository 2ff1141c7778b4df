from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from small_versions import CARD, add_version

from mms_sdk.errors import Conflict, Damaged, JobNotFound, ModelNotFound, Unavailable
from mms_sdk.schema.job import JobState, Progress
from mms_sdk.schema.model import ModelCard
from mms_sdk.schema.names import ModelRef, parse_model_ref
from mms_sdk.storage import databases, tables
from mms_sdk.storage.catalog import Catalog
from mms_sdk.storage.databases import database_at
from mms_sdk.storage.ids import new_id
from mms_sdk.storage.owners import owner_of
from mms_sdk.storage.workspace import Workspace
from postgres_server import PostgresServer

DRIVER = Path(__file__).with_name("opens_at_once.py")


@pytest.fixture
def catalog(catalog_at: Path | str) -> Iterator[Catalog]:
    opened = Catalog(catalog_at)
    yield opened
    opened.close()


@pytest.fixture
def kept_bytes(catalog_at: Path | str, request: pytest.FixtureRequest) -> Callable[[], bytes]:
    """A function that reads all that lies on the disk for a catalog."""

    def read() -> bytes:
        if isinstance(catalog_at, Path):
            found = list(catalog_at.parent.glob("catalog.sqlite*"))
        else:
            server: PostgresServer = request.getfixturevalue("postgres")
            server.tell("checkpoint")
            found = [path for part in ("base", "pg_wal") for path in (server.folder / "data" / part).rglob("*")]
        return b"".join(path.read_bytes() for path in found if path.is_file())

    return read


@pytest.fixture(params=["sqlite", "postgresql"])
def new_catalog(request: pytest.FixtureRequest) -> Callable[[], str | None]:
    """A function that gives a place for the catalog of a new workspace."""
    if request.param == "sqlite":
        return lambda: None
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.make_database


@contextmanager
def running(command: list[str], count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """So many processes of one program, ended in the end whatever happens."""
    with ExitStack() as stack:
        started = []
        for _ in range(count):
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            stack.callback(process.kill)
            started.append(process)
        yield started


def next_lines(processes: list[subprocess.Popen[str]]) -> list[str]:
    return [process.stdout.readline().strip() for process in processes if process.stdout is not None]


# The database ---------------------------------------------------------------------------------------------------


def test_a_catalog_keeps_what_it_was_told_when_it_is_opened_again(catalog_at: Path | str) -> None:
    first = Catalog(catalog_at)
    job = first.jobs.start("ingest", "flowers", {"source": "ü"})
    first.close()

    second = Catalog(catalog_at)

    assert second.jobs.get(job.id) == job
    second.close()


def test_a_catalog_opened_twice_in_one_process_sees_what_others_did_that_came_and_went(catalog_at: Path | str) -> None:
    first = Catalog(catalog_at)
    made = [first.jobs.start("train", "flowers", {}).id]
    second = Catalog(catalog_at)
    code = "import sys; from mms_sdk.storage.catalog import Catalog; catalog = Catalog(sys.argv[1]);"
    code += "print(catalog.jobs.start('train', 'flowers', {}).id); catalog.close()"
    url = f"sqlite:///{catalog_at}" if isinstance(catalog_at, Path) else catalog_at
    for _ in range(2):
        made.append(subprocess.check_output([sys.executable, "-c", code, url], text=True).strip())
        made.append(second.jobs.start("train", "flowers", {}).id)

        assert sorted(job.id for job in first.jobs.list()) == sorted(made)
        assert sorted(job.id for job in second.jobs.list()) == sorted(made)
    first.close()
    second.close()


@pytest.mark.parametrize("body", [b"garbage " * 1000, b"SQLite format 3\0" + bytes(4080)])
def test_a_file_that_is_no_catalog_is_damage(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "catalog.sqlite"
    path.write_bytes(body)

    with pytest.raises(Damaged, match=r"catalog\.sqlite is not a readable catalog \(.+\); restore a new workspace"):
        Catalog(path)
    assert path.read_bytes() == body


def test_somebody_elses_database_is_damage_and_stays_as_it_is(catalog_at: Path | str) -> None:
    theirs = database_at(catalog_at).engine()
    with theirs.begin() as connection:
        connection.execute(sa.text("create table jobs (theirs text)"))

    with pytest.raises(Damaged, match="is not a readable catalog"):
        Catalog(catalog_at)

    assert sa.inspect(theirs).get_table_names() == ["jobs"]
    theirs.dispose()


def test_a_catalog_of_a_newer_mms_asks_for_an_upgrade_and_stays_as_it_is(catalog_at: Path | str) -> None:
    catalog = Catalog(catalog_at)
    job = catalog.jobs.start("train", "flowers", {}).id
    with catalog.writing() as connection:
        connection.execute(sa.text("update alembic_version set version_num = '9999'"))

    with pytest.raises(Damaged, match=r"comes from a newer MMS .*9999.*; upgrade mms-sdk"):
        Catalog(catalog_at)
    assert catalog.jobs.get(job).state == "running"
    catalog.close()


def test_a_lock_that_is_held_too_long_is_no_damage(catalog_at: Path | str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(databases, "LOCK_TIMEOUT_MS", 50)
    catalog, other = Catalog(catalog_at), Catalog(catalog_at)

    with other.writing():
        with pytest.raises(Unavailable, match=r"another process has held it for 0\.05 s; try again"):
            catalog.jobs.start("train", "flowers", {})
        assert catalog.jobs.list() == []  # reading goes on

    assert catalog.jobs.start("train", "flowers", {}).state == "running"
    other.close()
    catalog.close()


@pytest.mark.parametrize("name", ["a b", "what?", "50%20#1", "ü&x=y;z", "colon:8@host"])
def test_a_workspace_may_have_any_name(tmp_path: Path, name: str) -> None:
    workspace = Workspace(tmp_path / name)
    workspace.catalog.jobs.start("train", "flowers", {})

    assert (tmp_path / name / "catalog.sqlite").stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == [name]
    workspace.close()


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        workspace = Workspace(tmp_path / "new" / "workspace")
        workspace.catalog.tokens.issue("ada", "admin")
        workspace.open_or_create_dataset("flowers")
        workspace.job_folder("01J")
        found = [workspace.root.parent, workspace.root, *workspace.root.rglob("*")]
        modes = {path.relative_to(tmp_path): stat.S_IMODE(path.stat().st_mode) for path in found}
    finally:
        os.umask(before)
    workspace.close()

    assert {"catalog.sqlite", "catalog.sqlite-wal", "workspace.json"} <= {path.name for path in modes}
    wanted = {path: 0o700 if (tmp_path / path).is_dir() else 0o600 for path in modes}
    assert {path: oct(mode) for path, mode in modes.items() if mode != wanted[path]} == {}


# Jobs -----------------------------------------------------------------------------------------------------------


def test_a_job_has_one_end_and_the_first_one_stays(catalog: Catalog) -> None:
    job = catalog.jobs.start("train", "flowers", {})

    assert catalog.jobs.finish(job.id, "succeeded", result={"accuracy": 1.0})
    assert not catalog.jobs.finish(job.id, "failed", error={"title": "late"})

    ended = catalog.jobs.get(job.id)
    assert ended.state == "succeeded"
    assert ended.result == {"accuracy": 1.0}
    assert ended.error is None
    assert ended.ended


def test_an_ended_job_makes_no_more_progress(catalog: Catalog) -> None:
    job = catalog.jobs.start("train", "flowers", {})
    catalog.jobs.progress(job.id, Progress(done=1, total=2))
    catalog.jobs.finish(job.id, "cancelled")
    catalog.jobs.progress(job.id, Progress(done=2, total=2))

    assert catalog.jobs.get(job.id).progress == Progress(done=1, total=2)


def test_of_threads_that_end_one_job_one_wins(catalog: Catalog) -> None:
    for _ in range(5):
        job = catalog.jobs.start("train", "flowers", {})
        barrier = threading.Barrier(8)

        def finish(number: int, job: str = job.id, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return catalog.jobs.finish(job, "succeeded", result={"by": number})

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(finish, range(8)))

        assert sum(won) == 1
        assert catalog.jobs.get(job.id).result == {"by": won.index(True)}


@pytest.mark.slow
def test_of_processes_that_make_one_workspace_and_end_one_job_none_fails_and_one_wins(
    tmp_path: Path, new_catalog: Callable[[], str | None]
) -> None:
    rounds = 4

    with running([sys.executable, str(DRIVER), str(tmp_path), str(rounds)], 3) as processes:
        assert next_lines(processes) == ["ready"] * 3
        for number in range(rounds):
            job, catalog = "", new_catalog()
            if number % 2:  # every other workspace is made by all of them at once
                workspace = Workspace(tmp_path / str(number), catalog=catalog)
                job = workspace.catalog.jobs.start("train", "flowers", {}).id
                workspace.close()
            draft = tmp_path / f"{number}.draft"
            draft.write_text(f"{job}\n{catalog or ''}")
            draft.rename(tmp_path / f"{number}.go")

            assert sorted(next_lines(processes)) == ["False"] * 2 + ["True" if job else "False"]
            workspace = Workspace(tmp_path / str(number), catalog=catalog)
            assert len(workspace.catalog.jobs.list()) == 3 + bool(job)
            workspace.close()


@pytest.mark.slow
def test_processes_that_make_one_file_at_once_never_refuse_one_another(memory_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from mms_sdk.storage.databases import database_at\n"
    code += "for n in range(200):\n"
    code += "    time.sleep(max(0, float(sys.argv[2]) + 0.01 * n - time.monotonic()))\n"
    code += "    engine = database_at(Path(sys.argv[1], str(n))).engine()\n"
    code += "    engine.connect().close()\n"
    code += "print('made')"
    start = time.monotonic() + 3  # by when all of them have imported what they need

    with running([sys.executable, "-c", code, str(memory_path), str(start)], 4) as processes:
        assert next_lines(processes) == ["made"] * 4


@pytest.mark.slow
def test_jobs_of_dead_processes_are_lost_and_those_of_living_ones_are_not(catalog_at: Path | str) -> None:
    catalog = Catalog(catalog_at)
    mine = catalog.jobs.start("train", "flowers", {}).id
    ended = catalog.jobs.start("train", "flowers", {}).id
    catalog.jobs.finish(ended, "failed", error={"title": "out of memory"})
    code = "import sys, time; from mms_sdk.storage.catalog import Catalog;"
    code += "print(Catalog(sys.argv[1]).jobs.start('train', 'flowers', {}).id, flush=True); time.sleep(60)"

    url = f"sqlite:///{catalog_at}" if isinstance(catalog_at, Path) else catalog_at
    with running([sys.executable, "-c", code, url], 3) as started:
        killed, unwaited, living = next_lines(started)
        started[0].kill()
        started[0].wait()
        started[1].kill()  # nobody waits for it: a zombie, whose number and start time are still there
        os.waitid(os.P_PID, started[1].pid, os.WEXITED | os.WNOWAIT)
        lost = catalog.jobs.reconcile()

    assert sorted(lost) == sorted([killed, unwaited])
    states = {job.id: job.state for job in catalog.jobs.list()}
    assert states == {killed: "lost", unwaited: "lost", living: "running", mine: "running", ended: "failed"}
    assert f"resume={killed!r} goes on from its newest checkpoint" in (catalog.jobs.get(killed).error or {})["detail"]
    assert catalog.jobs.reconcile() == [living]  # which was ended with the block above
    catalog.close()


def test_a_process_number_that_was_given_out_again_does_not_keep_a_job_alive(catalog: Catalog) -> None:
    job = catalog.jobs.start("train", "flowers", {})
    with catalog.writing() as connection:
        connection.execute(sa.update(tables.jobs).values(owner=f"{os.getpid()}:1.00"))

    assert catalog.jobs.reconcile() == [job.id]


def test_jobs_are_listed_newest_first_in_pages(catalog: Catalog) -> None:
    made = []
    for _ in range(7):
        made.append(catalog.jobs.start("train", "flowers", {}).id)
        threading.Event().wait(0.002)  # ids sort by the millisecond

    first = catalog.jobs.list(limit=3)
    second = catalog.jobs.list(limit=10, before=first[-1].id)

    assert [job.id for job in (*first, *second)] == made[::-1]


def test_parts_of_a_job_are_listed_apart_and_so_are_kinds(catalog: Catalog) -> None:
    jobs = catalog.jobs
    study, other = jobs.start("tune", "mine", {}), jobs.start("tune", "other", {})
    parts = [jobs.start("trial", f"mine-{number}", {}, parent=study.id) for number in range(3)]
    alone = jobs.start("trial", "other-0", {}, parent=other.id)

    assert [job.id for job in jobs.parts(study.id)] == [part.id for part in parts]
    assert [job.id for job in jobs.list(parent=study.id, limit=2)] == [parts[2].id, parts[1].id]
    assert [job.id for job in jobs.list(parent=study.id, before=parts[1].id)] == [parts[0].id]
    assert [job.id for job in jobs.list(kind="tune")] == [other.id, study.id]
    assert next(job.id for job in jobs.list(kind="trial", before=alone.id)) == parts[2].id
    assert jobs.get(parts[0].id).parent == study.id
    assert jobs.get(study.id).parent is None


def test_jobs_that_a_process_began_are_found_by_it(catalog: Catalog) -> None:
    jobs = catalog.jobs
    before, since = jobs.start("train", "a", {}), jobs.start("trial", "b", {})
    mine = [jobs.start("train", "c", {}), jobs.start("train", "d", {})]
    jobs.start("ingest", "e", {})
    me = owner_of(os.getpid())

    assert [job.id for job in jobs.begun_by(me, kind="train", since=since.id)] == [job.id for job in mine]
    assert before.id in [job.id for job in jobs.begun_by(me, kind="train", since="0")]
    assert jobs.begun_by("1:0.00", kind="train", since=since.id) == []


@pytest.mark.parametrize("state", ["failed", "cancelled", "lost"])
def test_a_job_that_did_not_succeed_is_opened_again_by_one_of_many(catalog: Catalog, state: JobState) -> None:
    job = catalog.jobs.start("tune", "mine", {"kept": 1})
    with pytest.raises(Conflict, match="is running; wait for it, or stop it first"):
        catalog.jobs.reopen(job.id)
    catalog.jobs.finish(job.id, state, result={"value": 1}, error={"title": "x"})

    with ThreadPoolExecutor(4) as threads:
        tries = [threads.submit(catalog.jobs.reopen, job.id) for _ in range(4)]
    refused = [each.exception() for each in tries if each.exception()]
    assert len(refused) == 3
    assert all(isinstance(error, Conflict) for error in refused)
    now = catalog.jobs.get(job.id)
    assert (now.state, now.ended_at, now.error, now.result, now.spec) == ("running", None, None, {}, {"kept": 1})


def test_a_job_that_is_done_is_not_opened_again(catalog: Catalog) -> None:
    job = catalog.jobs.start("tune", "mine", {})
    catalog.jobs.finish(job.id, "succeeded")
    with pytest.raises(Conflict, match="is succeeded; start a new one"):
        catalog.jobs.reopen(job.id)
    with pytest.raises(JobNotFound):
        catalog.jobs.reopen("nobody")


def test_a_job_nobody_knows_is_not_found(catalog: Catalog) -> None:
    with pytest.raises(JobNotFound, match="no job '01J'; list them with: mms jobs"):
        catalog.jobs.get("01J")


# Models ---------------------------------------------------------------------------------------------------------


def test_versions_count_from_one_within_each_model_and_threads_never_share_one(catalog: Catalog) -> None:
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda number: add_version(catalog, f"model-{number % 2}"), range(24)))

    assert sorted(versions) == sorted([*range(1, 13)] * 2)
    for model in ("model-0", "model-1"):
        assert [row["version"] for row in catalog.models.list(model)] == list(range(12, 0, -1))


def test_a_version_may_be_of_any_size(catalog: Catalog) -> None:
    catalog.models.add("flowers", artifact=new_id(), digest="0" * 64, size=2**45, card=CARD)

    assert catalog.models.resolve(ModelRef(name="flowers"))["bytes"] == 2**45


def test_an_artefact_is_registered_once(catalog: Catalog) -> None:
    artifact = new_id()
    catalog.models.add("flowers", artifact=artifact, digest="0" * 64, size=1, card=CARD)

    with pytest.raises(Conflict, match="is registered already"):
        catalog.models.add("flowers", artifact=artifact, digest="0" * 64, size=1, card=CARD)
    assert len(catalog.models.list("flowers")) == 1


def test_a_reference_finds_the_newest_a_number_or_where_an_alias_points(catalog: Catalog) -> None:
    for _ in range(3):
        add_version(catalog)
    add_version(catalog, "other")
    catalog.models.set_alias("flowers", "champion", 1)
    catalog.models.set_alias("flowers", "champion", 2)
    catalog.models.set_alias("flowers", "first", 2)

    found = {text: catalog.models.resolve(parse_model_ref(text))["version"] for text in ("flowers", "flowers@1")}

    assert found == {"flowers": 3, "flowers@1": 1}
    assert catalog.models.resolve(ModelRef(name="flowers", version="champion"))["version"] == 2
    assert catalog.models.aliases() == {("flowers", 2): ("champion", "first")}
    assert ModelCard.model_validate(catalog.models.resolve(ModelRef(name="flowers"))["card"]) == CARD


def test_a_model_version_or_alias_nobody_knows_is_answered_with_those_that_are(catalog: Catalog) -> None:
    with pytest.raises(ModelNotFound, match="no model 'flowers'; there are none yet"):
        catalog.models.resolve(ModelRef(name="flowers"))
    add_version(catalog)
    catalog.models.set_alias("flowers", "champion", 1)

    with pytest.raises(ModelNotFound, match=r"no version or alias 9; it has versions \[1\] and aliases \['champion'\]"):
        catalog.models.resolve(ModelRef(name="flowers", version=9))
    with pytest.raises(ModelNotFound, match=r"no model 'flower'; there are \['flowers'\]"):
        catalog.models.resolve(ModelRef(name="flower"))
    with pytest.raises(ModelNotFound):
        catalog.models.set_alias("flowers", "champion", 2)
    assert catalog.models.aliases() == {("flowers", 1): ("champion",)}


def test_deployments_are_kept_until_they_are_forgotten(catalog: Catalog) -> None:
    add_version(catalog)
    add_version(catalog)
    catalog.deployments.keep("api", model="flowers", version=1, max_batch=64)
    catalog.deployments.keep("api", model="flowers", version=2, max_batch=8)
    catalog.deployments.keep("other", model="flowers", version=1, max_batch=64)
    catalog.deployments.forget("other")

    assert catalog.deployments.list() == [("api", ModelRef(name="flowers", version=2), 8)]
    with pytest.raises(sa.exc.IntegrityError):
        catalog.deployments.keep("api", model="flowers", version=3, max_batch=64)


# Tokens ---------------------------------------------------------------------------------------------------------


def test_a_token_is_known_but_kept_nowhere(catalog: Catalog, kept_bytes: Callable[[], bytes]) -> None:
    token = catalog.tokens.issue("ada", "editor")
    found = catalog.tokens.find(token)

    assert found is not None
    assert (found.name, found.role) == ("ada", "editor")
    kept = kept_bytes()
    assert token.encode() not in kept
    assert token.removeprefix("mms_").encode() not in kept
    assert hashlib.sha256(token.encode()).hexdigest().encode() in kept
    assert len(token) > 40


def test_only_the_newest_token_of_a_name_is_good(catalog: Catalog) -> None:
    old = catalog.tokens.issue("ada", "editor")
    new = catalog.tokens.issue("ada", "viewer")

    assert catalog.tokens.find(old) is None
    assert catalog.tokens.find(new) is not None
    for wrong in ("", "mms_", new[:-1], new + " ", new.upper(), "' or 1=1 --"):
        assert catalog.tokens.find(wrong) is None
