"""Processes as they are known beyond their own life: by what no later process shares with them."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def owner_of(pid: int) -> str:
    """What a process is known by, since its number alone is used again: `number:start@boot`.

    On Linux the start is counted from the machine's own, so that no clock that is set makes it another process.

    Raises:
        ProcessLookupError: There is none of that number.
    """
    started, _ = _looked_up(pid)
    return f"{pid}:{started}@{_boot()}"


def is_alive(owner: str) -> bool:
    """Whether a process, by `owner_of`, still runs; one that ended and that nobody has waited for does not."""
    pid, _, started = owner.partition(":")
    try:
        found, ended = _looked_up(int(pid))
    except (ProcessLookupError, ValueError):
        return False
    return not ended and started == f"{found}@{_boot()}"


def pid_of(owner: str) -> int:
    """Its number, which is its own as long as it is alive."""
    return int(owner.partition(":")[0])


if sys.platform == "linux":

    def _looked_up(pid: int) -> tuple[str, bool]:
        # proc_pid_stat(5): the name, in brackets, may hold anything; behind it the state, and as the 22nd the start.
        try:
            told = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except FileNotFoundError as error:
            raise ProcessLookupError(f"no process {pid}") from error
        return told[19].decode(), told[0] in (b"Z", b"X")

    def _boot() -> str:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()

else:

    def _looked_up(pid: int) -> tuple[str, bool]:
        import psutil

        try:
            process = psutil.Process(pid)
            return f"{process.create_time():.2f}", process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess as error:
            raise ProcessLookupError(f"no process {pid}") from error

    def _boot() -> str:
        return os.uname().nodename
