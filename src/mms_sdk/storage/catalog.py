"""The catalog: what exists and what happened, in SQLite or PostgreSQL.

The catalog is the truth about jobs and model versions. Every change of state is a compare-and-set in one transaction,
so that two processes never both believe they made it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa

from mms_sdk.errors import Conflict, Damaged, JobNotFound, ModelNotFound, NotFound, Unavailable
from mms_sdk.schema.event import EventKind
from mms_sdk.schema.job import ENDED, Job, JobKind, JobState, Progress
from mms_sdk.schema.lineage import Reference, Way
from mms_sdk.schema.model import ModelCard
from mms_sdk.schema.names import ModelRef
from mms_sdk.storage import fence, lineage, migrations, noting, tables
from mms_sdk.storage.attempts import Attempts
from mms_sdk.storage.databases import database_at
from mms_sdk.storage.events import Events, record
from mms_sdk.storage.ids import new_id, now
from mms_sdk.storage.owners import is_alive, is_elsewhere, owner_of
from mms_sdk.storage.quotas import Quotas
from mms_sdk.storage.tokens import Tokens

_FINISH_WITHIN_S = 60.0  # a server that is restarted or replaced is back by then
_FINISH_AGAIN_S = 0.5
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Catalog:
    """One catalog database. Safe to use from several threads and processes.

    Args:
        where: A SQLite file, made if absent; or the URL of a PostgreSQL database, which must be there. Tables of an
            older MMS are migrated.

    Raises:
        Damaged: It is not a catalog, or comes from a newer MMS.
        Unavailable: The server does not answer.
        MissingExtra: PostgreSQL without psycopg.
    """

    def __init__(self, where: Path | str) -> None:
        self._database = database_at(where)
        self._engine = self._database.engine()
        try:
            self._migrate()
        except sa.exc.DatabaseError as error:
            self.close()
            raise Damaged(f"{self.name} is not a readable catalog ({error.orig}); {self._database.remedy}") from error
        except BaseException:
            self.close()
            raise
        self.jobs = Jobs(self)
        self.attempts = Attempts(self)
        self.events = Events(self)
        self.lineage = lineage.Lineages(self)
        self.quotas = Quotas(self)
        self.models = Models(self)
        self.deployments = Deployments(self)
        self.tokens = Tokens(self)

    @property
    def name(self) -> str:
        """Which database it is: a path, or a URL without user and password."""
        return self._database.name

    def give_to(self, workspace: str) -> None:
        """Makes it the catalog of one workspace, by its id, for good.

        Raises:
            Conflict: It is another's.
        """
        query = sa.select(tables.workspace.c.id)
        with self.reading() as connection:
            owner = connection.execute(query).scalar()
        if owner is None:
            with self.writing() as connection:
                owner = connection.execute(query).scalar()
                if owner is None:
                    connection.execute(sa.insert(tables.workspace).values(id=workspace))
                    return
        if owner != workspace:
            raise Conflict(
                f"a database holds the catalog of one workspace; {self.name} is that of workspace {owner}, this one is "
                f"{workspace}; give it a database of its own"
            )

    def close(self) -> None:
        """Closes all connections."""
        self._engine.dispose()

    @contextlib.contextmanager
    def reading(self, *, one_moment: bool = False) -> Iterator[sa.Connection]:
        """A transaction that only reads.

        Args:
            one_moment: All of its queries see the catalog as it was at the first; SQLite's always do.
        """
        options = {"isolation_level": "REPEATABLE READ"} if one_moment and self._engine.name == "postgresql" else {}
        with (
            self._database.errors(),
            self._engine.connect().execution_options(**options) as connection,
            connection.begin(),
        ):
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that holds the write lock from its beginning, so that reading and then writing is safe.

        Raises:
            Conflict: This process is of an attempt that is over.
        """
        fence.check()
        with (
            self._database.errors(),
            self._engine.connect().execution_options(mms_write=True) as connection,
            connection.begin(),
        ):
            yield connection

    def _migrate(self) -> None:
        if self._revision() == migrations.HEAD:
            return
        from alembic.util.exc import CommandError

        with self.writing() as connection:  # of processes that come here at once, the first finds something to do
            try:
                migrations.upgrade(connection)
            except CommandError as error:
                raise Damaged(f"{self.name} comes from a newer MMS ({error}); upgrade mms-sdk") from error

    def _revision(self) -> str | None:
        with self.reading() as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                return None
            return connection.execute(sa.text("select version_num from alembic_version")).scalar()


class Jobs:
    """Jobs and their states."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def start(
        self,
        kind: JobKind,
        name: str,
        spec: Mapping[str, Any],
        *,
        parent: str | None = None,
        inputs: Mapping[str, Reference] = _NOTHING,
    ) -> Job:
        """Records a job that this process begins now, on its own or as a part of another, and what it reads."""
        at = now()
        job = Job(
            id=new_id(),
            kind=kind,
            name=name,
            state="running",
            created_at=at,
            started_at=at,
            spec=dict(spec),
            owner=owner_of(os.getpid()),
            parent=parent,
        )
        with self._catalog.writing() as connection:
            connection.execute(sa.insert(tables.jobs).values(job.model_dump(mode="json")))
            record(connection, job.id, "running")
            lineage.record(connection, job.id, "input", inputs.items())
        return job

    def progress(self, job: str, progress: Progress) -> None:
        """Says how far a running job is; a catalog that is away for the moment hears it the next time."""
        with contextlib.suppress(Unavailable):  # hours of work are not given up for it
            self._set(job, {"progress": progress.model_dump()}, only_from=("running",))

    def finish(
        self,
        job: str,
        state: JobState,
        *,
        result: Mapping[str, Any] | None = None,
        error: Mapping[str, Any] | None = None,
        made: Sequence[Reference] = (),
    ) -> bool:
        """Records a job's one end, and what it made, once a catalog that is away is back, for which it waits a minute.

        That may be tried again, as the first end stays.

        Returns:
            False if the job had ended before; also if an earlier try did it and the answer was lost.

        Raises:
            Unavailable: The catalog did not come back.
        """
        values = {"state": state, "ended_at": now(), "result": dict(result or {}), "error": error and dict(error)}
        told = {"state": state, "reason": (error or {}).get("title", ""), "detail": (error or {}).get("detail", "")}
        until = time.monotonic() + _FINISH_WITHIN_S
        while True:
            try:
                return self._set(job, values, only_from=("queued", "running"), event="ended", told=told, made=made)
            except Unavailable:
                if time.monotonic() > until:
                    raise
                time.sleep(_FINISH_AGAIN_S)

    def get(self, job: str) -> Job:
        """One job.

        Raises:
            JobNotFound: There is none of that id.
        """
        with self._catalog.reading() as connection:
            row = connection.execute(sa.select(tables.jobs).where(tables.jobs.c.id == job)).mappings().first()
        if row is None:
            raise JobNotFound(f"no job {job!r}; list them with: mms jobs")
        return Job.model_validate(dict(row))

    def kept(self, job: str) -> Job:
        """One job of which what it left is still there.

        Raises:
            JobNotFound: There is none of that id.
            NotFound: Its files were removed.
        """
        found = self.get(job)
        if found.cleaned_at is not None:
            raise NotFound(
                f"what a job left stays until it is cleaned; that of job {job} was removed at {found.cleaned_at}, and "
                f"what is recorded of it is all there is; start it anew"
            )
        return found

    def list(
        self,
        *,
        limit: int = 50,
        before: str | None = None,
        kind: JobKind | None = None,
        parent: str | None = None,
        touching: Mapping[Way, Reference] = MappingProxyType({}),
    ) -> list[Job]:
        """Jobs, newest first; `before` is the id to go on from.

        Of one kind, the parts of one job, or those that read or made something, if so asked.
        """
        columns = tables.jobs.c
        query = sa.select(tables.jobs).order_by(columns.id.desc()).limit(limit)
        if before is not None:
            query = query.where(columns.id < before)
        if kind is not None:
            query = query.where(columns.kind == kind)
        if parent is not None:
            query = query.where(columns.parent == parent)
        for way, reference in touching.items():
            query = query.where(columns.id.in_(lineage.touching(way, reference)))
        return [*self._found(query)]

    def parts(self, job: str) -> Sequence[Job]:
        """All parts of a job, oldest first."""
        columns = tables.jobs.c
        return self._found(sa.select(tables.jobs).where(columns.parent == job).order_by(columns.id))

    def of(self, name: str, *, kind: JobKind, state: JobState) -> Sequence[Job]:
        """All jobs of a kind that worked on something and are in a state, newest first."""
        columns = tables.jobs.c
        found = sa.select(tables.jobs).where(columns.kind == kind, columns.name == name, columns.state == state)
        return self._found(found.order_by(columns.id.desc()))

    def begun_by(self, owner: str, *, kind: JobKind, since: str) -> Sequence[Job]:
        """Jobs that a process began, by `owner_of`, after the job `since`; oldest first."""
        columns = tables.jobs.c
        found = sa.select(tables.jobs).where(columns.kind == kind, columns.id > since, columns.owner == owner)
        return self._found(found.order_by(columns.id))

    def reopen(self, job: str) -> Job:
        """Makes a job that did not succeed a running one of this process, to go on with it.

        Raises:
            JobNotFound: There is none of that id.
            Conflict: It runs, or is done.
            NotFound: Its files were removed.
        """
        values: dict[str, Any] = {
            "state": "running",
            "owner": owner_of(os.getpid()),
            "ended_at": None,
            "error": None,
            "result": {},
        }
        if not self._set(job, values, only_from=("failed", "cancelled", "lost"), event="running"):
            state = self.kept(job).state
            raise Conflict(
                f"a job is gone on with once it has stopped before its end; {job} is {state}; "
                + ("wait for it, or stop it first" if state in ("queued", "running") else "start a new one")
            )
        return self.get(job)

    def _found(self, query: sa.Select[Any]) -> Sequence[Job]:
        with self._catalog.reading() as connection:
            return [Job.model_validate(dict(row)) for row in connection.execute(query).mappings()]

    def counts(self) -> dict[JobState, int]:
        """How many jobs there are in each state that any is in."""
        state = tables.jobs.c.state
        query = sa.select(state, sa.func.count()).group_by(state).order_by(state)
        with self._catalog.reading() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def reconcile(self) -> Sequence[str]:
        """Ends as `lost` every running job whose process is gone; for those that an engine runs, it does so.

        One of another machine is gone if it is a part of a job that has ended; else nothing is known of it.

        Returns:
            Ids of the jobs found lost.
        """
        columns = tables.jobs.c
        whole = tables.jobs.alias()
        query = (
            sa.select(columns.id, columns.kind, columns.owner, whole.c.state.label("of"))
            .join_from(tables.jobs, whole, whole.c.id == columns.parent, isouter=True)
            .where(columns.state.in_(("queued", "running")), columns.engine.is_(None))
        )
        with self._catalog.reading() as connection:
            rows = connection.execute(query).all()
        gone = [row for row in rows if (row.of in ENDED if is_elsewhere(row.owner) else not is_alive(row.owner))]
        return [row.id for row in gone if self.finish(row.id, "lost", error=_lost(row))]

    def _set(
        self,
        job: str,
        values: Mapping[str, Any],
        *,
        only_from: tuple[JobState, ...],
        event: EventKind | None = None,
        told: Mapping[str, Any] = _NOTHING,
        made: Sequence[Reference] = (),
    ) -> bool:
        table = tables.jobs
        this = (table.c.id == job, table.c.state.in_(only_from), table.c.cleaned_at.is_(None))
        query = sa.update(table).where(*this).values(**values)
        with self._catalog.writing() as connection:
            done = connection.execute(query).rowcount == 1
            if done and event is not None:
                record(connection, job, event, **told)
                lineage.record(connection, job, "output", (("", each) for each in made))
            return done


class Models:
    """Model versions and aliases."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def add(self, model: str, *, artifact: str, digest: str, size: int, card: ModelCard) -> int:
        """Makes an artefact the next version of a model; that row is the commit.

        Returns:
            The version's number.

        Raises:
            Conflict: The artefact is a version already.
        """
        table = tables.model_versions
        newest = sa.select(sa.func.max(table.c.version)).where(table.c.model == model)
        with self._catalog.writing() as connection:
            version = (connection.execute(newest).scalar() or 0) + 1
            row = {
                "model": model,
                "version": version,
                "created_at": now(),
                "artifact": artifact,
                "digest": digest,
                "bytes": size,
                "card": card.model_dump(mode="json"),
            }
            try:
                connection.execute(sa.insert(table).values(row))
            except sa.exc.IntegrityError as error:
                raise Conflict(f"artefact {artifact} is registered already; export the checkpoint again") from error
        noting.note(Reference(what="model", name=model, at=version), where=self._catalog.name)
        return version

    def resolve(self, ref: ModelRef) -> dict[str, Any]:
        """The row of the version that a reference names.

        Raises:
            ModelNotFound: There is no such model, version or alias.
        """
        table, alias = tables.model_versions, tables.aliases
        query = sa.select(table).where(table.c.model == ref.name)
        if isinstance(ref.version, int):
            query = query.where(table.c.version == ref.version)
        elif ref.version is None:
            query = query.order_by(table.c.version.desc()).limit(1)
        else:
            query = query.join(alias, (alias.c.model == table.c.model) & (alias.c.version == table.c.version)).where(
                alias.c.alias == ref.version
            )
        with self._catalog.reading() as connection:
            row = connection.execute(query).mappings().first()
        if row is None:
            raise ModelNotFound(self._missing(ref))
        return dict(row)

    def list(self, model: str | None = None) -> list[dict[str, Any]]:
        """Rows of all versions, of one model or of all, newest version first."""
        table = tables.model_versions
        query = sa.select(table).order_by(table.c.model, table.c.version.desc())
        if model is not None:
            query = query.where(table.c.model == model)
        with self._catalog.reading() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def set_alias(self, model: str, alias: str, version: int) -> None:
        """Points an alias at a version.

        Raises:
            ModelNotFound: There is no such version.
        """
        self.resolve(ModelRef(name=model, version=version))
        table = tables.aliases
        with self._catalog.writing() as connection:
            connection.execute(sa.delete(table).where(table.c.model == model, table.c.alias == alias))
            connection.execute(sa.insert(table).values(model=model, alias=alias, version=version))

    def aliases(self) -> dict[tuple[str, int], tuple[str, ...]]:
        """All aliases, by (model, version)."""
        table = tables.aliases
        found: dict[tuple[str, int], tuple[str, ...]] = {}
        with self._catalog.reading() as connection:
            for row in connection.execute(sa.select(table).order_by(table.c.alias)):
                key = (row.model, row.version)
                found[key] = (*found.get(key, ()), row.alias)
        return found

    def _missing(self, ref: ModelRef) -> str:
        rows = self.list(ref.name)
        if not rows:
            models = sorted({row["model"] for row in self.list()})
            return f"no model {ref.name!r}; there are {models or 'none yet'}"
        names = [alias for (model, _), held in self.aliases().items() if model == ref.name for alias in held]
        return (
            f"model {ref.name!r} has no version or alias {ref.version!r}; it has versions "
            f"{[row['version'] for row in rows]} and aliases {names}"
        )


class Deployments:
    """Deployments that a server brings back when it starts."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def keep(self, name: str, *, model: str, version: int, max_batch: int) -> None:
        """Records that a version is served under a name."""
        table = tables.deployments
        with self._catalog.writing() as connection:
            connection.execute(sa.delete(table).where(table.c.name == name))
            row = {"name": name, "model": model, "version": version, "max_batch": max_batch, "created_at": now()}
            connection.execute(sa.insert(table).values(row))

    def forget(self, name: str) -> None:
        """Records that a name is served no more."""
        with self._catalog.writing() as connection:
            connection.execute(sa.delete(tables.deployments).where(tables.deployments.c.name == name))

    def list(self) -> list[tuple[str, ModelRef, int]]:
        """Names, what they serve, and the rows they compute at once."""
        with self._catalog.reading() as connection:
            rows = connection.execute(sa.select(tables.deployments).order_by(tables.deployments.c.name)).all()
        return [(row.name, ModelRef(name=row.model, version=row.version), row.max_batch) for row in rows]


def _lost(job: Any) -> dict[str, str]:
    ways = {
        "train": f"resume={job.id!r} goes on from its newest checkpoint",
        "tune": f"ws.studies.get({job.id!r}).resume() goes on with it",
        "trial": "its study, resumed, runs it again",
    }
    again = ways.get(job.kind, "start the job again")
    return {"title": "lost", "detail": f"the process that did the work is gone; {again}"}
