"""A trial's process: started without a shell, in a session of its own, and ended with all that it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import orjson
import psutil

from mms_sdk.compute.tuning.trial import LOG
from mms_sdk.storage import files
from mms_sdk.storage.owners import is_alive, owner_of

_PROCESS = "process.json"
_GRACE_S = 10.0  # to write down that it was stopped; XLA compiles for seconds without looking at signals


class TrialProcess:
    """One running attempt.

    Args:
        folder: Of its job; its output goes to `log.txt` there.
        environment: All variables that it sees.
        working_folder: Where it runs.
    """

    def __init__(self, folder: Path, *, environment: Mapping[str, str], working_folder: str) -> None:
        self.folder = folder
        # -P: what lies in the working folder does not stand in for a library.
        words = [sys.executable, "-P", "-m", "mms_sdk.compute.tuning.worker", str(folder), str(os.getpid())]
        handle = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, files.FILE_MODE)
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                cwd=working_folder,
                start_new_session=True,
            )
        finally:
            os.close(handle)
        self._seen = psutil.Process(self._process.pid)
        self.owner = owner_of(self._process.pid)
        files.write_durable(folder / _PROCESS, orjson.dumps({"owner": self.owner}))

    def ended(self) -> int | None:
        """The exit code, negative for a signal; None while it runs. What it started and left behind is ended."""
        if self._process.returncode is None:
            # Its number stays its own, and that of its group, until it is waited for.
            with contextlib.suppress(psutil.NoSuchProcess):
                if self._seen.status() != psutil.STATUS_ZOMBIE:
                    return None
            _end_group(self._process.pid)
            self._process.wait()
        return self._process.returncode

    def ask_to_stop(self) -> None:
        """Asks it, and all that it started, to end."""
        if self.ended() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)

    def end(self) -> None:
        """Ends it and all that it started, at once."""
        if self.ended() is None:
            _end_tree(self._seen)
            self._process.wait()


def stop(processes: Iterable[TrialProcess]) -> None:
    """Stops several together: asks, waits for some seconds, and ends those that still run."""
    running = [process for process in processes if process.ended() is None]
    try:
        for process in running:
            process.ask_to_stop()
        until = time.monotonic() + _GRACE_S
        while any(process.ended() is None for process in running) and time.monotonic() < until:
            time.sleep(0.02)
    finally:  # also if a person is in a hurry and interrupts a second time
        for process in running:
            process.end()


def end_orphan(folder: Path) -> None:
    """Ends the process of an attempt whose study was killed, should it still run."""
    try:
        owner = str(orjson.loads((folder / _PROCESS).read_bytes())["owner"])
    except (OSError, ValueError, KeyError):
        return  # it was killed before it began
    if is_alive(owner):
        with contextlib.suppress(psutil.NoSuchProcess):
            _end_tree(psutil.Process(int(owner.partition(":")[0])))


def _end_tree(process: psutil.Process) -> None:
    try:
        below = process.children(recursive=True)
    except psutil.NoSuchProcess:
        below = []
    _end_group(process.pid)
    for each in [process, *below]:  # also those that made a group of their own
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()


def _end_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
