"""Processes as they are known beyond their own life: by what no later process, and none elsewhere, shares with them.

A machine goes by its name, and a life of it by the boot and the namespace of process numbers, which is another one in
each container. Of the same life it is known whether a process is there. What is of an earlier life of a machine of this
name is gone. Of any other machine nothing is known.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path


def owner_of(pid: int) -> str:
    """What a process is known by, since its number alone is used again: `number:start@life.machine`.

    On Linux the start is counted from the machine's own, so that no clock that is set makes it another process.

    Raises:
        ProcessLookupError: There is none of that number.
    """
    started, _ = _looked_up(pid)
    return f"{pid}:{started}{here()}"


def here() -> str:
    """The place where this process runs, as an owner names it: `@life.machine`."""
    return f"@{_life()}.{_machine()}"


def is_elsewhere(owner: str) -> bool:
    """Whether nothing is known of it: it is of another machine."""
    life, dot, machine = owner.partition("@")[2].partition(".")
    return bool(dot) and life != _life() and machine != _machine()


def is_alive(owner: str) -> bool:
    """Whether a process, by `owner_of`, runs here; one that ended and that nobody has waited for does not."""
    pid, _, started = owner.partition(":")
    try:
        found, ended = _looked_up(int(pid))
    except (ProcessLookupError, ValueError):
        return False
    return not ended and started.rpartition(".")[0] == f"{found}@{_life()}"


def pid_of(owner: str) -> int:
    """Its number, which is its own as long as it is alive."""
    return int(owner.partition(":")[0])


def _machine() -> str:
    return _short(os.uname().nodename)


def _short(text: str) -> str:
    # FNV-1a of 64 bits: `hashlib` brings OpenSSL, 4 MB of memory in what looks after a job for as long as it runs.
    told = 0xCBF29CE484222325
    for byte in text.encode():
        told = (told ^ byte) * 0x100000001B3 % 2**64
    return f"{told:016x}"


if sys.platform == "linux":

    def _looked_up(pid: int) -> tuple[str, bool]:
        # proc_pid_stat(5): the name, in brackets, may hold anything; behind it the state, and as the 22nd the start.
        try:
            told = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except FileNotFoundError as error:
            raise ProcessLookupError(f"no process {pid}") from error
        return told[19].decode(), told[0] in (b"Z", b"X")

    @cache
    def _life() -> str:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        return _short(f"{boot}{os.readlink('/proc/self/ns/pid')}")

else:

    def _looked_up(pid: int) -> tuple[str, bool]:
        import psutil

        try:
            process = psutil.Process(pid)
            return f"{process.create_time():.2f}", process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess as error:
            raise ProcessLookupError(f"no process {pid}") from error

    def _life() -> str:
        return _machine()
