"""A PostgreSQL server of our own, on a socket in a folder that is thrown away; also for measurements."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg

MISSING = "needs PostgreSQL's initdb; to have it: apt-get install postgresql"
# A language that sorts "AA" after "Z", so that what relies on the order of bytes does not get it by chance.
_DANISH = ("--encoding=UTF8", "--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=da")
_OPTIONS = ("fsync=off", "listen_addresses=", "shared_buffers=32MB", "max_connections=60")


def programs() -> Path | None:
    """The folder of the newest PostgreSQL's programs; Debian has one for each version, none of them on PATH."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    on_path = shutil.which("initdb")
    found = [path for path in folders if (path / "initdb").exists()] or [Path(on_path).parent if on_path else None]
    return found[-1]


@dataclass
class PostgresServer:
    """A server that asks for a password; started and stopped as often as a test likes."""

    folder: Path
    programs: Path
    password: str
    user: str | None  # whom it runs as; None: us
    process: subprocess.Popen[bytes] | None = None

    def url(self, database: str, *, password: str | None = None) -> str:
        secret = quote(self.password if password is None else password, safe="")
        return f"postgresql://mms:{secret}@/{database}?host={quote(str(self.folder), safe='')}"

    def make_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"mms_{secrets.token_hex(6)}"
        self.tell(f"create database {name}")
        return self.url(name)

    def tell(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        command = [self.programs / "postgres", "-D", self.folder / "data", "-k", self.folder]
        options = [word for option in _OPTIONS for word in ("-c", option)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *options], stdout=log, stderr=log, user=self.user, cwd=self.folder, start_new_session=True
            )
        until = time.monotonic() + 30
        while True:
            try:
                self.tell("select 1")
                return
            except psycopg.OperationalError:
                if self.process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError((self.folder / "log").read_text()) from None
                time.sleep(0.02)

    def stop(self) -> None:
        """Ends it at once, as a crash would: nobody is waited for."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(30)
            self.process = None


@contextmanager
def postgres_server(programs: Path) -> Iterator[PostgresServer]:
    """A server that runs until the block ends."""
    # PostgreSQL refuses to run as root; and a socket's path may have about a hundred characters, fewer than pytest's.
    user = _somebody() if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="mms-postgres-") as name:
        server = PostgresServer(Path(name), programs, "p@ss/w:%rd " + secrets.token_hex(8), user)
        (server.folder / "password").write_text(server.password)
        if user is not None:
            shutil.chown(server.folder, user)
            shutil.chown(server.folder / "password", user)
        command = [programs / "initdb", "-D", server.folder / "data", "--username=mms", "--auth=scram-sha-256"]
        done = subprocess.run(
            [*command, f"--pwfile={server.folder / 'password'}", "--no-sync", *_DANISH],
            capture_output=True,
            text=True,
            user=user,
            cwd=server.folder,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        try:
            server.start()
            yield server
        finally:
            server.stop()


def _somebody() -> str:
    names = {each.pw_name for each in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"
