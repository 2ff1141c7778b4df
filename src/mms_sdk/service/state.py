"""What the routes work with: one object, handed over by the app."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, TypeVar

from fastapi import Depends, Request

from mms_sdk.compute.engines.base import Engine
from mms_sdk.errors import Forbidden, InvalidRequest
from mms_sdk.schema.access import Principal
from mms_sdk.schema.sources import CSV, HTTP, JSONL, SQL, Arrow, Files, ImageFolder, Parquet, Source, Union, WebDataset
from mms_sdk.schema.upload import PREFIX
from mms_sdk.service.deployments import Deployments
from mms_sdk.service.jobs import JobRunner
from mms_sdk.service.known_tokens import KnownTokens
from mms_sdk.service.streams import Streams
from mms_sdk.settings import RAY_VARIABLE, ServerSettings
from mms_sdk.storage.workspace import Workspace

_Any = TypeVar("_Any", ImageFolder, Source, Source | Union)


@dataclass(frozen=True)
class ServiceState:
    """What one app works with.

    Attributes:
        workspace: What it serves.
        settings: Limits and allow-lists.
        jobs: Jobs of this process.
        engines: Those of jobs that outlive it, by name.
        deployments: What is served.
        streams: Answers that go on.
        tokens: Whose a token is, as the guard knows it.
    """

    workspace: Workspace
    settings: ServerSettings
    jobs: JobRunner
    engines: Mapping[str, Engine]
    deployments: Deployments
    streams: Streams
    tokens: KnownTokens

    def engine(self, name: str) -> Engine:
        """The engine of that name.

        Raises:
            InvalidRequest: It is none of this workspace's.
        """
        if name not in self.engines:
            raise InvalidRequest(
                f"a job runs on an engine that there is; got {name!r}; there are {list(self.engines)}; ray is one "
                f"where ${RAY_VARIABLE} names a cluster"
            )
        return self.engines[name]

    def reconcile(self) -> None:
        """Brings the catalog and what runs on every engine together."""
        for engine in self.engines.values():
            engine.reconcile()

    def start_waiting(self) -> None:
        """Starts what waits and has room now, on every engine."""
        for engine in self.engines.values():
            engine.start_waiting()

    def resolved(self, source: _Any) -> _Any:
        """A source as it is read here: of an upload, with where its files lie.

        Raises:
            Forbidden: It, or something that a link in it leads to, lies outside the declared roots; or a database.
            NotFound: There is no such upload.
            Conflict: It is not complete.
            InvalidRequest: It is no path.
        """
        if isinstance(source, Union):
            return source.model_copy(update={"sources": tuple(self.resolved(each) for each in source.sources)})
        if not isinstance(source, SQL) and (source.path or "").startswith(PREFIX):
            return source.model_copy(update={"path": str(self.workspace.uploads.resolve(source.path or ""))})
        self._check_source(source)
        return source

    def _check_source(self, source: Source) -> None:
        roots = self.settings.source_roots
        if roots is None:
            return
        if isinstance(source, SQL):
            raise Forbidden("a server asks no database that a caller names; ingest with an embedded workspace")
        if isinstance(source, HTTP) and source.path is None:
            return  # where it leads is looked at when it is connected to
        path = source.path or ""
        if isinstance(source, CSV | JSONL | Parquet | Arrow | Files | WebDataset):
            path = _before_wildcards(path)
        try:
            asked = Path(os.path.realpath(Path(path).expanduser()))
        except (ValueError, RuntimeError) as error:  # a zero byte; the home of a user whom nobody knows
            raise InvalidRequest(f"a source is the path of a folder; {path[:200]!r} is none: {error}") from error
        allowed = [root.resolve() for root in roots]
        for place in chain([asked], _behind_links(asked) if allowed else ()):
            if not any(place.is_relative_to(root) for root in allowed):
                through = "" if place == asked else f", which has a link to {str(place)!r}"
                raise Forbidden(
                    f"this server reads sources only below {[str(root) for root in roots] or 'no folder at all'}; got "
                    f"{path!r}{through}; start it with mms serve --source-root FOLDER, or ingest with an embedded "
                    f"workspace"
                )


def _before_wildcards(pattern: str) -> str:
    # What a pattern can find lies below the part of it without wildcards, unless it goes up again.
    begin = re.split(r"[*?\[{]", pattern, maxsplit=1)[0]
    if begin == pattern:
        return pattern
    if ".." in Path(pattern).parts:
        raise InvalidRequest(f"a pattern does not go up by '..'; got {pattern[:200]!r}; write where it leads")
    if pattern.startswith("~") and "/" not in begin:  # whose home it is, would be known only once it is found
        raise InvalidRequest(f"a pattern names whose home it begins in; got {pattern[:200]!r}; write where it leads")
    return os.path.dirname(begin)


def _behind_links(folder: Path) -> Iterator[Path]:
    pending, seen = [folder], {folder}
    while pending:
        with contextlib.suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                path = Path(entry.path)
                if entry.is_symlink():
                    path = Path(os.path.realpath(path))
                    yield path
                if path not in seen and path.is_dir():
                    seen.add(path)
                    pending.append(path)


def service_state(request: Request) -> ServiceState:
    """The app's state, for a route."""
    state: ServiceState = request.app.state.service
    return state


def asking(request: Request) -> Principal:
    """Who is asking, for a route."""
    principal: Principal = request.scope["state"]["principal"]
    return principal


Service = Annotated[ServiceState, Depends(service_state)]
Asking = Annotated[Principal, Depends(asking)]
