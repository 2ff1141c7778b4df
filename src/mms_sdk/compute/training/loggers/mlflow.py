"""A run's metrics in MLflow; `mms.loggers.MLflow`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mms_sdk.compute.training.callbacks import Begun, Ending, Record
from mms_sdk.compute.training.loggers.records import flat, numbers
from mms_sdk.compute.training.loggers.sending import Sending
from mms_sdk.errors import InvalidRequest, MissingExtra

_STATUS = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}
_LONGEST_NAME, _LONGEST_VALUE, _AT_ONCE = 250, 5000, 100  # what MLflow's servers take; 1000 metrics in a call
_ODD = re.compile(r"[^\w\-. ]|^\.+$")  # a part of nothing but dots means another folder


@dataclass
class MLflow:
    """A run in an experiment of MLflow, tagged with `mms.run`, the id of the job that the run began as, and `mms.job`.

    A run that is continued goes on in the same run of MLflow. Nothing there can be taken back, so that steps that are
    done again are not written again. Options are parameters; those that a continuation changed are tags. All of it is
    sent by a thread of its own: a server that is away is tried again while the run goes on, and waited for at its end.

    Attributes:
        experiment: Its name; made if there is none.
        tracking_uri: Of the server, or e.g. `sqlite:///mlflow.db`; None for `$MLFLOW_TRACKING_URI`.
        wait_s: How long the end of a run waits for what is not sent yet.

    Raises:
        MissingExtra: mlflow is not installed.
        InvalidRequest: The experiment has no name.
    """

    experiment: str
    tracking_uri: str | None = field(default=None, kw_only=True)
    wait_s: float = field(default=10.0, kw_only=True)
    _sending: Sending | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.experiment or not isinstance(self.experiment, str):
            raise InvalidRequest(f"an experiment of MLflow has a name; got {self.experiment!r}")
        try:
            import mlflow  # noqa: F401
        except ImportError as error:
            raise MissingExtra("mlflow", extra="mlflow") from error

    def begin(self, run: Begun) -> None:
        """Begins to send."""
        self._sending = Sending("MLflow", _Run(self.experiment, self.tracking_uri), run)

    def log(self, record: Record) -> None:
        """Nothing: what is sent is read from the metric log."""

    def end(self, state: Ending, why: str) -> None:
        """Sends the rest."""
        assert self._sending is not None
        self._sending.end(state, why, wait_s=self.wait_s)


class _Run:
    """A run of MLflow."""

    def __init__(self, experiment: str, tracking_uri: str | None) -> None:
        self._experiment, self._tracking_uri = experiment, tracking_uri
        self._newest: dict[str, int] = {}

    def open(self, run: Begun) -> None:
        """Finds the run by its tag and what it has got, or makes it."""
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(self._tracking_uri)
        there = self._find(run.run)
        self._id = there.info.run_id
        self._newest = {name: self._newest_step(name) for name in there.data.metrics}
        self._client.update_run(self._id, status="RUNNING")
        self._describe(run, there.data.params)

    def write(self, records: Sequence[Record]) -> None:
        """Sends the metrics it has not got yet."""
        from mlflow.entities import Metric

        new: list[Any] = []
        for record in records:
            step, at_ms = int(record["step"]), int(record["time"] * 1000)
            for name, value in numbers(record).items():
                if step > self._newest.get(key := allowed_name(name), -1):
                    new.append(Metric(key, value, at_ms, step))
        for first in range(0, len(new), _AT_ONCE):
            some = new[first : first + _AT_ONCE]
            self._client.log_batch(self._id, metrics=some)
            self._newest |= {metric.key: metric.step for metric in some}

    def close(self, state: Ending, why: str) -> None:
        """Sets its status."""
        self._client.set_tag(self._id, "mms.stopped", why[:_LONGEST_VALUE])
        self._client.set_terminated(self._id, _STATUS[state])

    def _find(self, run: str) -> Any:
        found = self._client.get_experiment_by_name(self._experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(self._experiment)
        runs = self._client.search_runs([experiment], filter_string=f"tags.`mms.run` = '{run}'", max_results=1)
        return runs[0] if runs else self._client.create_run(experiment, tags={"mms.run": run}, run_name=run)

    def _newest_step(self, name: str) -> int:
        return max((metric.step for metric in self._client.get_metric_history(self._id, name)), default=-1)

    def _describe(self, run: Begun, known: dict[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        options = {allowed_name(name): str(value)[:_LONGEST_VALUE] for name, value in flat(run.options).items()}
        new = [Param(name, value) for name, value in options.items() if name not in known]
        changed = {name: value for name, value in options.items() if known.get(name, value) != value}
        tags = {"mms.job": run.job, "mms.dataset": run.dataset, **{f"mms.{name}": changed[name] for name in changed}}
        for first in range(0, len(new), _AT_ONCE):
            self._client.log_batch(self._id, params=new[first : first + _AT_ONCE])
        self._client.log_batch(self._id, tags=[RunTag(name, value) for name, value in tags.items()])


def allowed_name(name: str) -> str:
    """A name as MLflow takes it: letters, digits, `_-. ` and `/` between them; others become e.g. `_x40_`."""
    safe = "/".join(_ODD.sub(_coded, part) or "_" for part in name.split("/"))
    if len(safe) <= _LONGEST_NAME:
        return safe
    return f"{safe[: _LONGEST_NAME - 17]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _coded(odd: re.Match[str]) -> str:
    return "".join(f"_x{ord(character):x}_" for character in odd[0])
