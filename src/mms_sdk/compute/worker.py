"""What every engine starts: `python -m mms_sdk.compute.worker FOLDER SUPERVISOR`, which runs the code of an attempt.

It imports little, since each job waits for it: neither the catalog nor the schemas.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import traceback
from pathlib import Path
from types import ModuleType, TracebackType

from mms_sdk.compute.engines import folder as files
from mms_sdk.settings import ARTIFACTS_VARIABLE, WORKER_VARIABLE

_PR_SET_PDEATHSIG = 1
_MESSAGE = 2000


def main(folder: Path, supervisor: int) -> int:
    """Runs the script of an attempt as `__main__`.

    Returns:
        Its exit code: 1 after an error.
    """
    _die_with(supervisor)
    os.environ[WORKER_VARIABLE] = str(os.getpid())
    os.environ[ARTIFACTS_VARIABLE] = str(folder / files.ARTIFACTS)
    try:
        _run(folder)
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        sys.stderr.write(f"{ended.code}\n")
        return 1
    except BaseException as error:  # noqa: BLE001 (whatever it was, the job's record says so)
        _failed(folder, error)
        return 1
    return 0


def _die_with(supervisor: int) -> None:
    # Without anybody who looks after it, an attempt is lost and another one begins: this one must not go on beside it.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != supervisor:
        os.kill(os.getpid(), signal.SIGKILL)


def _run(folder: Path) -> None:
    given = files.read(folder / files.GIVEN) or {}
    code = folder / files.CODE
    path = code / given["entrypoint"]
    sys.path.insert(0, str(path.parent))
    sys.argv = [str(path), *given["args"]]
    script = ModuleType("__main__")
    script.__dict__.update(__file__=str(path))
    sys.modules["__main__"] = script
    exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), script.__dict__)


def _failed(folder: Path, error: BaseException) -> None:
    traceback.print_exception(type(error), error, _of_script(error.__traceback__))
    sys.stderr.flush()
    # Half a character, as in a file's name that is no UTF-8, would be refused by whoever reads it.
    message = str(error)[:_MESSAGE].encode(errors="replace").decode()
    told = {"type": type(error).__name__, "message": message}
    with contextlib.suppress(OSError):  # a full disk: the exit code says that it failed
        files.create(folder / files.ERROR, told)


def _of_script(trace: TracebackType | None) -> TracebackType | None:
    while trace and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
