"""What looks after one attempt: `python -m mms_sdk.compute.engines.supervisor FOLDER`.

Without a folder it only starts what waits to be tried again, once that is due.

A process in a session of its own, which nothing ends with a notebook or a server. It starts the worker of each rank,
keeps them within their limits, stops them when asked or once one of them has failed, ends all that they leave behind,
writes down how they ended and starts what waits next. It speaks to the catalog only through a process that comes and
goes, so that it holds little memory for as long as the job takes.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from mms_sdk.compute.engines import folder as files
from mms_sdk.compute.engines.log import give_up_middle, last_lines
from mms_sdk.compute.engines.masking import Log
from mms_sdk.errors import NotFound
from mms_sdk.settings import SECRETS_VARIABLE, TOKEN_VARIABLE, URL_VARIABLE, WORKSPACE_VARIABLE
from mms_sdk.storage.job_tokens import server_for
from mms_sdk.storage.owners import owner_of
from mms_sdk.storage.secrets import FOLDER, Secrets

MODULE = "mms_sdk.compute.engines.supervisor"
_LOOK_S = 1.0  # how often the time is looked at; the end of the worker is noticed at once
_LOOK_AT_MEMORY_S = 0.1  # a process takes a gigabyte or so meanwhile
AGAIN_S = 1.0, 60.0
"""First and longest pause while the disk is full, or the catalog away."""
RAISED_AT = "raised_at"
"""Beside what `Ended` holds: when its code raised, by which the first of several is found."""
_SEEN_NONE = 3
_OTHERS_S = 1.0  # after one rank failed, how long it is looked for another whose death was the cause
_PR_SET_CHILD_SUBREAPER = 36
_TERMINATED = 143  # what a process says that SIGTERM ended and that put its things in order first
_ABORTED = -signal.SIGABRT


def main(folder: Path) -> None:
    """Looks after the attempt of a folder, unless somebody else does."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, ignored)  # not ignored: the worker would inherit that
    os.chdir("/")  # holds no folder that somebody may want to remove
    supervised = Supervised(folder)  # listens to who cancels, before anybody can know of it
    if not files.create(folder / files.CLAIM, {"owner": owner_of(os.getpid())}):
        return
    write_down(folder, supervised.run())
    settle()


class Supervised:
    """One attempt's workers, one a rank, and everything that they start."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._given: dict[str, Any] = files.read(folder / files.GIVEN) or {}
        self._stop_at: float | None = None  # when what was asked to stop is ended
        self._why: tuple[str, str] | None = None  # reason and detail, once we end it
        self._workers: dict[int, subprocess.Popen[bytes]] = {}  # by rank
        self._logs: list[Log] = []
        self._failed: list[int] = []  # ranks, in the order in which they were seen to fail by themselves
        self._terminated = False
        self._woken, self._wake = os.pipe()
        for end in (self._woken, self._wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._wake)
        signal.signal(signal.SIGTERM, self._asked)
        _become_subreaper()

    def run(self) -> dict[str, Any]:
        """Runs the workers to their ends.

        Returns:
            What `mms_sdk.schema.job.Ended` holds.
        """
        try:
            secrets = self._secrets()
            for variables in self._given["ranks"]:
                rank = int(variables[files.RANK])
                self._workers[rank] = self._started(rank, variables, secrets)
        except NotFound as error:
            return self._told("user", str(error))
        except OSError as error:
            _end_all_below()
            return self._told("infra", f"the worker could not be started: {error}")
        self._wait()
        for worker in self._workers.values():  # what stayed in its group, however fast it makes more of its kind
            _signal_group(worker.pid, signal.SIGKILL)
        _end_all_below()
        for log in self._logs:
            log.finish()
        return self._how_it_ended()

    def _asked(self, number: int, frame: FrameType | None) -> None:
        # To cancel, if the file is there; the signal only wakes it then.
        self._terminated = True

    def _secrets(self) -> dict[bytes, bytes]:
        # What workers see and their logs do not show: a server's token too, but not where that is.
        root = Path(os.environ[WORKSPACE_VARIABLE])
        found = Secrets(root / FOLDER).values(self._given["secrets"])
        server = server_for(root, self._given["job"], self._given["number"])
        if server is not None:
            self._given["environment"] |= {URL_VARIABLE: server.url}
            found[TOKEN_VARIABLE.encode()] = server.token.encode()
        return found

    def _started(self, rank: int, variables: dict[str, str], secrets: dict[bytes, bytes]) -> subprocess.Popen[bytes]:
        log = Log(self._log(rank), secrets.values())
        self._logs.append(log)
        own = {**os.environ, **self._given["environment"], **variables}
        own[SECRETS_VARIABLE] = b",".join(secrets).decode()
        try:
            worker = subprocess.Popen(
                # -P: what lies in the working folder does not stand in for a library.
                [sys.executable, "-P", "-m", "mms_sdk.compute.worker", str(self._folder), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log.writes,
                stderr=subprocess.STDOUT,
                cwd=self._folder / files.CODE,
                env={os.fsencode(name): os.fsencode(value) for name, value in own.items()} | secrets,
                start_new_session=True,
            )
        finally:
            log.started()
        with contextlib.suppress(OSError):  # a full disk; it has ended, and keeps its number until it is waited for
            files.create(self._folder / files.of_rank(files.WORKER, rank), {"owner": owner_of(worker.pid)})
        return worker

    def _wait(self) -> None:
        began = time.monotonic()
        pids = frozenset(worker.pid for worker in self._workers.values())
        ends = {pid: os.pidfd_open(pid) for pid in pids} if hasattr(os, "pidfd_open") else {}
        watches_memory = self._given["memory_bytes"] is not None
        look_s = _LOOK_AT_MEMORY_S if watches_memory or not ends else _LOOK_S
        while running := [worker for worker in self._workers.values() if worker.poll() is None]:
            if self._why is None and (why := self._reason_to_stop(began)):
                self._why = why
                self._stop_at = time.monotonic() + self._given["grace_s"]
                for worker in running:
                    _signal_group(worker.pid, signal.SIGTERM)
            self._see_who_failed()
            if self._stop_at is not None and time.monotonic() >= self._stop_at:
                for worker in running:
                    worker.kill()
                self._stop_at = None
            wait_s = look_s if self._stop_at is None else max(0.0, min(look_s, self._stop_at - time.monotonic()))
            _wait_for_ended(but=pids)
            for rank in self._workers:
                give_up_middle(self._log(rank), self._given["log_bytes"])
            watched = [self._woken, *(ends[worker.pid] for worker in running if ends)]
            ready, _, _ = select.select(watched, [], [], wait_s)
            if self._woken in ready:
                os.read(self._woken, 1024)
        self._see_who_failed()

    def _see_who_failed(self) -> None:
        # Ranks do their work together: what one of them does not outlive, the others cannot end without it.
        failed = [rank for rank, worker in self._workers.items() if worker.returncode and rank not in self._failed]
        if self._why is None and failed and not self._failed:
            self._stop_at = time.monotonic() + _OTHERS_S
        if self._stop_at is not None:  # not those that were ended on that account
            self._failed += failed

    def _reason_to_stop(self, began: float) -> tuple[str, str] | None:
        if (self._folder / files.CANCEL).exists():
            return "cancelled", "it was cancelled"
        if (asked := files.read(self._folder / files.PREEMPT)) is not None:
            return "preempted", asked["why"]
        if self._terminated:
            return "infra", "what looked after it was asked to end, as when a machine goes down"
        limit_s, limit_bytes = self._given["time_s"], self._given["memory_bytes"]
        if limit_s is not None and (took := time.monotonic() - began) > limit_s:
            return "timeout", f"an attempt takes at most {limit_s:g} s; this one took {took:.0f} s; give it more time"
        if limit_bytes is not None and (held := _held_bytes()) > limit_bytes:
            return "oom", f"it may hold {limit_bytes:,} bytes; it held {held:,}; give it more memory"
        return None

    def _how_it_ended(self) -> dict[str, Any]:
        done = all(worker.returncode == 0 for worker in self._workers.values())
        if self._why is not None and not (done and self._why[0] == "preempted"):  # which would do it once more
            return self._told(*self._why)
        if not self._failed:
            return self._told("succeeded", "")
        rank = self._cause()
        code, error = self._workers[rank].returncode, self._error(rank)
        reason, detail = "user", f"it ended with exit code {code}"
        if _by_signal(code):
            name = signal.Signals(-code).name if code < 0 else "SIGTERM"
            guess = ", as Linux does with what takes the machine's last memory" if name == "SIGKILL" else ""
            reason, detail = "infra", f"{name} ended it{guess}"
        elif error is not None:
            detail = f"{error['type']}: {error['message']}"
            reason = "infra" if error["reason"] == "infra" else "user"
        alone = self._given["ranks"][0][files.RANKS] == "1"
        return self._told(reason, detail if alone else f"rank {rank}: {detail}", rank)

    def _cause(self) -> int:
        # With one that a signal ended, the others fail by errors of their own, or JAX aborts them; and so they do with
        # one that raised, which was the first to.
        codes = {rank: self._workers[rank].returncode for rank in self._failed}
        ended = (rank for rank, code in codes.items() if _by_signal(code) and code != _ABORTED)
        return next(ended, min(self._failed, key=self._raised_at))

    def _raised_at(self, rank: int) -> float:
        error = self._error(rank)
        return float(error["at"]) if error else math.inf

    def _log(self, rank: int) -> Path:
        return self._folder / files.of_rank(files.LOG, rank)

    def _error(self, rank: int) -> dict[str, str] | None:
        # Where a script could write, too.
        try:
            told = files.read(self._folder / files.of_rank(files.ERROR, rank))
            float(told["at"]) if told else None
            return told and {name: str(told[name]) for name in ("type", "message", "reason", "at")}
        except (ValueError, TypeError, KeyError, OSError):
            return None

    def _told(self, reason: str, detail: str, rank: int | None = None) -> dict[str, Any]:
        rank = min(self._workers, default=0) if rank is None else rank
        code = self._workers[rank].returncode if self._workers else None
        error = self._error(rank)
        return {
            "reason": reason,
            "detail": detail,
            "exit_code": None if code is None or code < 0 else code,
            "signal": signal.Signals(-code).name if code is not None and code < 0 else None,
            "lines": last_lines(self._log(rank)),
            "error": error and {name: error[name] for name in ("type", "message")},
            RAISED_AT: self._raised_at(rank),
            "at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        }


def _by_signal(code: int) -> bool:
    return code < 0 or code == _TERMINATED


def _become_subreaper() -> None:
    # What a worker's children leave behind becomes a child of this process, however they were started: prctl(2).
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def ignored(number: int, frame: FrameType | None) -> None:
    """A signal that is for somebody else."""


def _below() -> Sequence[psutil.Process]:
    # Without those that look after jobs which this one submitted, and what is theirs: such jobs outlive it.
    found, others = [], set()
    for each in psutil.Process().children(recursive=True):  # parents before their children
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if each.ppid() in others or MODULE in each.cmdline():
                others.add(each.pid)
            else:
                found.append(each)
    return found


def _held_bytes() -> int:
    held = 0
    for each in _below():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            held += each.memory_info().rss
    return held


def _end_all_below() -> None:
    # Until none is left: one that is killed in the middle of a fork leaves another. A list of processes is not read at
    # one instant, so that none on it proves little; that there is no child to wait for proves it.
    pause_s, seen_none = 0.005, 0
    while _wait_for_ended() and seen_none < _SEEN_NONE:
        alive = [each for each in _below() if _runs(each)]
        seen_none = 0 if alive else seen_none + 1
        for each in alive:
            _end(each)
        time.sleep(pause_s)
        pause_s = min(1.0, pause_s * 1.5)  # one that waits for a disk ends only once it has answered


def _end(process: psutil.Process) -> None:
    # With its group, which has no time to start another one: that of a worker, or one that was made below it.
    with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
        group = os.getpgid(process.pid)
        process.kill()
        if group != os.getpgrp():
            os.killpg(group, signal.SIGKILL)


def _wait_for_ended(*, but: AbstractSet[int] = frozenset()) -> bool:
    # Those that were left behind become children of this process. False once there are none, ended or not.
    if not hasattr(os, "waitid"):  # macOS
        return bool(_below())
    try:
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid in but:
                return True
            os.waitpid(ended.si_pid, 0)
    except ChildProcessError:
        return False
    return True


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def write_down(folder: Path, ended: dict[str, Any]) -> None:
    """Says how an attempt ended; on a full disk it waits for room, since what was done would be done once more."""
    pause_s, longest_s = AGAIN_S
    while folder.exists():
        try:
            told = {name: value for name, value in ended.items() if name != RAISED_AT}
            files.create(folder / files.ENDED, told, durable=True)
        except OSError:
            time.sleep(pause_s)
            pause_s = min(longest_s, pause_s * 2)
        else:
            return


def settle() -> None:
    """Has the workspace settled until no job waits to be tried again, or the workspace is gone."""
    # The process says when it is to be asked again: a job that failed may wait to be tried once more.
    pause_s, longest_s = AGAIN_S
    workspace = Path(os.environ[WORKSPACE_VARIABLE])
    while workspace.exists():
        command = [sys.executable, "-P", "-m", "mms_sdk.compute.engines.settle"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            told = done.stdout.strip()
            if not told:
                return
            time.sleep(min(float(told) + 0.01, longest_s))
        else:
            time.sleep(pause_s)
            pause_s = min(longest_s, pause_s * 2)


if __name__ == "__main__":
    main(Path(sys.argv[1])) if sys.argv[1:] else settle()
