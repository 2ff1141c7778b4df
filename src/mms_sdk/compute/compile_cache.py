"""What XLA compiled, kept on disk for the next process: a setting of the machine, and off where nobody sets it.

JAX keeps and finds it; here is only where, for whom and how much. An entry goes by the program, the versions of JAX and
XLA, its flags and the devices, and by the kind of CPU besides, because code made for one may stop another, and a home
folder is often shared.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import os
import platform
import sys
from pathlib import Path

from mms_sdk import settings
from mms_sdk.errors import InvalidRequest
from mms_sdk.storage import files

MAX_BYTES = 2**30
"""What is kept for a kind of CPU; what was not used for longest goes first, when a process begins."""

_MIN_COMPILE_S = 0.1  # what takes less is compiled again sooner than it is read
_CPU_LINES = ("model name", "flags", "Features", "CPU implementer", "CPU part")
_log = logging.getLogger("mms.compile_cache")


def use_compile_cache() -> Path | None:
    """Keeps what JAX compiles from now on in `$MMS_COMPILE_CACHE`, and finds what an earlier process kept there.

    A cache that JAX was told of already, by `JAX_COMPILATION_CACHE_DIR` or by the program, stays as it is. A damaged
    entry is told in a warning and compiled anew.

    Returns:
        The folder; None where there is none to use.

    Raises:
        InvalidRequest: Others may write there, and so could run what they like in this process.
        NotWritable, StorageFull: The folder cannot be made.
    """
    root = settings.compile_cache()
    if root is None:
        return None
    import jax

    if jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]  # made while JAX is imported
        return None
    if not _has_checksums():
        _log.warning(
            "$%s is not used: JAX finds damage in what it keeps only where it compresses with zlib, which it does "
            "on Python to 3.13 without the package zstandard",
            settings.COMPILE_CACHE_VARIABLE,
        )
        return None
    folder = files.make_folder(root / cpu())
    for each in (root, folder):
        _refuse_others(each)
    trim(folder, MAX_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_S)
    return folder


def cpu() -> str:
    """A name for this kind of CPU, e.g. `x86_64-1f0c9a52b6de`: the same for the same instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    told = sorted({line for line in lines if line.startswith(_CPU_LINES)}) or [platform.processor()]
    return f"{platform.machine()}-{hashlib.sha256(os.linesep.join(told).encode()).hexdigest()[:12]}"


def trim(folder: Path, max_bytes: int) -> None:
    """Removes the entries of a cache that were not used for longest, until they have no more than so many bytes."""
    held = [(max(told.st_atime, told.st_mtime), told.st_size, path) for path, told in _files(folder)]
    size = 0
    for _, count, path in sorted(held, reverse=True):
        size += count
        if size > max_bytes:
            path.unlink(missing_ok=True)


def _files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    found = []
    for path in folder.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):  # another process trims as well
            found.append((path, path.stat()))
    return found


def _refuse_others(folder: Path) -> None:
    told = folder.stat()
    if told.st_uid != os.getuid() or told.st_mode & 0o022:
        raise InvalidRequest(
            f"a compile cache holds code that is run, so it belongs to whom it serves and nobody else may write there; "
            f"{folder} is of user {told.st_uid} with mode {told.st_mode & 0o777:o}; chmod go-w it, or name another "
            f"folder in ${settings.COMPILE_CACHE_VARIABLE}"
        )


def _has_checksums() -> bool:
    return sys.version_info < (3, 14) and importlib.util.find_spec("zstandard") is None
