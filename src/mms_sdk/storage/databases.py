"""Where a catalog lies: in a SQLite file of its own, or in a database of a PostgreSQL server.

Either gives an engine whose transactions, when begun with the option `mms_write`, hold the catalog's one write lock
from their beginning, and says in our own errors why it cannot be used.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa

from mms_sdk.errors import InvalidRequest, MissingExtra, MmsError, NotWritable, StorageFull, Unavailable
from mms_sdk.settings import CATALOG_VARIABLE
from mms_sdk.storage import files
from mms_sdk.storage.remedies import RESTORE

LOCK_TIMEOUT_MS = 30_000  # how long a writer waits for the one before it
_IDLE_TIMEOUT_MS = 60_000  # after which a server takes the lock from a process that was stopped while it held it
_LOCK = 0x6D6D73  # "mms": the advisory lock of a database's catalog
_WHICH = ("host", "port", "options")  # what of a URL's query tells one database from another
_PATIENCE = {"connect_timeout": "10", "keepalives_idle": "30", "tcp_user_timeout": "30000"}  # libpq's own have no end
_FORM = "postgresql://USER@HOST:5432/DATABASE"


class Database(Protocol):
    """A place for one catalog; used from several threads and processes."""

    @property
    def name(self) -> str:
        """Says which it is, to people and in files; no password is in it."""

    @property
    def remedy(self) -> str:
        """What to do about one that is there and cannot be read."""

    def engine(self) -> sa.Engine:
        """Connects, now or on first use."""

    def errors(self) -> contextlib.AbstractContextManager[None]:
        """Turns the database's refusals into errors that say what to do."""


def database_at(where: Path | str) -> Database:
    """The database at a path, or at a SQLAlchemy URL.

    Args:
        where: A SQLite file, `sqlite:///FILE`, or `postgresql://USER@HOST/DATABASE`.

    Raises:
        InvalidRequest: A URL of another kind, or one that cannot be read.
    """
    if isinstance(where, Path):
        return Embedded(path=where)
    try:
        url = sa.make_url(where.strip())
    except (sa.exc.ArgumentError, ValueError):
        # The cause would show the text, and the password in it.
        raise InvalidRequest(f"the address of a catalog is a URL such as {_FORM}; this one cannot be read") from None
    if url.drivername == "sqlite" and url.database:
        return Embedded(path=Path(url.database).absolute())
    if url.drivername not in ("postgresql", "postgresql+psycopg"):
        raise InvalidRequest(f"a catalog lies in SQLite or at {_FORM}; got a URL that begins with {url.drivername}://")
    if "@" in f"{url.host}{url.database}":
        raise InvalidRequest(f"of @ : / in a user or password each is written as %40 %3A %2F: {_FORM}; one is not")
    if not url.database:
        raise InvalidRequest(f"the URL of a catalog names a database, as in {_FORM}; this one names none")
    return Server(url=url)


_making = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """A SQLite file, with a write-ahead log beside it."""

    path: Path
    remedy = RESTORE

    @property
    def name(self) -> str:
        """The file's path."""
        return str(self.path)

    def engine(self) -> sa.Engine:
        """An engine of the file, which is made if it is not there."""
        with _making, files.writing(self.path):
            try:
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, files.FILE_MODE))
            except FileExistsError:
                # Never opened: closing it would let go all locks that this process holds on it (POSIX, fcntl), and the
                # next process to leave would take the log away from under the connections that are open here.
                if not os.access(self.path, os.R_OK | os.W_OK):
                    read_only = os.statvfs(self.path).f_flag & os.ST_RDONLY
                    number = errno.EROFS if read_only else errno.EACCES
                    raise OSError(number, os.strerror(number)) from None
        engine = sa.create_engine(sa.URL.create("sqlite", database=str(self.path)))  # a URL's text would need escaping
        sa.event.listen(engine, "connect", _configure_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Names a full or read-only disk, and a lock that is held too long."""
        with files.writing(self.path):
            try:
                yield
            except sa.exc.OperationalError as error:
                code = getattr(error.orig, "sqlite_errorname", "")
                if code in ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE"):  # the second: no room for the index of its log
                    raise OSError(errno.ENOSPC, "the disk is full") from error
                if code.startswith("SQLITE_CANTOPEN"):  # the file itself was opened before, by `engine`
                    raise OSError(errno.EACCES, "its log, beside it, cannot be made or opened") from error
                if code.startswith("SQLITE_READONLY"):
                    raise OSError(errno.EROFS, "the catalog is read-only") from error
                if code.startswith("SQLITE_BUSY"):
                    raise _held() from error
                raise


@dataclass(frozen=True, kw_only=True)
class Server:
    """A database of a PostgreSQL server, all of which is the catalog's."""

    url: sa.URL = field(repr=False)
    remedy = f"give the catalog an empty database of its own, or {RESTORE}"

    @property
    def name(self) -> str:
        """The URL without user and password."""
        query = {key: value for key, value in self.url.query.items() if key in _WHICH}
        which = sa.URL.create(
            "postgresql", host=self.url.host, port=self.url.port, database=self.url.database, query=query
        )
        return which.render_as_string()

    def __repr__(self) -> str:
        return f"Server({self.name})"

    def engine(self) -> sa.Engine:
        """An engine that notices a connection that was lost, and makes another.

        Raises:
            MissingExtra: There is no psycopg.
        """
        try:
            importlib.import_module("psycopg")
        except ImportError as error:
            raise MissingExtra("psycopg", extra="postgres") from error
        url = self.url.set(drivername="postgresql+psycopg", query={**_PATIENCE, **self.url.query})
        # A writer must see what was committed before it got the lock, which a snapshot taken earlier would not have.
        engine = sa.create_engine(url, pool_pre_ping=True, isolation_level="READ COMMITTED")
        sa.event.listen(engine, "begin", _begin_postgresql)
        return engine

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Names a server that is away, full, or lets nobody write, and a lock that is held too long."""
        try:
            yield
        except sa.exc.DBAPIError as error:
            told = self._told(error)
            if told is None:
                raise
            raise told from error

    def _told(self, error: sa.exc.DBAPIError) -> MmsError | None:
        state = getattr(error.orig, "sqlstate", None) or ""
        reason = str(error.orig).strip().partition("\n")[0]
        if isinstance(error, sa.exc.DataError):
            return InvalidRequest(f"PostgreSQL does not keep or look for such a value ({reason}); use another")
        if state == "55P03":
            return _held()
        if state == "53100":
            return StorageFull(f"no space left at the catalog {self.name} ({reason}); free space there and try again")
        if state in ("25006", "42501"):
            return NotWritable(f"the catalog {self.name} cannot be written ({reason}); use its owner and primary")
        lost = not state and isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError)
        if lost or error.connection_invalidated or state[:2] in ("08", "57") or state in ("25P03", "53300"):
            return Unavailable(
                f"the catalog's database {self.name} did not answer ({reason}); see that its server runs and that "
                f"{CATALOG_VARIABLE} is right, look whether the last change was made, and try again"
            )
        return None


def _held() -> Unavailable:
    return Unavailable(
        f"a catalog is held by one writer at a time; another process has held it for {LOCK_TIMEOUT_MS / 1000:g} s; "
        f"try again"
    )


def _configure_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # the driver's own BEGIN comes too late to lock before reading
    connection.execute(f"pragma busy_timeout = {LOCK_TIMEOUT_MS}")
    _write_ahead(connection)
    connection.execute("pragma synchronous = full")
    connection.execute("pragma foreign_keys = on")


def _write_ahead(connection: sqlite3.Connection) -> None:
    # Connections that change a new file to WAL at once refuse one another, whatever the busy timeout.
    until = time.monotonic() + LOCK_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("pragma journal_mode = wal")
            return
        except sqlite3.OperationalError as error:
            if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() > until:
                raise
            time.sleep(0.002)


def _begin_sqlite(connection: sa.Connection) -> None:
    write = connection.get_execution_options().get("mms_write")
    connection.exec_driver_sql("begin immediate" if write else "begin")


def _begin_postgresql(connection: sa.Connection) -> None:
    if not connection.get_execution_options().get("mms_write"):
        return
    # For this transaction only, so that a pooler that hands connections around does no harm.
    connection.exec_driver_sql(
        f"select set_config('lock_timeout', '{LOCK_TIMEOUT_MS}', true), "
        f"set_config('idle_in_transaction_session_timeout', '{_IDLE_TIMEOUT_MS}', true)"
    )
    connection.exec_driver_sql(f"select pg_advisory_xact_lock({_LOCK})")
