"""What a server adds to the troubles of a file: passwords, languages, and that it can go away."""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from small_versions import CARD, add_version

from mms_sdk.errors import Conflict, InvalidRequest, MissingExtra, NotWritable, Unavailable
from mms_sdk.schema.job import Progress
from mms_sdk.storage import catalog as module
from mms_sdk.storage import databases, tables
from mms_sdk.storage.catalog import Catalog
from mms_sdk.storage.databases import database_at
from mms_sdk.storage.ids import new_id
from mms_sdk.storage.workspace import Workspace
from postgres_server import PostgresServer

AWAY = r"the catalog's database postgresql:///\w+\?host=\S+ did not answer \(.+\); see that its server runs and"


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.make_database()


@pytest.fixture
def catalog(url: str) -> Iterator[Catalog]:
    opened = Catalog(url)
    yield opened
    opened.close()


@pytest.fixture
def stoppable(postgres: PostgresServer) -> Iterator[PostgresServer]:
    """The server, which runs again afterwards whatever happens."""
    yield postgres
    if postgres.process is None:
        postgres.start()


def told(error: BaseException) -> str:
    """The error with all its causes, as a log would have it."""
    return "".join(traceback.format_exception(error)) + repr(error)


def add_token(catalog: Catalog, *, meanwhile: Callable[[], object]) -> None:
    with catalog.writing() as connection:
        connection.execute(sa.insert(tables.tokens).values(hash="h", name="ada", role="admin", created_at="now"))
        meanwhile()
        connection.execute(sa.select(tables.tokens))


# Addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hunter2", "the address of a catalog is a URL such as postgresql://USER@HOST:5432/DATABASE"),
        ("postgresql://db.example:hunter2/mms", "this one cannot be read"),
        ("postgresql://ada:x@hunter2@db.example/mms", "each is written as %40 %3A %2F"),
        ("postgresql://ada:hunter2@db.example", "names a database"),
        ("postgresql+asyncpg://ada:hunter2@db.example/mms", r"begins with postgresql\+asyncpg://"),
        ("mysql://ada:hunter2@db.example/mms", "begins with mysql://"),
        ("sqlite://", "begins with sqlite://"),
    ],
)
def test_an_address_that_will_not_do_is_refused_and_never_shown(address: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=message) as refused:
        Workspace(tmp_path / "ws", catalog=address)

    assert "hunter2" not in told(refused.value)
    assert not (tmp_path / "ws").exists()


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
def test_a_database_is_named_without_user_password_and_driver(scheme: str) -> None:
    database = database_at(f" {scheme}://ada:hunter2@db.example:5433/mms?sslmode=require&password=hunter3\n")

    assert database.name == "postgresql://db.example:5433/mms"
    assert repr(database) == "Server(postgresql://db.example:5433/mms)"


def test_a_file_may_be_named_by_a_url(tmp_path: Path) -> None:
    assert database_at(f"sqlite:///{tmp_path}/some.sqlite") == database_at(tmp_path / "some.sqlite")


def test_without_psycopg_the_line_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)

    with pytest.raises(MissingExtra, match=r'needs psycopg, .* run: pip install "mms-sdk\[postgres\]"'):
        Catalog("postgresql://db.example/mms")


def test_a_password_is_in_no_message_log_repr_or_file(
    postgres: PostgresServer, url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    workspace = Workspace(tmp_path / "ws", catalog=url)
    workspace.catalog.jobs.start("train", "flowers", {})
    seen = f"{workspace!r} {workspace.catalog!r} {workspace.catalog.name} {caplog.text}"
    wrong = postgres.url("postgres", password="hunter2")

    with pytest.raises(Unavailable, match="password authentication failed") as refused:
        Catalog(wrong)
    seen += told(refused.value)
    with pytest.raises(InvalidRequest) as other:
        Workspace(tmp_path / "ws", catalog=wrong)
    seen += told(other.value)
    seen += "".join(path.read_text() for path in (tmp_path / "ws").rglob("*") if path.is_file())
    workspace.close()

    assert "mms_" in seen
    for secret in ("hunter2", postgres.password, "p@ss", "p%40ss"):
        assert secret not in seen


# A workspace and its catalog ------------------------------------------------------------------------------------


def test_a_workspace_keeps_its_catalog_in_the_database_and_is_the_same_when_opened_again(
    url: str, tmp_path: Path
) -> None:
    first = Workspace(tmp_path / "ws", catalog=url)
    job = first.catalog.jobs.start("train", "flowers", {})
    first.close()

    second = Workspace(tmp_path / "ws", catalog=url.replace("postgresql:", "postgresql+psycopg:"))

    assert second.catalog.jobs.get(job.id) == job
    assert [path.name for path in (tmp_path / "ws").iterdir()] == ["workspace.json"]
    second.close()


def test_a_workspace_is_never_opened_with_another_catalog(postgres: PostgresServer, tmp_path: Path) -> None:
    mine, other = postgres.make_database(), postgres.make_database()
    Workspace(tmp_path / "server", catalog=mine).close()
    Workspace(tmp_path / "file").close()

    for catalog in (None, other):
        with pytest.raises(
            InvalidRequest, match=r"stays with the catalog .* is postgresql:///.*set MMS_CATALOG to its"
        ):
            Workspace(tmp_path / "server", catalog=catalog)
    with pytest.raises(InvalidRequest, match=r"is sqlite, asked for was postgresql:///.*; unset MMS_CATALOG"):
        Workspace(tmp_path / "file", catalog=mine)
    assert not (tmp_path / "server" / "catalog.sqlite").exists()


def test_a_database_is_the_catalog_of_one_workspace(url: str, tmp_path: Path) -> None:
    first, second = Workspace(tmp_path / "first", catalog=url), Workspace(tmp_path / "second", catalog=url)
    token = first.catalog.tokens.issue("server", "admin")

    for _ in range(2):
        with pytest.raises(Conflict, match=r"is that of workspace \w{26}, this one is \w{26}; give it a database of"):
            _ = second.catalog

    (tmp_path / "first").rename(tmp_path / "moved")
    moved = Workspace(tmp_path / "moved", catalog=url)
    assert moved.catalog.tokens.find(token) is not None
    moved.close()
    first.close()


# Texts ----------------------------------------------------------------------------------------------------------


def test_order_is_that_of_bytes_in_whatever_language_the_server_sorts(catalog: Catalog) -> None:
    """In Danish, in which the test's server sorts, AA comes after Z."""
    ids = ["01AAAAAAAAAAAAAAAAAAAAAAAA", "01BAAAAAAAAAAAAAAAAAAAAAAA", "01ZZZZZZZZZZZZZZZZZZZZZZZZ"]
    job = catalog.jobs.start("train", "flowers", {})
    with catalog.writing() as connection:
        connection.execute(sa.delete(tables.jobs))
        rows = [job.model_copy(update={"id": each}).model_dump(mode="json") for each in ids]
        connection.execute(sa.insert(tables.jobs), rows)
    for model in ("b", "aa", "z", "a-b", "a.c", "a_a"):
        add_version(catalog, model)

    assert [each.id for each in catalog.jobs.list()] == ids[::-1]
    assert [each.id for each in catalog.jobs.list(before=ids[1])] == ids[:1]
    assert [row["model"] for row in catalog.models.list()] == ["a-b", "a.c", "a_a", "aa", "b", "z"]


def test_a_text_that_the_server_cannot_hold_is_a_wrong_request(catalog: Catalog) -> None:
    with pytest.raises(InvalidRequest, match="NUL"):
        catalog.jobs.get("a\0b")
    with pytest.raises(InvalidRequest, match="value too long"):
        catalog.jobs.start("train", "n" * 64, {})
    spec = {"text": "a\0b \ud800 é"}
    assert catalog.jobs.get(catalog.jobs.start("train", "flowers", spec).id).spec == spec


# A server that goes away ----------------------------------------------------------------------------------------


def test_a_server_that_went_away_is_told_and_when_it_is_back_the_catalog_works_on(
    stoppable: PostgresServer, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FINISH_WITHIN_S", 0.1)
    catalog, never_used = Catalog(url), Workspace(tmp_path / "ws", catalog=url)
    job = catalog.jobs.start("train", "flowers", {})
    stoppable.stop()

    for _ in range(2):
        with pytest.raises(Unavailable, match=AWAY):
            catalog.jobs.list()
        with pytest.raises(Unavailable, match=AWAY):
            catalog.jobs.finish(job.id, "succeeded")
        with pytest.raises(Unavailable, match=AWAY):
            _ = never_used.catalog
    stoppable.start()

    assert never_used.catalog.jobs.list() == [job]
    assert catalog.jobs.finish(job.id, "succeeded")
    never_used.close()
    catalog.close()


def test_a_job_works_on_while_the_server_is_away_and_its_end_is_recorded_once_it_is_back(
    stoppable: PostgresServer, catalog: Catalog
) -> None:
    job = catalog.jobs.start("train", "flowers", {}).id
    stoppable.stop()
    catalog.jobs.progress(job, Progress(done=1, total=2))

    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(catalog.jobs.finish, job, "succeeded", result={"accuracy": 1.0})
        time.sleep(0.2)
        assert not ended.done()
        stoppable.start()

    assert ended.result()
    assert catalog.jobs.get(job).result == {"accuracy": 1.0}


def test_of_a_change_that_a_server_died_in_nothing_is_kept(stoppable: PostgresServer, catalog: Catalog) -> None:
    with pytest.raises(Unavailable, match=AWAY):
        add_token(catalog, meanwhile=stoppable.stop)
    stoppable.start()

    with catalog.reading() as connection:
        assert connection.execute(sa.select(tables.tokens)).all() == []
    assert add_version(catalog) == 1  # and the lock is free


@pytest.mark.slow
@pytest.mark.torture
def test_of_what_threads_were_told_was_kept_nothing_is_lost_when_the_server_dies_again_and_again(
    stoppable: PostgresServer, catalog: Catalog
) -> None:
    kept: list[dict[int, str]] = [{} for _ in range(4)]
    unsure: list[str] = []
    done = threading.Event()

    def register(mine: dict[int, str]) -> None:
        while not done.is_set():
            artifact = new_id()
            try:
                mine[catalog.models.add("flowers", artifact=artifact, digest="0" * 64, size=1, card=CARD)] = artifact
            except Unavailable:
                unsure.append(artifact)
                time.sleep(0.01)

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(register, mine) for mine in kept]
        try:
            for _ in range(10):
                time.sleep(0.2)
                stoppable.stop()
                stoppable.start()
            time.sleep(0.2)
        finally:
            done.set()
        for each in working:
            each.result()

    rows = {row["version"]: row["artifact"] for row in catalog.models.list("flowers")}
    told = {version: artifact for mine in kept for version, artifact in mine.items()}
    assert sum(map(len, kept)) == len(told) > 50  # no number was given twice
    assert {version: rows.get(version) for version in told} == told
    assert set(rows.values()) - set(told.values()) <= set(unsure)
    assert sorted(rows) == list(range(1, len(rows) + 1))


def test_a_process_that_was_stopped_with_the_lock_loses_it_and_its_change(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(databases, "_IDLE_TIMEOUT_MS", 100)
    stopped, working = Catalog(url), Catalog(url)

    with pytest.raises(Unavailable, match=AWAY):  # the other waits until the server has had enough of the first
        add_token(stopped, meanwhile=lambda: working.jobs.start("train", "flowers", {}))

    assert stopped.tokens.issue("ada", "viewer")
    working.close()
    stopped.close()


def test_a_server_that_only_reads_is_told_as_such(postgres: PostgresServer, url: str) -> None:
    Catalog(url).close()
    postgres.tell(f"alter database {sa.make_url(url).database} set default_transaction_read_only = on")

    catalog = Catalog(url)

    assert catalog.jobs.list() == []
    with pytest.raises(NotWritable, match=r"the catalog postgresql:///.* cannot be written \(.*read-only"):
        catalog.jobs.start("train", "flowers", {})
    catalog.close()


def test_a_database_that_is_not_there_is_told_with_its_name(postgres: PostgresServer) -> None:
    with pytest.raises(Unavailable, match=r'database "nobody_made_this" does not exist'):
        Catalog(postgres.url("nobody_made_this"))
