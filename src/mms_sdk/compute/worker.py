"""What every engine starts: `python -m mms_sdk.compute.worker FOLDER SUPERVISOR`, which runs the code of an attempt.

It imports little, since each job waits for it: neither the catalog nor the schemas.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from mms_sdk.compute.engines import folder as files
from mms_sdk.compute.engines.masking import Mask
from mms_sdk.compute.packages import RequirementsFailed, installed
from mms_sdk.settings import (
    ARTIFACTS_VARIABLE,
    FENCE_VARIABLE,
    JOB_VARIABLE,
    SECRETS_VARIABLE,
    WORKER_VARIABLE,
    WORKSPACE_VARIABLE,
)

_PR_SET_PDEATHSIG = 1
_MESSAGE = 2000


def main(folder: Path, supervisor: int) -> int:
    """Runs the script of an attempt as `__main__`.

    Returns:
        Its exit code: 1 after an error.
    """
    _die_with(supervisor)
    os.environ[WORKER_VARIABLE] = str(os.getpid())
    os.environ[FENCE_VARIABLE] = str(folder / files.OVER)
    os.environ[ARTIFACTS_VARIABLE] = str(folder / files.ARTIFACTS)
    mask = Mask(_secrets())
    given: dict[str, Any] = {}
    try:
        given = files.read(folder / files.GIVEN) or {}
        _enter(given)
        if files.COORDINATOR in os.environ and not _joined(folder, mask):
            return 1
        _run(folder, given)
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        sys.stderr.write(f"{ended.code}\n")
        return 1
    except BaseException as error:  # noqa: BLE001 (whatever it was, the job's record says so)
        message = _failed(folder, error, mask)
        if given and given["entrypoint"] is None:
            _tell_outcome(folder, error, message)
        return 1
    return 0


def _enter(given: dict[str, Any]) -> None:
    if given["requirements"]:
        from mms_sdk.compute.engines.environments import enter

        words = ["-P", "-m", "mms_sdk.compute.worker", *sys.argv[1:]]
        enter(Path(os.environ[WORKSPACE_VARIABLE]), given["requirements"], words)


def _joined(folder: Path, mask: Mask) -> bool:
    from mms_sdk.compute.sharding.processes import join_processes
    from mms_sdk.errors import MmsError

    coordinator, rank, ranks = (os.environ[name] for name in (files.COORDINATOR, files.RANK, files.RANKS))
    try:
        join_processes(coordinator, count=int(ranks), index=int(rank))
    except MmsError as error:  # another process took the port, or a node is out of reach: worth another attempt
        _failed(folder, error, mask, reason="infra")
        return False
    return True


def _die_with(supervisor: int) -> None:
    # Without anybody who looks after it, an attempt is lost and another one begins: this one must not go on beside it.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != supervisor:
        os.kill(os.getpid(), signal.SIGKILL)


def _run(folder: Path, given: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # a full disk
        files.create(folder / files.ENVIRONMENT, _environment())  # by whichever rank comes first
    if given["entrypoint"] is None:
        _do_described(folder)
        return
    code = folder / files.CODE
    path = code / given["entrypoint"]
    sys.path.insert(0, str(path.parent))
    sys.argv = [str(path), *given["args"]]
    script = ModuleType("__main__")
    script.__dict__.update(__file__=str(path))
    sys.modules["__main__"] = script
    exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), script.__dict__)


def _do_described(folder: Path) -> None:
    from mms_sdk.compute.described import do_job

    result = do_job(Path(os.environ[WORKSPACE_VARIABLE]), os.environ[JOB_VARIABLE])
    files.create(folder / files.OUTCOME, {"result": result}, durable=True)


def _environment() -> dict[str, object]:
    # Not by the module `platform`, which looks into the interpreter's file.
    system = os.uname()
    return {
        "python": f"{sys.implementation.name} {sys.version.split()[0]}",
        "executable": sys.executable,
        "platform": f"{system.sysname} {system.release} {system.machine}",
        "packages": installed(),
        "hash_seed": os.environ.get("PYTHONHASHSEED"),
    }


def _secrets() -> list[bytes]:
    names = os.environ.get(SECRETS_VARIABLE, "").encode().split(b",")
    return [os.environb[name] for name in names if name in os.environb]


def _failed(folder: Path, error: BaseException, mask: Mask, *, reason: str = "user") -> str:
    if isinstance(error, RequirementsFailed):  # whose log pip has written
        reason = error.reason
    else:
        traceback.print_exception(type(error), error, _of_script(error.__traceback__))
        sys.stderr.flush()
    # Half a character, as in a file's name that is no UTF-8, would be refused by whoever reads it.
    said = str(error).encode(errors="replace")
    message = (mask(said) + mask.rest()).decode(errors="replace")[:_MESSAGE]
    told = {"type": type(error).__name__, "message": message, "reason": reason, "at": f"{time.time():.6f}"}
    with contextlib.suppress(OSError):  # a full disk: the exit code says that it failed
        files.create(folder / files.of_rank(files.ERROR, int(os.environ.get(files.RANK, "0"))), told)
    return message


def _tell_outcome(folder: Path, error: BaseException, message: str) -> None:
    from mms_sdk.errors import MmsError, to_problem

    if isinstance(error, MmsError):  # whoever waits for the job gets it as from the service
        with contextlib.suppress(OSError):
            files.create(folder / files.OUTCOME, {"error": {**to_problem(error), "detail": message}})


def _of_script(trace: TracebackType | None) -> TracebackType | None:
    while trace and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


def _leave(code: int) -> None:
    # One of several that failed does not wait for the others, which may wait for it: who looks after them ends them.
    if code and files.COORDINATOR in os.environ:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code & 0xFF)
    sys.exit(code)


if __name__ == "__main__":
    _leave(main(Path(sys.argv[1]), int(sys.argv[2])))
