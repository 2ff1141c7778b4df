"""What holds for every engine: subclass `EngineConformance` and give it one, on a workspace of its own.

```python
class TestMyEngine(EngineConformance):
    @pytest.fixture
    def engine(self, workspace):
        return MyEngine(workspace)
```
"""

from __future__ import annotations

import os
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import pytest

from mms_sdk.compute.described import Desk, do
from mms_sdk.compute.engines.base import Engine
from mms_sdk.compute.engines.folder import COOKIE, LOG, attempt_folder, of_rank
from mms_sdk.compute.engines.machine import environment
from mms_sdk.errors import Conflict, InvalidRequest, JobNotFound, MmsError, from_problem
from mms_sdk.schema.base import Schema
from mms_sdk.schema.cleaning import DropDuplicates, DropUnreadable
from mms_sdk.schema.job import Attempt, DescribedKind, Ended, Job, JobRequest, JobSpec, Resources, Retry
from mms_sdk.schema.prediction import PredictJob
from mms_sdk.schema.sources import ImageFolder
from mms_sdk.schema.specs import IngestSpec
from mms_sdk.storage.bundles import pack
from mms_sdk.storage.workspace import Workspace
from mms_sdk.testing import described

_T = TypeVar("_T")
_WITHIN_S = 30.0
_LOOK_S = 0.02

STAYS = """
import sys, time
from pathlib import Path
name, folder = sys.argv[1], Path(sys.argv[2])
(folder / name).write_text(repr(time.time()))
while not (folder / f"{name}-go").exists():
    time.sleep(0.01)
"""
"""A script that says by a file of its name that it has begun, and stays until one of its name and `go` is there."""

TREE = """
import os, signal, subprocess, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
def stay(name):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (folder / f"pid-{name}-{os.getpid()}").touch()
    while "end" not in sys.argv or name != "worker":
        time.sleep(0.01)
def daemon(do):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            do()
        os._exit(0)
    os.wait()
if os.fork() == 0:
    stay("child")
daemon(lambda: stay("daemon"))
bare = "import os, sys, time; open(sys.argv[1] + '/pid-bare-' + str(os.getpid()), 'w'); time.sleep(100)"
if "bare" in sys.argv:
    daemon(lambda: os.execve(sys.executable, [sys.executable, "-c", bare, str(folder)], {}))
while len(list(folder.glob("pid-*"))) < 2 + ("bare" in sys.argv):
    time.sleep(0.01)
if "end" not in sys.argv:
    stay("worker")
"""
"""A script of processes that do not listen, two of them in sessions of their own, one of these without variables."""

RUNS_AWAY = """
import os, time
until = time.monotonic() + 60
if os.fork() == 0:
    while time.monotonic() < until:
        if os.fork():
            os._exit(0)
time.sleep(0.1)
"""
"""A script that starts another of its kind and ends, again and again, and so is on no list of processes for long."""


GANG = """
import os, signal, sys, time
from pathlib import Path
import jax, numpy as np
from jax.experimental import multihost_utils
gather = lambda value: np.asarray(multihost_utils.process_allgather(np.int32(value)))
rank = jax.process_index()
print("rank", rank, "of", jax.process_count(), flush=True)
total = gather(rank + 5).sum()
{}
"""
"""A script of several processes, which know their numbers and what those are in all; its end is filled in."""


class Jobs:
    """Jobs that a test submits; whatever it left behind is ended after it.

    Args:
        workspace: Where.
        engine: What runs them.
        within_s: How long their ends are waited for.
    """

    def __init__(self, workspace: Workspace, engine: Engine, *, within_s: float = _WITHIN_S) -> None:
        self.workspace = workspace
        self.engine = engine
        self.within_s = within_s

    def submit(self, text: str, *args: object, wait_s: float = 0.1, times: int = 3, **asked: Any) -> str:
        """Puts the text of a script into the queue, and starts it if there is room; returns the job's id."""
        job = self.put(text, *args, wait_s=wait_s, times=times, **asked)
        self.engine.start_waiting()
        return job

    def put(self, text: str, *args: object, wait_s: float = 0.1, times: int = 3, **asked: Any) -> str:
        """Puts the text of a script into the queue, as somebody does who is gone before it is started."""
        asked.setdefault("bundle", self.workspace.bundles.keep(pack({"code/run.py": text.encode()})))
        of_machine = {name: asked.pop(name) for name in Resources.model_fields if name in asked}
        spec = JobSpec(
            entrypoint="code/run.py",
            args=tuple(map(str, args)),
            python=asked.pop("python", sys.executable),
            inherited=environment(os.environ),
            retry=Retry(times=times, wait_s=wait_s),
            resources=Resources(**of_machine),
            **asked,
        )
        self.engine.check(spec)
        request = JobRequest(kind="script", name="test", spec=spec, engine=self.engine.name)
        return self.workspace.catalog.attempts.submit(request).id

    def describe(self, kind: DescribedKind, name: str, request: Schema, *, times: int = 3, **of_machine: Any) -> str:
        """Puts described work into the queue, and starts it if there is room; returns the job's id."""
        spec = JobSpec(
            request=request.model_dump(mode="json"),
            python=sys.executable,
            inherited=environment(os.environ),
            retry=Retry(times=times, wait_s=0.1),
            resources=Resources(**of_machine),
        )
        self.engine.check(spec)
        asked = JobRequest(kind=kind, name=name, spec=spec, engine=self.engine.name)
        job = self.workspace.catalog.attempts.submit(asked).id
        self.engine.start_waiting()
        return job

    def here(self, kind: DescribedKind, name: str, request: Schema) -> Job:
        """Does described work in this process."""
        jobs = self.workspace.catalog.jobs
        job = jobs.start(kind, name, {})
        desk = Desk(workspace=self.workspace, job=job.id, name=name, tell=lambda _: None)
        jobs.finish(job.id, "succeeded", result=do(kind, request.model_dump(mode="json"), desk))
        return jobs.get(job.id)

    def get(self, job: str) -> Job:
        """A job, as the catalog has it."""
        return self.workspace.catalog.jobs.get(job)

    def attempts(self, job: str) -> list[Attempt]:
        """The attempts at it."""
        return self.workspace.catalog.attempts.of(job)

    def ended(self, job: str, *, alone: bool = False, within_s: float | None = None) -> Job:
        """Waits for its end.

        Args:
            job: Which.
            alone: Whether nobody looks after it but what it was started with.
            within_s: How long, if not as long as ever.
        """

        def look() -> Job | None:
            if not alone:
                self.engine.reconcile()
            found = self.get(job)
            return found if found.ended else None

        return until(look, f"the end of {job}", within_s=within_s or self.within_s)

    def end_of(self, job: str) -> Ended:
        """Waits for the end of a job; returns how its last attempt ended."""
        self.ended(job)
        ended = self.attempts(job)[-1].ended
        assert ended is not None
        return ended

    def log(self, job: str, attempt: int = 1, *, rank: int = 0) -> bytes:
        """What a rank of an attempt printed."""
        return (attempt_folder(self.workspace.job_folder(job), attempt) / of_rank(LOG, rank)).read_bytes()

    def left(self, job: str) -> list[int]:
        """Processes of a job that are there."""
        return [process.pid for process in psutil.process_iter() if _is_of(process, job)]

    def workers(self, job: str) -> list[int]:
        """Processes that run a job's code, or do what it describes."""
        of_job = (process for process in psutil.process_iter() if _is_of(process, job))
        return [process.pid for process in of_job if "mms_sdk.compute.worker" in process.cmdline()]

    def end_all(self) -> None:
        """Cancels what has not ended, and waits for it."""
        for job in self.workspace.catalog.jobs.list(limit=500):
            if job.engine and not job.ended:
                try:
                    self.engine.cancel(job.id)
                except Conflict:  # it has ended
                    continue
                self.ended(job.id)


def until(look: Callable[[], _T | None], what: str, *, within_s: float = _WITHIN_S) -> _T:
    """Looks until it sees something; returns that."""
    last = time.monotonic() + within_s
    while not (seen := look()):
        assert time.monotonic() < last, f"waited {within_s:g} s for {what}"
        time.sleep(_LOOK_S)
    return seen


def runs(pid: int) -> bool:
    """Whether a process is there and does something."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _make_wheel(folder: Path, name: str, code: str) -> None:
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", code)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


class EngineConformance:
    """Tests of the rules of `Engine`, on the one that the fixture `engine` gives, of the fixture `workspace`."""

    within_s = _WITHIN_S
    """How long to wait for what an engine does, at most."""
    soon_s = 10.0
    """How long that takes that is done at once."""

    @pytest.fixture
    def workspace(self, tmp_path: Path) -> Iterator[Workspace]:
        """An empty one."""
        workspace = Workspace(tmp_path / "workspace")
        yield workspace
        workspace.close()

    @pytest.fixture
    def jobs(self, workspace: Workspace, engine: Engine) -> Iterator[Jobs]:
        """Jobs of that workspace, which are ended after the test."""
        jobs = Jobs(workspace, engine, within_s=self.within_s)
        yield jobs
        jobs.end_all()

    @pytest.fixture
    def marks(self, tmp_path: Path) -> Path:
        """A folder in which jobs say what they do."""
        folder = tmp_path / "marks"
        folder.mkdir()
        return folder

    def test_there_is_room_for_something(self, engine: Engine) -> None:
        """And what asks for more than there is, is refused."""
        room = engine.room()
        assert room.cpus >= 1
        assert room.memory > 0
        assert len(set(room.gpus)) == len(room.gpus)
        spec = JobSpec(bundle="0" * 64, entrypoint="run.py")
        engine.check(spec)
        for more in ({"cpus": room.cpus + 1}, {"gpus": len(room.gpus) + 1}, {"memory": room.memory + 1}):
            with pytest.raises(InvalidRequest):
                engine.check(spec.model_copy(update={"resources": Resources(**more)}))

    def test_a_script_runs_with_its_arguments_and_variables(self, jobs: Jobs) -> None:
        """As the main program, beside its files; what it prints on either stream is kept in order."""
        text = (
            "import os, sys\n"
            "print(__name__, sys.argv[1:], os.environ['COLOUR'], os.path.basename(__file__), flush=True)\n"
            "print('and this', file=sys.stderr)\n"
            "import beside\n"
        )
        bundle = jobs.workspace.bundles.keep(pack({"code/run.py": text.encode(), "code/beside.py": b"print('more')"}))
        job = jobs.submit(text, "a b", "--c", bundle=bundle, environment={"COLOUR": "red"})
        record = jobs.ended(job)
        assert (record.state, record.error) == ("succeeded", None)
        assert jobs.log(job) == b"__main__ ['a b', '--c'] red run.py\nand this\nmore\n"
        (attempt,) = jobs.attempts(job)
        assert attempt.ended is not None
        assert (attempt.ended.reason, attempt.ended.exit_code, attempt.ended.signal) == ("succeeded", 0, None)
        assert attempt.ended.lines[-1] == "more"
        assert record.started_at is not None
        assert record.created_at <= record.started_at <= attempt.ended.at

    def test_connect_opens_the_workspace(self, jobs: Jobs) -> None:
        """In which the job itself is found."""
        text = (
            "import os\nimport mms_sdk as mms\nwith mms.connect() as ws:\n    print(ws.jobs.get(os.environ['MMS_JOB']))"
        )
        job = jobs.submit(text)
        assert jobs.ended(job).state == "succeeded"
        assert job in jobs.log(job).decode()

    def test_a_secret_reaches_the_script_and_is_masked_in_what_is_kept(self, jobs: Jobs) -> None:
        """Whatever prints it. One that is gone by then is told, and not waited for."""
        value = os.urandom(16).hex()
        jobs.workspace.secrets.set("A_TOKEN", value.encode())
        text = (
            "import os, sys\nprint(os.environ['A_TOKEN'][::-1], os.environ['A_TOKEN'], flush=True)\n"
            "raise ValueError(os.environ['A_TOKEN'])\n"
        )
        job = jobs.submit(text, secrets=("A_TOKEN",))
        ended = jobs.end_of(job)
        assert (ended.reason, ended.detail) == ("user", "ValueError: ***")
        assert jobs.log(job).startswith(f"{value[::-1]} ***\n".encode())
        folder = jobs.workspace.job_folder(job)
        kept = [path for path in folder.rglob("*") if path.is_file() and value.encode() in path.read_bytes()]
        assert (kept, value in str(jobs.get(job)) + str(ended)) == ([], False)
        jobs.workspace.secrets.remove("A_TOKEN")
        ended = jobs.end_of(jobs.submit(text, secrets=("A_TOKEN",)))
        assert ended.reason == "user"
        assert "no secret A_TOKEN" in ended.detail

    def test_what_a_script_requires_is_there(self, jobs: Jobs, marks: Path) -> None:
        """For that job; one that cannot be had ends the job that asks for it, with pip's words."""
        name = f"conforms_{os.urandom(4).hex()}"
        _make_wheel(marks, name, "VALUE = 'of a wheel'")
        options = {"NO_INDEX": "1", "FIND_LINKS": str(marks), "CONFIG_FILE": os.devnull}
        offline = {f"PIP_{option}": value for option, value in options.items()}
        text = f"import {name}\nprint({name}.VALUE)"
        job = jobs.submit(text, requirements=(f"{name}==1.0",), environment=offline)
        assert jobs.ended(job, within_s=self.within_s * 4).state == "succeeded"
        assert jobs.log(job).endswith(b"of a wheel\n")
        for requirements in ((), (f"{name}==2.0",)):
            job = jobs.submit(text, requirements=requirements, environment=offline)
            jobs.ended(job, within_s=self.within_s * 4)
            ended = jobs.end_of(job)
            assert ended.reason == "user"
            assert ("==2.0" in ended.detail) == bool(requirements)

    @pytest.mark.parametrize(
        ("text", "detail", "code"),
        [
            ("def f():\n    raise KeyError('abc')\nf()", "KeyError: 'abc'", 1),
            ("raise ValueError('file \\udcff')", "ValueError: file ?", 1),
            ("this is no python", "SyntaxError: invalid syntax (run.py, line 1)", 1),
            ("raise SystemExit(7)", "it ended with exit code 7", 7),
            ("import os; os._exit(9)", "it ended with exit code 9", 9),
            ("import sys; sys.exit('said at the end')", "it ended with exit code 1", 1),
        ],
        ids=["raises", "half a character", "no python", "exits", "exits at once", "exits with a word"],
    )
    def test_what_the_script_does_wrong_is_its_own(self, jobs: Jobs, text: str, detail: str, code: int) -> None:
        """It is told what, and the job is not tried again."""
        job = jobs.submit(text)
        ended = jobs.end_of(job)
        assert (ended.reason, ended.detail, ended.exit_code) == ("user", detail, code)
        assert jobs.get(job).state == "failed"
        assert jobs.get(job).error == {"title": "user", "detail": detail}
        assert len(jobs.attempts(job)) == 1
        if code == 1:
            assert detail.partition(": ")[0].encode() in jobs.log(job) or b"said at the end" in jobs.log(job)

    def test_exit_code_0_is_a_success(self, jobs: Jobs) -> None:
        """However it is said."""
        for text in ("import sys; sys.exit()", "raise SystemExit(0)", "import os; os._exit(0)"):
            assert jobs.ended(jobs.submit(text)).state == "succeeded"

    def test_what_is_ended_by_a_signal_is_tried_again(self, jobs: Jobs, marks: Path) -> None:
        """With pauses that grow, by nobody but what looks after the job."""
        text = (
            "import os, sys, signal\nfrom pathlib import Path\n"
            "count = len(list(Path(sys.argv[1]).iterdir()))\n(Path(sys.argv[1]) / str(count)).touch()\n"
            "if count < 2:\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        job = jobs.submit(text, marks, wait_s=0.3)
        assert jobs.ended(job, alone=True).state == "succeeded"
        first, second, third = jobs.attempts(job)
        for attempt in (first, second):
            assert attempt.ended is not None
            assert (attempt.ended.reason, attempt.ended.exit_code) == ("infra", None)
            assert attempt.ended.signal == "SIGKILL"
        assert [attempt.number for attempt in (first, second, third)] == [1, 2, 3]
        assert _between_s(first, second) >= 0.3
        assert _between_s(second, third) >= 0.6

    def test_it_is_tried_again_at_most_so_often(self, jobs: Jobs) -> None:
        """And then it has failed."""
        text = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
        for times in (0, 2):
            job = jobs.submit(text, times=times, wait_s=0)
            record = jobs.ended(job)
            assert (record.state, record.error and record.error["title"]) == ("failed", "infra")
            assert len(jobs.attempts(job)) == times + 1

    def test_what_takes_too_long_is_ended(self, jobs: Jobs, marks: Path) -> None:
        """With all it started, after its grace, and is not tried again."""
        job = jobs.submit(TREE, marks, time=0.5, grace_s=0.2)
        ended = jobs.end_of(job)
        assert (ended.reason, jobs.get(job).state) == ("timeout", "failed")
        assert "at most 0.5 s" in ended.detail
        assert jobs.left(job) == []
        assert len(jobs.attempts(job)) == 1

    def test_what_takes_too_much_memory_is_ended(self, jobs: Jobs) -> None:
        """Also if none of its processes takes too much by itself."""
        hungry = (
            "import os, time\nfor _ in range(3):\n    if os.fork() == 0:\n        break\nheld = b'x' * 80_000_000\n"
        )
        job = jobs.submit(f"{hungry}time.sleep(20)", memory=200_000_000, grace_s=0.2)
        ended = jobs.end_of(job)
        assert (ended.reason, jobs.get(job).state) == ("oom", "failed")
        assert "200,000,000 bytes" in ended.detail
        assert jobs.left(job) == []
        assert len(jobs.attempts(job)) == 1

    def test_one_that_waits_is_cancelled(self, jobs: Jobs, marks: Path) -> None:
        """At once and for good, and it never begins."""
        first = jobs.submit(STAYS, "first", marks)
        second = jobs.submit(STAYS, "second", marks)
        assert jobs.get(second).state == "queued"
        assert jobs.engine.cancel(second).state == "cancelled"
        (marks / "first-go").touch()
        assert jobs.ended(first).state == "succeeded"
        jobs.engine.start_waiting()
        assert jobs.get(second).state == "cancelled"
        assert jobs.attempts(second) == []
        assert not (marks / "second").exists()

    def test_one_that_runs_is_cancelled(self, jobs: Jobs, marks: Path) -> None:
        """And may put its things in order first."""
        text = (
            "import signal, sys, time\nfrom pathlib import Path\n"
            "def tidy(*_):\n    print('tidied', flush=True)\n    sys.exit(143)\n"
            f"signal.signal(signal.SIGTERM, tidy)\n{STAYS}"
        )
        job = jobs.submit(text, "a", marks)
        until((marks / "a").exists, "its beginning")
        assert jobs.engine.cancel(job).state in ("running", "cancelled")
        record = jobs.ended(job)
        assert (record.state, record.error) == ("cancelled", {"title": "cancelled", "detail": "it was cancelled"})
        assert jobs.log(job) == b"tidied\n"
        assert len(jobs.attempts(job)) == 1
        with pytest.raises(Conflict, match="cancelled"):
            jobs.engine.cancel(job)

    def test_one_is_cancelled_as_it_begins(self, jobs: Jobs) -> None:
        """At whichever moment, and by several at once."""
        for pause_s in (0.0, 0.02, 0.05, 0.08, 0.11):
            job = jobs.submit("import time; time.sleep(20)")
            time.sleep(pause_s)
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(_cancel, [(jobs.engine, job)] * 4))
            assert jobs.ended(job).state == "cancelled"
            assert jobs.left(job) == []

    def test_there_is_no_job_to_cancel(self, jobs: Jobs) -> None:
        """Of an id that nobody gave."""
        with pytest.raises(JobNotFound):
            jobs.engine.cancel("0" * 26)

    def test_nothing_of_a_job_that_is_cancelled_runs_on(self, jobs: Jobs, marks: Path) -> None:
        """Neither what ignores that it is asked, nor what made a session of its own and forgot its variables."""
        job = jobs.submit(TREE, marks, "bare", grace_s=0.3)
        pids = until(lambda: _pids(marks, 4), "the tree")
        began = time.monotonic()
        jobs.engine.cancel(job)
        assert jobs.ended(job).state == "cancelled"
        assert 0.3 <= time.monotonic() - began < self.soon_s
        assert [pid for pid in pids if runs(pid)] == []
        assert jobs.left(job) == []

    def test_nothing_of_a_job_that_has_ended_runs_on(self, jobs: Jobs, marks: Path) -> None:
        """Whatever it left behind."""
        job = jobs.submit(TREE, marks, "bare", "end")
        assert jobs.ended(job).state == "succeeded"
        pids = _pids(marks, 3)
        assert pids is not None
        assert [pid for pid in pids if runs(pid)] == []

    def test_nothing_runs_away(self, jobs: Jobs) -> None:
        """By starting another process and ending, faster than anybody can read a list."""
        job = jobs.submit(RUNS_AWAY)
        began = time.monotonic()
        assert jobs.ended(job).state == "succeeded"
        assert time.monotonic() - began < self.soon_s
        time.sleep(0.1)
        assert jobs.left(job) == []

    def test_the_next_one_is_of_the_highest_priority_and_then_the_oldest(self, jobs: Jobs, marks: Path) -> None:
        """One after the other, where each takes all of the machine; with nobody there to start them."""
        first = jobs.submit(STAYS, "0", marks)
        waiting = [jobs.submit(STAYS, name, marks, priority=rank) for name, rank in _WAITING]
        assert [jobs.get(job).state for job in waiting] == ["queued"] * len(waiting)
        for name in ("0", *(name for name, _ in _WAITING)):
            (marks / f"{name}-go").touch()
        records = [jobs.ended(job, alone=True) for job in (first, *waiting)]
        assert {record.state for record in records} == {"succeeded"}
        began = {name: float((marks / name).read_text()) for name, _ in _WAITING}
        assert sorted(began, key=began.__getitem__) == [name for name, _ in sorted(_WAITING, key=lambda each: -each[1])]
        ends = sorted((record.started_at or "", record.ended_at or "") for record in records)
        assert all(end <= start for (_, end), (start, _) in pairwise(ends))

    def test_as_many_run_as_there_is_room_for(self, jobs: Jobs, marks: Path) -> None:
        """Of cores and of memory."""
        room = jobs.engine.room()
        for asked in ({"cpus": room.cpus // 2}, {"cpus": 1, "memory": room.memory // 2}):
            if room.cpus < 2:
                pytest.skip("needs two cores, to run two jobs at once")
            names = [f"{len(asked)}-{number}" for number in range(3)]
            ids = [jobs.submit(STAYS, name, marks, **asked) for name in names]
            until(lambda names=names: all((marks / name).exists() for name in names[:2]), "two at once")  # type: ignore[misc]
            assert jobs.get(ids[2]).state == "queued"
            for name in (names[0], names[2]):
                (marks / f"{name}-go").touch()
            assert jobs.ended(ids[2], alone=True).state == "succeeded"
            assert jobs.get(ids[1]).state == "running"
            (marks / f"{names[1]}-go").touch()
            assert jobs.ended(ids[1]).state == "succeeded"

    def test_one_of_a_higher_priority_takes_the_place_of_those_that_give_it_up(self, jobs: Jobs, marks: Path) -> None:
        """They may put their things in order, wait again, and that counts for no failure."""
        tidies = f"import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n{STAYS}"
        low = jobs.submit(tidies, "low", marks, preemptible=True, priority=-1, times=0, grace_s=20)
        until((marks / "low").exists, "its beginning")
        same = jobs.submit(STAYS, "same", marks, priority=-1)
        assert jobs.get(same).state == "queued"
        assert jobs.get(low).state == "running"
        high = jobs.submit(STAYS, "high", marks, priority=1)
        until((marks / "high").exists, "the important one")
        assert jobs.get(low).state == "queued"
        for name in ("low", "same", "high"):
            (marks / f"{name}-go").touch()
        assert [jobs.ended(job, alone=True).state for job in (high, low, same)] == ["succeeded"] * 3
        first, second = jobs.attempts(low)
        assert first.ended is not None
        assert second.ended is not None
        assert (first.ended.reason, first.ended.exit_code) == ("preempted", 143)
        assert "higher priority" in first.ended.detail
        assert len(jobs.attempts(same)) == 1

    def test_one_that_gives_up_its_place_may_still_be_cancelled_or_end(self, jobs: Jobs, marks: Path) -> None:
        """What is done is not done once more, and what is cancelled does not wait again."""
        ends = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        stays = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        for name, text, state in (("ends", ends, "succeeded"), ("stays", stays, "cancelled")):
            low = jobs.submit(text + STAYS, name, marks, preemptible=True, grace_s=1.0)
            until((marks / name).exists, "its beginning")
            high = jobs.submit("print('well')", priority=1)
            if state == "cancelled":
                jobs.engine.cancel(low)
            assert jobs.ended(high).state == "succeeded"
            assert jobs.ended(low).state == state
            assert len(jobs.attempts(low)) == 1

    def test_a_large_one_is_not_overtaken(self, jobs: Jobs, marks: Path) -> None:
        """By small ones for which there would be room beside what runs."""
        if jobs.engine.room().cpus < 2:
            pytest.skip("needs two cores, to run two jobs at once")
        small = jobs.submit(STAYS, "small", marks, cpus=1)
        large = jobs.submit(STAYS, "large", marks)
        behind = jobs.submit(STAYS, "behind", marks, cpus=1)
        until((marks / "small").exists, "the small one")
        assert jobs.engine.start_waiting() == []
        assert [jobs.get(job).state for job in (large, behind)] == ["queued", "queued"]
        for name in ("small", "large", "behind"):
            (marks / f"{name}-go").touch()
        assert [jobs.ended(job, alone=True).state for job in (small, large, behind)] == ["succeeded"] * 3
        assert float((marks / "large").read_text()) < float((marks / "behind").read_text())

    def test_a_job_outlives_the_one_that_submitted_it(self, jobs: Jobs, marks: Path) -> None:
        """Though it was started from within, and is tried no more often for it."""
        if jobs.engine.room().cpus < 2:
            pytest.skip("needs two cores, to run two jobs at once")
        text = (
            "import sys\nfrom pathlib import Path\nimport mms_sdk as mms\n"
            "with mms.connect() as ws:\n"
            "    job = ws.jobs.submit(Path(sys.argv[1]), args=sys.argv[2:], resources=mms.Resources(cpus=1))\n"
            "    print(job.id, flush=True)\n"
            "    while not (Path(sys.argv[3]) / sys.argv[2]).exists(): pass\n"
        )
        (marks / "stays.py").write_text(STAYS)
        outer = jobs.submit(text, marks / "stays.py", "inner", marks, cpus=1)
        assert jobs.ended(outer, alone=True).state == "succeeded"
        inner = jobs.log(outer).decode().strip()
        assert jobs.get(inner).state == "running"
        assert len(jobs.left(inner)) == 1
        (marks / "inner-go").touch()
        assert jobs.ended(inner).state == "succeeded"
        assert len(jobs.attempts(inner)) == 1

    def test_what_was_submitted_by_somebody_who_died_is_started(self, jobs: Jobs) -> None:
        """By whoever looks."""
        job = jobs.put("print('well')")
        jobs.engine.reconcile()
        assert jobs.ended(job, alone=True).state == "succeeded"

    @pytest.mark.parametrize("damage", ["missing", "damaged"])
    def test_a_bundle_that_cannot_be_read_is_told(self, jobs: Jobs, damage: str) -> None:
        """After as many tries as there are, since somebody may bring it back; the others in the queue run."""
        job = jobs.put("print('never')", times=1)
        (path,) = (jobs.workspace.root / "bundles").iterdir()
        path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:-9])
        good = jobs.put("print('well')")
        jobs.engine.start_waiting()
        record = jobs.ended(job, alone=True)
        assert record.state == "failed"
        assert "it could not be started" in str(record.error)
        assert "bundle" in str(record.error)
        assert [attempt.ended and attempt.ended.reason for attempt in jobs.attempts(job)] == ["infra", "infra"]
        assert jobs.ended(good).state == "succeeded"

    def test_bytes_that_are_no_text_are_kept_as_they_are(self, jobs: Jobs) -> None:
        """And told as well as can be."""
        text = (
            "import sys\nsys.stdout.buffer.write(b'caf\\xe9 \\xff\\x00 \\xf0\\x9f')\nsys.stdout.flush()\nsys.exit(3)\n"
        )
        job = jobs.submit(text)
        ended = jobs.end_of(job)
        assert jobs.log(job) == b"caf\xe9 \xff\x00 \xf0\x9f"
        assert ended.lines == ("caf� �\0 �",)

    def test_of_a_long_log_the_last_lines_are_told(self, jobs: Jobs) -> None:
        """Of which none is too long."""
        job = jobs.submit("for number in range(50_000): print(f'line {number}')\nprint('x' * 100_000)")
        ended = jobs.end_of(job)
        assert len(jobs.log(job).splitlines()) == 50_001
        assert max(map(len, ended.lines)) <= 500
        assert ended.lines[-1].startswith("xxx")

    def test_several_processes_are_one_cluster(self, jobs: Jobs) -> None:
        """Of `jax.distributed`, before their script begins, each with a log of its own."""
        job = jobs.submit(GANG.format("print('sum', int(total), flush=True)"), processes=2, times=0)
        assert jobs.end_of(job).reason == "succeeded"
        for rank in range(2):
            told = jobs.log(job, rank=rank).decode()
            assert f"rank {rank} of 2\n" in told
            assert "sum 11\n" in told  # 5 + 6

    def test_what_one_process_does_wrong_ends_all(self, jobs: Jobs) -> None:
        """Soon, though the others wait for it; it is told whose error it was, and not tried again."""
        wrong = "if rank == 1:\n    raise ValueError('of the second')\ngather(rank)\nprint('went on')"
        job = jobs.submit(GANG.format(wrong), processes=2)
        ended = jobs.end_of(job)
        assert (ended.reason, ended.detail, ended.exit_code) == ("user", "rank 1: ValueError: of the second", 1)
        assert ended.lines[-1] == "ValueError: of the second"
        assert len(jobs.attempts(job)) == 1
        assert jobs.left(job) == []
        assert "went on" not in jobs.log(job).decode()

    def test_a_process_that_is_killed_is_the_end_of_all_and_all_are_tried_again(self, jobs: Jobs, marks: Path) -> None:
        """Together, as a new cluster."""
        dies = (
            "mark = Path(sys.argv[1], 'was-here')\nif rank == 1 and not mark.exists():\n    mark.touch()\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\nprint('sum', int(gather(rank).sum()), flush=True)"
        )
        job = jobs.submit(GANG.format(dies), marks, processes=2, wait_s=0)
        assert jobs.ended(job, alone=True).state == "succeeded"
        first, second = jobs.attempts(job)
        assert first.ended is not None
        assert second.ended is not None
        assert (first.ended.reason, first.ended.signal) == ("infra", "SIGKILL")
        assert first.ended.detail.startswith("rank 1: SIGKILL ended it")
        for rank in range(2):
            assert "sum 1\n" in jobs.log(job, 2, rank=rank).decode()

    def test_all_processes_are_cancelled(self, jobs: Jobs, marks: Path) -> None:
        """Whatever each of them waits for."""
        waits = "Path(sys.argv[1], str(rank)).touch()\nif rank == 1:\n    time.sleep(100)\ngather(rank)"
        job = jobs.submit(GANG.format(waits), marks, processes=2, grace_s=0.2)
        until(lambda: len(list(marks.iterdir())) == 2, "their beginning")
        began = time.monotonic()
        jobs.engine.cancel(job)
        assert jobs.ended(job).state == "cancelled"
        assert time.monotonic() - began < self.soon_s
        assert jobs.left(job) == []

    def test_an_ingest_gives_the_rows_of_one_in_this_process(self, jobs: Jobs, tmp_path: Path) -> None:
        """And the same report; what it refuses is recorded as the service would answer it."""
        source = ImageFolder(path=str(described.write_folder(tmp_path / "photos", 30)))
        asked = IngestSpec(source=source, clean=(DropUnreadable(), DropDuplicates()))
        here = jobs.here("ingest", "here", asked)
        job = jobs.describe("ingest", "there", asked)
        wrong = jobs.describe("ingest", "wrong", IngestSpec(source=ImageFolder(path=str(tmp_path / "nowhere"))))
        record = jobs.ended(job)
        assert (record.state, record.error) == ("succeeded", None)
        assert record.result == here.result
        assert jobs.workspace.catalog.lineage.of(job).outputs == ("there@1",)
        opened = [jobs.workspace.dataset(name).snapshot() for name in ("here", "there")]
        for name in ("image", "label", "source", "split"):
            first, second = (list(each.gather(name, np.arange(each.rows))) for each in opened)
            np.testing.assert_array_equal(first, second)
        record = jobs.ended(wrong)
        assert (record.state, len(jobs.attempts(wrong))) == ("failed", 1)
        assert isinstance(from_problem(record.error or {}), MmsError)
        assert (record.error or {})["type"].startswith("urn:mms:")

    def test_predictions_that_are_killed_go_on_and_are_those_of_this_process(self, jobs: Jobs) -> None:
        """One row out for each row in, in order."""
        import pyarrow.parquet as pq

        rows = described.write_pictures(jobs.workspace, "pictures", 6_000)
        version = described.register_model(jobs.workspace, "model", rows)
        asked = PredictJob(model=f"model@{version}", dataset="pictures@1", save_every=256)
        here = jobs.here("predict", "model", asked)
        job = jobs.describe("predict", "model", asked)
        folder = jobs.workspace.job_folder(job)
        until(lambda: len(list(folder.glob(".predictions.*/*.parquet"))) >= 2, "its first rows", within_s=self.within_s)
        for pid in jobs.workers(job):
            os.kill(pid, signal.SIGKILL)
        saved = len(list(folder.glob(".predictions.*/*.parquet")))
        record = jobs.ended(job)
        first, _ = jobs.attempts(job)
        assert first.ended is not None
        assert (first.ended.reason, first.ended.signal) == ("infra", "SIGKILL")
        assert 2 <= saved < 6_000 // 256
        assert record.result == here.result
        written = pq.read_table(folder / "predictions.parquet")
        assert written["row"].to_pylist() == list(range(6_000))
        assert written.equals(pq.read_table(jobs.workspace.job_folder(here.id) / "predictions.parquet"))
        assert list(folder.glob(".predictions.*")) == []

    def test_looking_again_changes_nothing(self, jobs: Jobs, marks: Path) -> None:
        """By however many at once."""
        job = jobs.submit(STAYS, "a", marks)
        until((marks / "a").exists, "its beginning")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: jobs.engine.reconcile(), range(20)))
            assert list(pool.map(lambda _: jobs.engine.start_waiting(), range(20))) == [[]] * 20
        assert (jobs.get(job).state, len(jobs.attempts(job))) == ("running", 1)
        (marks / "a-go").touch()
        jobs.ended(job)
        before = (jobs.get(job), jobs.attempts(job))
        jobs.engine.reconcile()
        assert (jobs.get(job), jobs.attempts(job)) == before


_WAITING = (("a", 0), ("b", 5), ("c", -5), ("d", 5), ("e", 0))


def _is_of(process: psutil.Process, job: str) -> bool:
    try:
        cookie = process.environ().get(COOKIE, "")
        return bool(cookie.startswith(f"{job}/") and process.status() != psutil.STATUS_ZOMBIE)
    except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
        return False


def _pids(marks: Path, count: int) -> list[int] | None:
    found = [int(path.name.rpartition("-")[2]) for path in marks.glob("pid-*")]
    return found if len(found) >= count else None


def _cancel(asked: tuple[Engine, str]) -> None:
    engine, job = asked
    try:
        engine.cancel(job)
    except MmsError as error:
        assert isinstance(error, Conflict)  # somebody else was first, and it has ended


def _between_s(earlier: Attempt, later: Attempt) -> float:
    assert earlier.ended is not None
    return (datetime.fromisoformat(later.started_at) - datetime.fromisoformat(earlier.ended.at)).total_seconds()
