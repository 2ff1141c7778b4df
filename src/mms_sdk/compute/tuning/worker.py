"""What runs in a trial's process: `python -m mms_sdk.compute.tuning.worker FOLDER PARENT`.

It imports little, since each trial waits for it: neither the catalog nor the schemas.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType, ModuleType, TracebackType

import orjson
import psutil

from mms_sdk.compute.tuning.trial import ERROR, GIVEN
from mms_sdk.errors import Damaged

_LOOK_S = 0.2
_STOPPED = 143  # what a shell says of a process that SIGTERM ended


class Stopped(KeyboardInterrupt):
    """The study stops this trial; training takes it for an interrupt, and records its end."""


def main(folder: Path, parent: int) -> int:
    """Runs the script of a trial.

    Returns:
        The exit code: 0, 1 after an error, 143 if it was stopped.
    """
    threading.Thread(target=_end_without, args=(parent,), daemon=True).start()
    signal.signal(signal.SIGTERM, _stop)
    try:
        _run(folder)
    except Stopped:
        return _STOPPED
    except BaseException as error:  # noqa: BLE001 (whatever it was, the study hears of it)
        trace = error.__traceback__
        while trace and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        _failed(folder, error, trace)
        return 1
    return 0


def _run(folder: Path) -> None:
    told = orjson.loads((folder / GIVEN).read_bytes())
    code, path = told["code"], told["code"]["path"]
    content = Path(path).read_bytes()
    if hashlib.sha256(content).hexdigest() != code["sha256"]:
        raise Damaged(f"{path} is not the script that the study began with; restore it from a backup")
    if code["folder"]:
        sys.path.insert(0, code["folder"])
    sys.argv = [code["origin"]]
    script = ModuleType("__main__")
    # Where it was taken from, so that it finds what lies beside it; tracebacks show the text that runs.
    origin = code["origin"] if Path(code["origin"]).is_file() else path
    script.__dict__.update(__file__=origin, __package__=code["package"])
    sys.modules["__main__"] = script
    try:
        exec(compile(content, path, "exec", dont_inherit=True), script.__dict__)
    except SystemExit as ended:
        if ended.code == _STOPPED:  # by whoever noticed the signal in place of this module
            raise Stopped from ended
        if ended.code not in (None, 0):
            raise


def _failed(folder: Path, error: BaseException, trace: TracebackType | None) -> None:
    traceback.print_exception(type(error), error, trace)
    sys.stderr.flush()
    told = {"type": type(error).__name__, "message": str(error)[:2000]}
    with contextlib.suppress(OSError):  # a full disk: the exit code says that it failed
        (folder / ERROR).write_bytes(orjson.dumps(told))


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough, also for what runs while this unwinds
    raise Stopped


def _end_without(parent: int) -> None:
    # A study that is killed cannot end its trials: they see that it is gone, and end with all that they started.
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    for each in psutil.Process().children(recursive=True):  # also those that made a group of their own
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
