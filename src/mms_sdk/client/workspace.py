"""`connect()`: the one way in, with or without a server."""

from __future__ import annotations

import atexit
import hmac
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, overload
from urllib.parse import urlsplit

from pydantic import BaseModel

from mms_sdk import html
from mms_sdk.client.api import Api
from mms_sdk.client.audit import Audit
from mms_sdk.client.dataset import Dataset
from mms_sdk.client.datasets import Datasets
from mms_sdk.client.deployments import Deployments
from mms_sdk.client.engines import Where, asked_on
from mms_sdk.client.evaluations import Evaluation
from mms_sdk.client.events import events
from mms_sdk.client.jobs import Job, Jobs
from mms_sdk.client.models import Models, ModelVersion, ref_of
from mms_sdk.client.quotas import Quotas
from mms_sdk.client.secrets import Secrets
from mms_sdk.client.studies import Script, Studies, Study
from mms_sdk.client.tokens import Tokens
from mms_sdk.client.transport import InProcessTransport
from mms_sdk.client.uploads import Uploads
from mms_sdk.errors import DatasetNotFound, InvalidName, InvalidRequest, Unauthenticated
from mms_sdk.schema.access import Principal
from mms_sdk.schema.backup import Backup
from mms_sdk.schema.event import Event
from mms_sdk.schema.job import Job as JobRecord
from mms_sdk.schema.names import parse_dataset_ref
from mms_sdk.schema.sources import ImageFolder
from mms_sdk.schema.tuning import Direction, Pruner, Sampler
from mms_sdk.settings import TOKEN_VARIABLE, ServerSettings, default_catalog, default_datasets, default_workspace
from mms_sdk.storage.stores.opening import store_at
from mms_sdk.storage.workspace import Workspace

_open: dict[Path, WorkspaceClient] = {}
_opening = threading.Lock()


class BulkResult(BaseModel):
    """What bulk prediction wrote.

    Attributes:
        path: The Parquet file: one row for each row in.
        rows: How many.
        errors: Rows without a prediction; their `error` column says why.
        first_error: Which was the first, and why.
        accuracy: Share of right answers, where labels are known.
        model: Which version.
        job: Which job.
    """

    path: Path
    rows: int
    errors: int
    first_error: str | None = None
    accuracy: float | None = None
    model: str
    job: str

    def __str__(self) -> str:
        told = f", accuracy {self.accuracy:.4f}" if self.accuracy is not None else ""
        failed = f", {self.errors:,} of them without a prediction, e.g. {self.first_error}" if self.errors else ""
        return f"{self.rows:,} rows by {self.model} in {self.path}{failed}{told}"

    __repr__ = __str__


class WorkspaceClient:
    """A workspace: its datasets, jobs, models and deployments. Made by `mms.connect()`.

    Attributes:
        datasets: Bring data in; list and get.
        jobs: What runs and ran.
        secrets: Values that jobs see as variables, by name.
        uploads: Send files to where the workspace is.
        quotas: How much the jobs of a project may take at once.
        tokens: Who may ask a server of this workspace for what.
        audit: Who changed what through a server, and who was refused.
        studies: What was tuned, and going on with it.
        models: Register, list, get, alias.
        deployments: Serve and ask.
    """

    def __init__(self, api: Api, where: str, workspace: Workspace | None) -> None:
        self._api = api
        self._workspace = workspace
        self.where = where
        self.datasets = Datasets(api, workspace)
        self.jobs = Jobs(api)
        self.secrets = Secrets(api)
        self.uploads = Uploads(api)
        self.quotas = Quotas(api)
        self.tokens = Tokens(api)
        self.audit = Audit(api)
        self.studies = Studies(api, workspace)
        self.models = Models(api, workspace)
        self.deployments = Deployments(api)

    def __repr__(self) -> str:
        return f"<mms workspace at {self.where}>"

    def _repr_html_(self) -> str:
        return html.facts("MMS workspace", self.status())

    @property
    def embedded(self) -> bool:
        """Whether it is this process's own, without a server."""
        return self._workspace is not None

    @property
    def folder(self) -> Path:
        """The folder of an embedded workspace.

        Raises:
            InvalidRequest: The workspace is a server's.
        """
        if self._workspace is None:
            raise InvalidRequest(f"the workspace at {self.where} is a server's; its folder is not on this side")
        return self._workspace.root

    def status(self) -> dict[str, Any]:
        """What is in the workspace, in a few words."""
        jobs = self.jobs.counts()
        return {
            "workspace": self.where,
            "datasets": ", ".join(dataset.ref for dataset in self.datasets.list()) or "none yet",
            "models": ", ".join(sorted({version.model for version in self.models.list()})) or "none yet",
            "deployments": ", ".join(each.name for each in self.deployments.list()) or "none",
            "jobs": f"{jobs.get('running', 0):,} running, {sum(jobs.values()):,} recorded" if jobs else "none yet",
        }

    def events(self, *, since: int = 0, follow: bool = False) -> Iterator[Event]:
        """What happened to jobs, oldest first: the newest hundred thousand events are kept.

        Args:
            since: The number of an event, behind which to begin.
            follow: Whether to wait for those that come, for as long as somebody reads.
        """
        return events(self._api, since=since, follow=follow)

    @overload
    def predict(
        self,
        model: str | ModelVersion,
        *,
        data: str | Path | ImageFolder | Dataset,
        to: str | Path,
        top: int = 0,
        progress: bool = True,
    ) -> BulkResult: ...

    @overload
    def predict(
        self,
        model: str | ModelVersion,
        *,
        data: str | Path | ImageFolder | Dataset,
        top: int = 0,
        on: Where,
        save_every: int = 8192,
    ) -> Job: ...

    def predict(
        self,
        model: str | ModelVersion,
        *,
        data: str | Path | ImageFolder | Dataset,
        to: str | Path | None = None,
        top: int = 0,
        on: Where | None = None,
        save_every: int = 8192,
        progress: bool = True,
    ) -> BulkResult | Job:
        """Predicts every row of a dataset, or every picture of a folder, into a Parquet file.

        The file has one row for each row in, in the same order: `row`, `source`, `label` where known, `predicted`,
        `score`, `ranked_labels`, `ranked_scores` and, for a picture that could not be read, `error`.

        Args:
            model: A version, or a reference such as `flowers@champion`.
            data: A dataset, a reference to one such as `flowers@7/test`, or a folder.
            to: The Parquet file; it appears whole or not at all, in place of one of that name. None with `on`.
            top: Ranked classes kept; 0 for all.
            on: What does it in place of this process, which need not stay: `local`, `ray`, or `mms.On(...)`.
            save_every: Rows after which what was predicted is saved: what is done again, at most, after a kill.
            progress: Show a bar on a terminal.

        Returns:
            What was written; with `on`, at once, the job. Once it has succeeded,
            `job.download("predictions.parquet", to)` brings the file.

        Raises:
            ModelNotFound, DatasetNotFound, SplitNotFound: There is none.
            InvalidRequest: `to` is no Parquet file, or its folder does not exist.
        """
        if (to is None) != (on is not None):
            raise InvalidRequest(
                f"predictions are written to a file here, to=, or by a job, on=, which keeps them; got to={to!r} and "
                f"on={on!r}"
            )
        asked = {"model": ref_of(model), "top": top, "save_every": save_every, **self._data(data)}
        if to is None:
            return Job(self._api, self._api.send("POST", "/v1/predictions", JobRecord, {**asked, "on": asked_on(on)}))
        target = Path(to).expanduser()
        if target.suffix != ".parquet" or target.is_dir():
            raise InvalidRequest(f"predictions are written to a Parquet file, e.g. predictions.parquet; got {target}")
        if not target.parent.is_dir():
            raise InvalidRequest(
                f"predictions are written into an existing folder; {target.parent} is none; make it first"
            )
        record = self._api.send("POST", "/v1/predictions", JobRecord, asked)
        job = Job(self._api, record).wait(progress=progress)
        path = job.download("predictions.parquet", target)
        names = ("rows", "errors", "first_error", "accuracy", "model")
        told: dict[str, Any] = {name: job.result.get(name) for name in names}
        return BulkResult(path=path, job=job.id, **told)

    @overload
    def evaluate(
        self,
        model: str | ModelVersion,
        *,
        data: str | Dataset,
        against: str | ModelVersion | None = None,
        slices: str | Sequence[str] = (),
        confidence: float = 0.95,
        resamples: int = 1000,
        seed: int = 0,
        on: None = None,
        progress: bool = True,
    ) -> Evaluation: ...

    @overload
    def evaluate(
        self,
        model: str | ModelVersion,
        *,
        data: str | Dataset,
        against: str | ModelVersion | None = None,
        slices: str | Sequence[str] = (),
        confidence: float = 0.95,
        resamples: int = 1000,
        seed: int = 0,
        on: Where,
        progress: bool = True,
    ) -> Job: ...

    def evaluate(
        self,
        model: str | ModelVersion,
        *,
        data: str | Dataset,
        against: str | ModelVersion | None = None,
        slices: str | Sequence[str] = (),
        confidence: float = 0.95,
        resamples: int = 1000,
        seed: int = 0,
        on: Where | None = None,
        progress: bool = True,
    ) -> Evaluation | Job:
        """Measures how well a version answers rows whose answer is known, and how sure that is.

        Metrics follow the task, whichever it is but a custom one. The interval of `accuracy` and of other shares of
        rows is Wilson's (1927); all others are percentiles of the bootstrap over rows. What is measured is kept with
        the version: `ws.models.get("flowers@1").evaluations`.

        Args:
            model: A version, or a reference such as `flowers@champion`.
            data: A dataset, or a reference to one such as `flowers@7/test`.
            against: Another version to compare with on the same rows, by the paired bootstrap and McNemar's test.
            slices: Columns by whose values metrics are told apart: classes, categories, numbers, times.
            confidence: Of each interval, from 0.5 to 0.999.
            resamples: Of the bootstrap, from 100 to 100,000.
            seed: Of the bootstrap; the same one gives the same intervals.
            on: What does it in place of this process, which need not stay: `local`, `ray`, or `mms.On(...)`.
            progress: Show a bar on a terminal.

        Returns:
            What was measured; with `on`, at once, the job, after whose end it is among the version's `evaluations`.

        Raises:
            ModelNotFound, DatasetNotFound, SplitNotFound, ColumnNotFound: There is none.
            InvalidRequest: The version's task is not measured so, the data is of another kind or has another target, or
                the versions do not answer the same.
            DataError: No row can be compared with, or answers are no finite numbers.
        """
        asked = {
            "model": ref_of(model),
            "dataset": data.ref if isinstance(data, Dataset) else data,
            "against": None if against is None else ref_of(against),
            "slices": [slices] if isinstance(slices, str) else list(slices),
            "confidence": confidence,
            "resamples": resamples,
            "seed": seed,
            "on": asked_on(on),
        }
        job = Job(self._api, self._api.send("POST", "/v1/evaluations", JobRecord, asked))
        return job if on is not None else Evaluation(self._api, job.wait(progress=progress).record)

    def tune(
        self,
        script: Script,
        *,
        space: Mapping[str, Any],
        metric: str,
        direction: Direction | None = None,
        trials: int | None = None,
        sampler: Sampler = "tpe",
        pruner: Pruner | None = None,
        parallel: int = 1,
        seed: int = 0,
        max_failures: int = 3,
        environment: Sequence[str] = (),
        name: str | None = None,
        progress: Literal["auto", "none"] = "auto",
    ) -> Study:
        """Runs a script again and again, each time with other values, and finds the best ones.

        Each trial is a process of its own, and a job. The script reads its values from `mms.trial.params`; metrics of a
        `Trainer` come to the study by themselves, others by `mms.trial.report`. A study that was stopped or killed is
        gone on with: `ws.studies.get(id).resume()`.

        Args:
            script: A path, a module's name, the text of a cell, or a function that is called with the space's names. It
                is copied when the study begins.
            space: By name `mms.Uniform`, `LogUniform`, `Integer` or `Choice`.
            metric: What trials are compared by, e.g. `val/accuracy`. Of a trained trial, that of its best checkpoint.
            direction: `minimize` or `maximize`; if left out losses and errors lower, everything else higher.
            trials: How many, those that end early or fail included; 20 if left out, or all points of a grid.
            sampler: `tpe` learns from the trials before, `random` does not, `grid` goes through all values.
            pruner: Which trials end early: `mms.ASHA()` or `mms.Hyperband(epochs)`; none if left out.
            parallel: Trials at once. They share the machine: GPUs one by one, CPU threads in equal parts.
            seed: Of the sampler. One trial at a time, the same seed asks for the same values.
            max_failures: So many trials in a row that fail end the study.
            environment: Names of variables that trials see beside those that every process needs.
            name: For people; the script's name if left out.
            progress: `auto` says how each trial ended.

        Raises:
            InvalidRequest: Options that do not fit, or a script that is not there or does not parse.
            JobFailed: Too many trials failed, or none gave a value.
            MissingExtra: Optuna is not installed.
        """
        asked = {
            "space": space,
            "metric": metric,
            "direction": direction,
            "trials": trials,
            "sampler": sampler,
            "pruner": pruner,
            "parallel": parallel,
            "seed": seed,
            "max_failures": max_failures,
            "environment": environment,
        }
        return self.studies.begin(script, asked, name=name, progress=progress)

    def backup(self, to: str | Path, *, keep: int | None = None) -> Backup:
        """Copies the workspace as it is now to another place, while jobs go on; only what is not there yet is sent.

        Args:
            to: The place: a folder, or a URL such as `s3://bucket/folder`, see `connect(datasets=)`. `mms.Backups(to)`
                lists, verifies and restores what is there.
            keep: How many of the newest copies stay there; all of them if left out.

        Raises:
            InvalidRequest: The workspace is a server's: it is backed up where it lies.
            Conflict: The place holds copies of another workspace, or they became a workspace themselves.
            Damaged: Something in the workspace is not what was written.
        """
        from mms_sdk.storage.backup.copies import Copies

        workspace = self._own("backed up")
        copies = Copies(store_at(to, copies=workspace.root / "copies"))
        made = copies.take(workspace)
        if keep is not None:
            copies.prune(keep)
        return made

    def replicate(
        self,
        to: str | Path,
        *,
        every_s: float,
        keep: int = 24,
        say: Callable[[str], None] = print,
        stop: threading.Event | None = None,
    ) -> None:
        """Backs the workspace up at regular times until it is interrupted or told to stop.

        A copy that fails, for a network or a full disk, is said and made the next time.

        Args:
            to: See `backup`.
            every_s: Seconds from the beginning of one copy to that of the next.
            keep: How many of the newest copies stay.
            say: Told about each copy.
            stop: Set it to end this from another thread.

        Raises:
            InvalidRequest, Conflict: See `backup`.
        """
        from mms_sdk.storage.backup.copies import Copies
        from mms_sdk.storage.backup.replicating import replicate

        if every_s <= 0:
            raise InvalidRequest(f"copies are made every so many seconds, more than 0; got every_s={every_s}")
        workspace = self._own("replicated")
        copies = Copies(store_at(to, copies=workspace.root / "copies"))
        replicate(workspace, copies, every_s=every_s, keep=keep, say=say, stop=stop or threading.Event())

    def verify(self) -> str:
        """Reads every byte of datasets, models and checkpoints and compares it with its digest.

        Returns:
            What was read, in words.

        Raises:
            InvalidRequest: The workspace is a server's.
            Damaged: Files that are gone or not what was written.
        """
        from mms_sdk.storage.backup.contents import verify

        read, size = verify(self._own("verified"))
        return f"{read:,} files, {size:,} bytes, all as they were written"

    def _own(self, done: str) -> Workspace:
        if self._workspace is None:
            raise InvalidRequest(
                f"a workspace is {done} where it lies; the one at {self.where} is a server's; run it there"
            )
        return self._workspace

    def close(self) -> None:
        """Waits for running jobs, ends deployments of this process, and lets go of the workspace."""
        with _opening:
            if self._workspace is not None:
                _open.pop(self._workspace.root, None)
            self._api.close()
            if self._workspace is not None:
                self._workspace.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _data(self, data: str | Path | ImageFolder | Dataset) -> dict[str, Any]:
        # A name means the dataset of that name where there is one; everything else is a folder.
        if isinstance(data, Dataset):
            return {"dataset": data.ref}
        if isinstance(data, str):
            try:
                self.datasets.get(parse_dataset_ref(data).name)
            except InvalidName:
                pass
            except DatasetNotFound:
                if not Path(data).expanduser().is_dir():
                    raise
            else:
                return {"dataset": data}
        folder = data if isinstance(data, ImageFolder) else ImageFolder(path=str(data))
        return {"source": {**folder.model_dump(), "path": str(Path(folder.path).expanduser().absolute())}}


def connect(
    url: str | None = None,
    *,
    workspace: str | Path | None = None,
    catalog: str | None = None,
    datasets: str | None = None,
    token: str | None = None,
    make: bool = True,
) -> WorkspaceClient:
    """Opens a workspace.

    Without a URL the workspace is a folder on this machine and everything runs in this process: no server is started
    and no port is opened. With one, the very same calls go to that server.

    Args:
        url: A server's address, e.g. `http://127.0.0.1:8765`.
        workspace: The folder; `$MMS_WORKSPACE`, or `~/mms-workspace`, if left out. Made if it is not there.
        catalog: The URL of the PostgreSQL database of the workspace's catalog; `$MMS_CATALOG`, or a SQLite file in the
            folder, if left out.
        datasets: Where the workspace's datasets lie: a folder, or the URL of an object store such as
            `s3://bucket/folder`; `$MMS_DATASETS`, or a folder in the workspace, if left out.
        token: For a server; `$MMS_TOKEN` if left out.
        make: Whether a folder that is not there becomes a new workspace; False to find a name that was mistyped.

    Returns:
        The workspace. Opening the same folder again in one process gives the same one.

    Raises:
        InvalidRequest: Both a URL and a folder or catalog, or something that is none; a workspace with another catalog.
        Unauthenticated: A URL without a token.
        NotFound: There is no workspace in the folder, and `make` is False.
        NotWritable: The folder cannot be made or written.
    """
    if url is None:
        folder = Path(workspace).expanduser() if workspace is not None else default_workspace()
        return _embedded(folder, catalog or default_catalog(), datasets or default_datasets(), make=make)
    if workspace is not None:
        raise InvalidRequest(f"a workspace is a folder or behind a URL, not both; got {workspace} and {url}")
    if catalog is not None:
        raise InvalidRequest(f"a catalog goes with a folder; the server at {url} has its own; leave catalog= out")
    if datasets is not None:
        raise InvalidRequest(f"datasets= goes with a folder; the server at {url} has its own; leave datasets= out")
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise InvalidRequest(f"a server's address begins with http:// or https://; got {url!r}; a folder is workspace=")
    try:
        _ = urlsplit(url).port
    except ValueError as error:
        raise InvalidRequest(f"a server's address is e.g. http://127.0.0.1:8765; got {url!r}: {error}") from error
    token = (token or os.environ.get(TOKEN_VARIABLE) or "").strip()  # a file of one ends with a newline
    if not token:
        raise Unauthenticated(
            f"a server wants a token; pass token=, or set {TOKEN_VARIABLE}, e.g. to the content of the file that "
            f"mms serve names when it starts"
        )
    if not (token.isascii() and token.isprintable()):  # HTTP would refuse it, and show it
        raise Unauthenticated(f"a token is one line of ASCII; this one is not; look at token= and {TOKEN_VARIABLE}")
    return WorkspaceClient(Api(url, token), url, None)


def _embedded(folder: Path, catalog: str | None, datasets: str | None, *, make: bool) -> WorkspaceClient:
    from mms_sdk.service.app import create_app

    with _opening:
        whole = folder.resolve()  # one folder, whichever way it was named
        workspace = Workspace(whole, catalog=catalog, datasets=datasets, make=make)
        if workspace.root in _open:
            return _open[workspace.root]
        # The token never leaves this process; it is there so that embedded requests pass the same door as all others.
        secret = secrets.token_urlsafe(32)
        person = Principal(name="embedded", role="admin")

        def find(token: str) -> Principal | None:
            return person if hmac.compare_digest(token, secret) else None

        try:
            app = create_app(workspace, ServerSettings(source_roots=None, audited=False), find=find)
            api = Api("http://localhost", secret, InProcessTransport(app))
        except BaseException:
            workspace.close()
            raise
        _open[workspace.root] = WorkspaceClient(api, str(workspace.root), workspace)
        return _open[workspace.root]


@atexit.register
def _close_all() -> None:
    for client in list(_open.values()):
        client.close()
