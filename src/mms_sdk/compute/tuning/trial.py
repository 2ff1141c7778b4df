"""`mms.trial`: what a script that is tuned knows of its trial.

```python
params = {"lr": 1e-3, "width": 64} | mms.trial.params  # run alone, the defaults
```

Metrics of a `Trainer` come to the study by themselves. Anything else is told with `report`.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from mms_sdk.errors import InvalidRequest
from mms_sdk.storage import files
from mms_sdk.storage.metric_log import MetricLog

if TYPE_CHECKING:
    params: Params
    """The trial's values by name; empty where no trial runs."""
    number: int | None
    """Which trial of the study it is, from 0; None where no trial runs."""

VARIABLE = "MMS_TRIAL"
GIVEN, REPORTS, LOG, ERROR, MODEL = "trial.json", "metrics.jsonl", "log.txt", "error.json", "model"
"""What lies in a trial's folder."""


class _Exportable(Protocol):
    def export(self, folder: Path) -> None: ...


class Params(dict[str, Any]):
    """Values by name; a dict that says more about a name it does not have."""

    def __missing__(self, name: str) -> Any:
        if _here() is None:
            raise KeyError(
                f"no trial runs here, so that {name!r} has no value; say what it is then: "
                f"{{{name!r}: …}} | mms.trial.params"
            )
        raise KeyError(f"the study searches {', '.join(self)}; {name!r} is not among them; add it to space=")


def report(step: int, value: float) -> None:
    """Tells the study how the metric stands; the last value told is the trial's.

    Where no trial runs it does nothing, so that the script runs alone.

    Args:
        step: Epoch, or whatever it is measured by; each higher than the one before.
        value: The study's metric.

    Raises:
        InvalidRequest: The step is no whole number from 0 or not higher, or the value is no number.
    """
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise InvalidRequest(f"a report is of a step, a whole number from 0; got {step!r}")
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"a report is of one number; got {value!r}") from error
    if here := _here():
        here.report(step, number)


def returned(value: Any) -> None:
    """Takes what a function that is tuned returned: its metric, a result of training, or nothing.

    Raises:
        InvalidRequest: It is something else.
    """
    here = _here()
    if here is None or value is None or hasattr(value, "export"):
        return
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(
            f"a function that is tuned returns its metric, a result, or None; got {value!r}"
        ) from error
    here.report(here.last + 1, number)


def trained(result: _Exportable) -> None:
    """Keeps what `fit` returned as a model that can be registered; nothing where no trial runs."""
    if here := _here():
        here.keep(result)


class _Here:
    """The trial of this process.

    Args:
        folder: Of its job.
    """

    def __init__(self, folder: Path) -> None:
        told = orjson.loads((folder / GIVEN).read_bytes())
        self.folder = folder
        self.number: int = told["number"]
        self.params = Params(told["params"])
        self.last = -1
        self._metric: str = told["metric"]
        self._log: MetricLog | None = None

    def report(self, step: int, value: float) -> None:
        if step <= self.last:
            raise InvalidRequest(f"each report is of a higher step than the one before, {self.last}; got {step}")
        self.last = step
        self._log = self._log or MetricLog(self.folder / REPORTS)
        self._log.write({"step": step, "time": time.time(), self._metric: value})

    def keep(self, result: _Exportable) -> None:
        draft, model = self.folder / f".{MODEL}", self.folder / MODEL
        try:
            for there in (draft, model):  # of an earlier fit of the same trial
                files.remove_tree(there)
            result.export(files.make_folder(draft))
            draft.rename(model)
        except Exception:  # noqa: BLE001 (the trial's value is worth having without a model; its log says why)
            print("no model is kept of this trial, since it could not be exported:", file=sys.stderr)
            traceback.print_exc()


@cache
def _at(folder: str) -> _Here:
    return _Here(Path(folder))


def _here() -> _Here | None:
    folder = os.environ.get(VARIABLE)
    return _at(folder) if folder else None


def __getattr__(name: str) -> Any:
    here = _here()
    if name == "params":
        return here.params if here else Params()
    if name == "number":
        return here.number if here else None
    raise AttributeError(f"mms.trial has params, number and report; got {name!r}")
