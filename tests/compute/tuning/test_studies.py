"""Studies of small scripts that report by hand: real processes, and what the catalog holds afterwards."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import mms_sdk as mms
from mms_sdk.errors import Conflict, InvalidRequest, JobFailed, NotFound

TOY = """
import mms_sdk as mms
params = {"x": 1.0, "y": 2} | mms.trial.params
for step in range(3):
    mms.trial.report(step, params["x"] ** 2 + params["y"] + 2 - step)
print("trial", mms.trial.number, params)
"""
SPACE = {"x": mms.Uniform(-1, 1), "y": mms.Choice([1, 2])}


@pytest.fixture
def ws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[mms.WorkspaceClient]:
    monkeypatch.chdir(tmp_path)
    with mms.connect(workspace=tmp_path / "ws") as opened:
        yield opened


def tune(ws: mms.WorkspaceClient, script: Any, **asked: Any) -> mms.Study:
    return ws.tune(script, **{"space": SPACE, "metric": "loss", "progress": "none", **asked})


def stopped(ws: mms.WorkspaceClient, script: Any, said: str, **asked: Any) -> mms.Study:
    """A study that ends with an error, as it was recorded."""
    with pytest.raises(JobFailed, match=said):
        tune(ws, script, **asked)
    return ws.studies.list()[0]


def test_a_grid_is_complete_and_every_trial_is_recorded_with_what_it_was_given(ws: mms.WorkspaceClient) -> None:
    space = {"x": mms.Choice([-1.0, 0.0, 0.5, 1.0]), "y": mms.Integer(1, 5)}
    study = tune(ws, TOY, space=space, sampler="grid", parallel=2)

    points = list(itertools.product((-1.0, 0.0, 0.5, 1.0), range(1, 6)))
    assert [tuple(trial.params.values()) for trial in study.trials] == points
    assert [trial.value for trial in study.trials] == [x**2 + y for x, y in points]
    assert {(trial.state, trial.attempts) for trial in study.trials} == {("complete", 1)}
    assert study.best.params == {"x": 0.0, "y": 1}
    assert study.best.reports == {0: 3.0, 1: 2.0, 2: 1.0}
    assert study.record.result == {
        "trials": 20,
        "complete": 20,
        "pruned": 0,
        "failed": 0,
        "best": 5,
        "value": 1.0,
    }
    assert study.trials[7].logs() == "trial 7 {'x': 0.0, 'y': 3}\n"
    again = ws.studies.get(study.id)
    assert (again.state, again.best.number, again.spec) == ("succeeded", 5, study.spec)
    assert [job.record.parent for job in ws.jobs.list(50)] == [*[study.id] * 20, None]
    assert "loss 1" in repr(ws.jobs.list(50)).splitlines()[-1]
    with pytest.raises(Conflict, match="succeeded; start a new one"):
        study.resume()

    shown = study._repr_html_()
    assert shown.count("<polyline") == 20
    assert shown.count("<circle") == 20
    assert repr(study.parallel_coordinates()).splitlines()[1].split() == ["0.0", "1", "1.0"]
    assert "loss of 20 trials, from 1 to 6, best 1" in repr(study.history())
    assert "trial 5: loss 1.0; x=0.0, y=1" in repr(study)
    assert study.trial(5).record.id == study.best.job.id
    assert set(study.importance()) == {"x", "y"}
    with pytest.raises(NotFound, match="has trials 0 to 19; got 20"):
        study.trial(20)
    with pytest.raises(NotFound, match="trial 5 trained nothing"):
        _ = study.best.result
    with pytest.raises(NotFound, match="no model is kept of trial 5"):
        ws.models.register("toy", study.best)


def test_the_same_seed_gives_the_same_study(ws: mms.WorkspaceClient) -> None:
    first, second = (tune(ws, TOY, trials=4, seed=3, parallel=parallel, sampler="random") for parallel in (1, 2))
    assert [trial.params for trial in first.trials] == [trial.params for trial in second.trials]


def test_poor_trials_end_early_and_in_order(ws: mms.WorkspaceClient) -> None:
    script = """
import time
import mms_sdk as mms
try:
    for epoch in range(1, 200):
        mms.trial.report(epoch, mms.trial.params["y"])
        time.sleep(0.02 if mms.trial.params["y"] == 1 else 0.5)
finally:
    print("cleaned up")
"""
    space = {"y": mms.Choice([1, 9])}
    study = tune(ws, script, space=space, sampler="grid", pruner=mms.ASHA(min_epochs=2, reduction=2))
    good, poor = study.trials
    assert (good.state, good.value, len(good.reports)) == ("complete", 1, 199)
    assert (poor.state, poor.value) == ("pruned", 9)
    assert poor.record.state == "cancelled"
    assert "loss 9 at step 2 was not among the best" in repr(poor)
    assert poor.logs() == "cleaned up\n"
    assert 2 <= len(poor.reports) < 100
    assert study.record.result["pruned"] == 1


def test_a_failed_trial_leaves_its_traceback_and_the_study_goes_on(ws: mms.WorkspaceClient) -> None:
    script = """
import sys
import mms_sdk as mms
def fall(x):
    raise ValueError(f"no {x}")
match mms.trial.params["x"]:
    case 0: fall("luck")
    case 1: sys.exit("gave up")
    case 2: mms.trial.report(0, float("nan"))
    case 3: import os; os._exit(7)
    case 4: mms.trial.params["z"]
    case 5: mms.trial.report(3, 1.0); mms.trial.report(3, 1.0)
    case 6: pass
    case 7: mms.trial.report(0, 7); sys.exit()
"""
    study = tune(ws, script, space={"x": mms.Choice(list(range(8)))}, sampler="grid", max_failures=8, parallel=2)
    *failed, good = study.trials
    assert (good.state, good.value) == ("complete", 7)
    reasons = [trial.facts()["reason"] for trial in failed]
    assert reasons[0] == "ValueError: no luck"
    assert reasons[1] == "SystemExit: gave up"
    assert reasons[2] == "loss was nan, which compares with nothing"
    assert reasons[3] == "its process ended with code 7"
    assert "the study searches x; 'z' is not among them; add it to space=" in reasons[4]
    assert "each report is of a higher step than the one before, 3; got 3" in reasons[5]
    assert "the script ended without loss; nothing was trained or reported in its workspace" in reasons[6]
    log = failed[0].logs()
    assert log.startswith("Traceback")
    assert "worker.py" not in log
    assert 'cell.py", line 5, in fall\n    raise ValueError(f"no {x}")\n' in log
    assert study.record.result["failed"] == 7


def test_too_many_failures_in_a_row_end_it_with_the_reason(ws: mms.WorkspaceClient) -> None:
    study = stopped(
        ws, "\nraise OSError('no data')", "3 trials in a row failed, the last, trial 2, with: OSError: no data"
    )
    assert (study.state, len(study.trials)) == ("failed", 3)
    assert "OSError: no data" in study.facts()["reason"]
    with pytest.raises(NotFound, match="no trial of study"):
        _ = study.best
    assert repr(study.parallel_coordinates()) == "no trial is complete yet"


def test_a_study_without_a_value_has_failed(ws: mms.WorkspaceClient) -> None:
    stopped(ws, "\n1/0", "no trial of 2 gave a value: 0 ended early, 2 failed", trials=2)


def test_a_trial_whose_process_is_killed_runs_once_more(ws: mms.WorkspaceClient, tmp_path: Path) -> None:
    script = f"""
import os, pathlib, signal
import mms_sdk as mms
number = mms.trial.number
been = pathlib.Path({str(tmp_path)!r}) / f"been-{{number}}"
mms.trial.report(0, 5)
if number == 2 or (number == 0 and not been.exists()):
    been.touch()
    os.kill(os.getpid(), signal.SIGKILL)
mms.trial.report(1, number)
"""
    study = tune(ws, script, trials=3)
    first, second, third = study.trials
    assert (first.state, first.value, first.attempts) == ("complete", 0, 2)
    assert (second.state, second.attempts) == ("complete", 1)
    assert (third.state, third.attempts) == ("failed", 2)
    assert "ended by signal 9, as before" in third.facts()["reason"]
    earlier = [
        job for job in ws.jobs.list() if (job.record.spec.get("number"), job.record.spec.get("attempt")) == (0, 1)
    ]
    assert [(job.state, job.record.error and job.record.error["title"]) for job in earlier] == [("failed", "killed")]


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGTERM)", "raise SystemExit(143)"])
def test_a_trial_that_somebody_else_terminates_runs_once_more(ws: mms.WorkspaceClient, end: str) -> None:
    study = stopped(ws, f"\nimport os, signal\n{end}", "no trial of 1 gave a value", trials=1)
    (trial,) = study.trials
    assert (trial.state, trial.attempts) == ("failed", 2)
    assert "ended by signal 15, as before" in trial.facts()["reason"]


def test_what_a_trial_leaves_running_ends_with_it(ws: mms.WorkspaceClient, tmp_path: Path) -> None:
    script = f"""
import subprocess, sys
import mms_sdk as mms
left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(tmp_path / "left")!r}, "w").write(str(left.pid))
mms.trial.report(0, 1)
import os; os._exit(0)
"""
    assert tune(ws, script, trials=1).best.value == 1
    assert is_gone(int((tmp_path / "left").read_text()))


def test_an_interrupt_ends_every_process_and_resume_goes_on(
    ws: mms.WorkspaceClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"""
import os, pathlib, time
import mms_sdk as mms
folder = pathlib.Path({str(tmp_path)!r})
(folder / f"began-{{mms.trial.number}}-{{os.getpid()}}").touch()
while mms.trial.number >= 2 and not (folder / "go on").exists():
    time.sleep(0.05)
mms.trial.report(0, mms.trial.params["x"])
"""

    def interrupt() -> None:
        until = time.monotonic() + 60
        while len(list(tmp_path.glob("began-*"))) < 4 and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt) as told:
        tune(ws, script, trials=5, parallel=2)
    (study,) = ws.studies.list()
    assert told.value.__notes__ == [f"the study is {study.id}; ws.studies.get({study.id!r}).resume() goes on with it"]
    assert all(is_gone(int(path.name.split("-")[2])) for path in tmp_path.glob("began-*"))
    assert study.state == "cancelled"
    assert [trial.state for trial in study.trials] == ["complete", "complete", "stopped", "stopped"]
    asked = [trial.params for trial in study.trials]

    (tmp_path / "go on").touch()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    study.resume(progress="none")
    assert study.state == "succeeded"
    assert [trial.attempts for trial in study.trials] == [1, 1, 2, 2, 1]
    assert [trial.params for trial in study.trials][:4] == asked
    assert len(list(tmp_path.glob("began-*"))) == 7


def is_gone(pid: int) -> bool:
    until = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def test_a_script_finds_what_lies_beside_it_and_travels_as_it_was(
    ws: mms.WorkspaceClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "beside.py").write_text("WORTH = 4\n")
    (tmp_path / "random.py").write_text("raise RuntimeError('a file of the working folder is no library')\n")
    script = tmp_path / "code" / "train.py"
    script.write_text(
        "import os, pathlib, random, sys\nimport beside\nimport mms_sdk as mms\n"
        "assert __name__ == '__main__'\n"
        "assert pathlib.Path(__file__).parent.name == 'code'\n"
        "assert 'MMS_TOKEN' not in os.environ\n"
        "assert os.environ['MY_OWN'] == 'seen'\n"
        "assert mms.connect().folder == pathlib.Path('ws').resolve()\n"
        "mms.trial.report(0, beside.WORTH)\n"
    )
    monkeypatch.setenv("MMS_TOKEN", "secret")
    monkeypatch.setenv("MY_OWN", "seen")
    study = tune(ws, "code/train.py", trials=1, environment=["MY_OWN"])
    assert (study.best.value, study.record.name, study.spec.code.origin) == (4, "train", str(script))
    kept = ws.folder / "jobs" / study.id / "code" / "train.py"
    assert kept.read_bytes() == script.read_bytes()


def square(x: float, y: int) -> float:
    return x**2 + y


def test_a_function_is_tuned_by_its_text(ws: mms.WorkspaceClient) -> None:
    study = tune(ws, square, trials=2)
    assert [trial.value for trial in study.trials] == [square(**trial.params) for trial in study.trials]  # type: ignore[arg-type]
    assert study.record.name == "square"


def test_alone_a_script_has_its_defaults(tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text(TOY)
    done = subprocess.run([sys.executable, tmp_path / "toy.py"], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("trial None {'x': 1.0, 'y': 2}\n", "")
    assert mms.trial.params == {}
    with pytest.raises(KeyError, match=r"no trial runs here, so that 'lr' has no value"):
        _ = mms.trial.params["lr"]
    for step, value, said in ((-1, 1.0, "whole number from 0; got -1"), (0, "high", "of one number; got 'high'")):
        with pytest.raises(InvalidRequest, match=said):
            mms.trial.report(step, value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"space": {}}, "names at least one value"),
        ({"space": {"a b": mms.Uniform(0, 1)}}, "an identifier"),
        ({"sampler": "cmaes"}, "sampler is one of tpe, random, grid; got 'cmaes'"),
        ({"sampler": "grid"}, "a grid goes through values one by one, and x=Uniform"),
        ({"sampler": "grid", "space": {"y": mms.Integer(1, 2)}, "trials": 3}, "a grid of 2 points has no 3 trials"),
        ({"trials": 0}, "trials is a whole number from 1; got trials=0"),
        ({"trials": 2.5}, "got trials=2.5"),
        ({"parallel": 0}, "parallel=0"),
        ({"parallel": True}, "parallel=True"),
        ({"max_failures": 0}, "max_failures=0"),
        ({"seed": -1}, "seed is a whole number from 0; got seed=-1"),
        ({"metric": ""}, "a metric is named as training"),
        ({"metric": "epoch"}, "got 'epoch'"),
        ({"direction": "up"}, "direction is one of None, minimize, maximize; got 'up'"),
        ({"pruner": "asha"}, r"pruner is mms.ASHA(), mms.Hyperband(max_epochs=…) or None; got 'asha'"),
        ({"environment": "HOME"}, "lists names of variables, e.g. ['MY_DATA']; got 'HOME'"),
        ({"progress": "bar"}, "progress is one of auto, none"),
        ({"name": "No Name"}, "a study name has"),
        ({"script": "train.py"}, "there is no file"),
        ({"script": "\nx = ("}, "was never closed"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_recorded(
    ws: mms.WorkspaceClient, asked: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        tune(ws, asked.pop("script", TOY), **asked)
    assert said in refused.value.message
    assert ws.jobs.list() == []


def test_a_study_is_no_other_job(ws: mms.WorkspaceClient) -> None:
    tune(ws, TOY, trials=1)
    trial, study = ws.jobs.list()
    assert ws.studies.get(study.id).id == study.id
    with pytest.raises(mms.errors.JobNotFound, match="is no study but a trial job"):
        ws.studies.get(trial.id)
    with pytest.raises(mms.errors.JobNotFound):
        ws.studies.get("nope")


def test_without_optuna_the_pip_line_is_said(ws: mms.WorkspaceClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(mms.errors.MissingExtra, match=r'pip install "mms-sdk\[tune\]"'):
        tune(ws, TOY)
    assert ws.jobs.list() == []
