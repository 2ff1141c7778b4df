"""Does a piece of work again and again, each time in a child process that fails at the next of its steps.

Run as a program: `dies_at_step.py WORK HOW TEMPLATE OUT [STRIDE [FIRST]]`; with STRIDE 3 and FIRST 2 it tries the
second step, the fifth, and so on. A step is whatever changes the disk below the child's copy of the template: opening a
file to write, each write to it (which is cut in half), fsync, link, rename, mkdir, unlink.

HOW is `kill` (SIGKILL), `interrupt` (Ctrl-C), or `enospc` (a full disk, then and whenever room is needed afterwards).
For each step there is a folder OUT/NNN with what was left, and a line of JSON on standard output.
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

EVENTS = {"os.link", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.symlink"}
FREES = {"os.remove", "os.rmdir", "os.rename"}
HANGS_AFTER_S = 60
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Steps:
    """Counts steps below a folder and fails at one of them."""

    def __init__(self, root: Path, fatal: int, how: str) -> None:
        self.root = str(root)
        self.fatal = fatal
        self.how = how
        self.taken = 0
        self.told = ""

    def step(self, what: str, path: object, before: Callable[[], object] = lambda: None) -> None:
        name = path if isinstance(path, str) else os.fsdecode(path) if isinstance(path, bytes | Path) else ""
        if not name.startswith(self.root):
            return
        self.taken += 1
        full = self.how == "enospc" and self.taken > self.fatal and what not in FREES
        if self.taken == self.fatal or full:
            self.told = self.told or f"{what} {Path(name).name}"
            if self.how != "interrupt" or threading.current_thread() is threading.main_thread():
                before()  # what another thread writes, Ctrl-C does not cut
            self.fail(f"{what} {name}")

    def fail(self, what: str) -> None:
        if self.how == "kill":
            print(what, file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how != "interrupt":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt(what)
        os.kill(os.getpid(), signal.SIGINT)  # Python hands it to the main thread, as it does with Ctrl-C

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
            self.step("open", arguments[0])
        elif event in EVENTS:
            self.step(event, arguments[0])

    def watch(self) -> None:
        sys.addaudithook(self.audit)
        fsync, opened = os.fsync, io.open

        def seen_fsync(handle: int) -> None:
            self.step("fsync", os.readlink(f"/proc/self/fd/{handle}"))
            fsync(handle)

        def seen_open(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
            stream = opened(file, mode, *arguments, **named)
            if set(mode) & set("wxa+"):
                path = os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else os.fspath(file)
                return Watched(stream, path, self)
            return stream

        os.fsync, io.open, builtins.open = seen_fsync, seen_open, seen_open


class Watched:
    """A file opened for writing, each of whose writes is a step."""

    def __init__(self, stream: Any, path: str, steps: Steps) -> None:
        self._stream, self._path, self._steps = stream, path, steps

    def write(self, data: Any) -> Any:
        def half() -> None:
            self._stream.write(bytes(data)[: len(data) // 2])
            self._stream.flush()

        self._steps.step("write", self._path, half)
        return self._stream.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


def workspace(folder: Path) -> None:
    from mms_sdk.storage.workspace import Workspace

    Workspace(folder / "workspace").catalog.close()


def commit(folder: Path) -> None:
    from small_datasets import COLUMNS

    from mms_sdk.schema.dataset import Sealed
    from mms_sdk.storage.changes import Addition
    from mms_sdk.storage.datasets import Dataset
    from mms_sdk.storage.stores.local import LocalStore

    dataset = Dataset.open(LocalStore(folder / "flowers"), "flowers")
    part = Sealed.model_validate_json((folder / "part.json").read_text())
    dataset.commit(Addition(parts=[part], columns=COLUMNS), base=dataset.record(), rebase=False)


def append(folder: Path) -> None:
    from small_datasets import add, content_of

    from mms_sdk.storage.datasets import Dataset
    from mms_sdk.storage.stores.local import LocalStore

    add(Dataset.open_or_create(LocalStore(folder / "flowers"), "flowers"), content_of(7, seed=9))


def delete(folder: Path) -> None:
    from mms_sdk.storage.datasets import Dataset
    from mms_sdk.storage.edits import delete_rows
    from mms_sdk.storage.stores.local import LocalStore

    dataset = Dataset.open(LocalStore(folder / "flowers"), "flowers")
    delete_rows(dataset, [1, 4, 12], of=dataset.snapshot())


def column(folder: Path) -> None:
    from mms_sdk.schema.dataset import Column
    from mms_sdk.storage.datasets import Dataset
    from mms_sdk.storage.edits import write_column
    from mms_sdk.storage.stores.local import LocalStore

    dataset = Dataset.open(LocalStore(folder / "flowers"), "flowers")
    twice = Column(name="twice", kind="number", dtype="int32")
    write_column(dataset, twice, lambda rows: 2 * rows["label"], inputs=["label"], of=dataset.snapshot())


def put_together(folder: Path) -> None:
    from mms_sdk.storage.datasets import Dataset
    from mms_sdk.storage.edits import compact
    from mms_sdk.storage.stores.local import LocalStore

    dataset = Dataset.open(LocalStore(folder / "flowers"), "flowers")
    compact(dataset, of=dataset.snapshot())


def clean(folder: Path) -> None:
    from mms_sdk.compute.data.clean_stored import clean
    from mms_sdk.schema.cleaning import Convert, KeepWhere
    from mms_sdk.schema.specs import CleanSpec
    from mms_sdk.storage.datasets import Dataset
    from mms_sdk.storage.stores.local import LocalStore

    dataset = Dataset.open(LocalStore(folder / "flowers"), "flowers")
    spec = CleanSpec(clean=(KeepWhere("label != 'cat'"), Convert("source", "category")))
    clean(dataset, spec, job="one", folder=folder, tell=lambda _progress: None)


def join(folder: Path) -> None:
    from mms_sdk.compute.data.join import join
    from mms_sdk.schema.specs import JoinSpec
    from mms_sdk.storage.datasets import Dataset
    from mms_sdk.storage.stores.local import LocalStore

    flowers = Dataset.open(LocalStore(folder / "flowers"), "flowers").snapshot()
    made = Dataset.open_or_create(LocalStore(folder / "joined"), "joined")
    spec = JoinSpec(left="flowers", right="flowers", on={"source": "source"}, columns=("image",), suffix="_2")
    join(made, flowers, flowers, spec, job="one", tell=lambda _progress: None)


def tidy(folder: Path) -> None:
    from mms_sdk.storage.datasets import Dataset
    from mms_sdk.storage.retention import collect_garbage, expire
    from mms_sdk.storage.stores.local import LocalStore

    dataset = Dataset.open(LocalStore(folder / "flowers"), "flowers")
    expire(dataset)
    collect_garbage(dataset, grace_s=0)


def ingest(folder: Path) -> None:
    from mms_sdk.compute.data.ingest import ingest
    from mms_sdk.schema.cleaning import DropDuplicates, DropUnreadable
    from mms_sdk.schema.sources import ImageFolder
    from mms_sdk.schema.specs import IngestSpec
    from mms_sdk.storage.workspace import Workspace

    spec = IngestSpec(source=ImageFolder(folder.parent / "photos"), clean=(DropUnreadable(), DropDuplicates()))
    workspace = Workspace(folder / "workspace")
    ingest(
        workspace.open_or_create_dataset("flowers"),
        spec,
        job="one",
        folder=workspace.job_folder("one"),
        tell=lambda _progress: None,
    )


def follow(folder: Path, job: str = "dying") -> None:
    import asyncio

    from mms_sdk.compute.data.follow import Batches, Following, follow
    from mms_sdk.compute.data.streams import Record
    from mms_sdk.schema.dataset import Column
    from mms_sdk.storage.datasets import Dataset
    from mms_sdk.storage.stores.local import LocalStore

    class Numbers:
        name = "numbers"

        async def records(self, after: Any) -> Any:
            for number in range(after or 0, 7):
                yield Record(number + 1, {"number": number if number % 3 else None}, str(number))

    (folder / job).mkdir()
    asked = Following(
        columns=[Column(name="number", kind="number", dtype="int64")], batches=Batches(rows=3, seconds=60)
    )
    dataset = Dataset.open_or_create(LocalStore(folder / "rows"), "rows")
    stop, tell = threading.Event(), lambda _progress: None
    asyncio.run(follow(dataset, Numbers(), asked, job=job, folder=folder / job, tell=tell, stop=stop))


WORK: dict[str, Callable[[Path], None]] = {
    "workspace": workspace,
    "commit": commit,
    "append": append,
    "delete": delete,
    "column": column,
    "clean": clean,
    "join": join,
    "put together": put_together,
    "tidy": tidy,
    "ingest": ingest,
    "follow": follow,
}


def run_child(work: Callable[[Path], None], folder: Path, steps: Steps, report: int) -> None:
    error: BaseException | None = None
    signal.alarm(HANGS_AFTER_S)  # a child that hangs must not outlive the test
    steps.watch()
    try:
        work(folder)
    except BaseException as raised:  # noqa: BLE001
        error = raised
    told = {"error": type(error).__name__ if error else "", "message": str(error or ""), "where": steps.told}
    os.write(report, json.dumps(told).encode())
    os._exit(0)


def one(name: str, how: str, template: Path, out: Path, number: int) -> dict[str, Any]:
    folder = out / f"{number:03d}"
    shutil.copytree(template, folder)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.dup2(os.open(out / f"{number:03d}.where", os.O_WRONLY | os.O_CREAT, 0o600), 2)
        run_child(WORK[name], folder, Steps(folder, number, how), writing)
    os.close(writing)
    with open(reading, "rb") as pipe:
        told = json.loads(pipe.read() or b"{}")
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status)
    if killed and os.WTERMSIG(status) == signal.SIGALRM:
        raise SystemExit(f"step {number} of {name} hangs")
    if killed:
        told["where"] = (out / f"{number:03d}.where").read_text().splitlines()[-1].replace(str(folder), "")
    return {"step": number, "killed": killed, **told}


def main() -> None:
    name, how, template, out = sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
    # Imported before the first fork, so that a child starts in milliseconds. Zarr starts threads only when it is used.
    import small_datasets  # noqa: F401
    import zarr  # noqa: F401

    import mms_sdk.compute.data.clean_stored
    import mms_sdk.compute.data.follow
    import mms_sdk.compute.data.ingest
    import mms_sdk.compute.data.join
    import mms_sdk.storage.workspace  # noqa: F401

    stride, number, *_ = *map(int, sys.argv[5:]), 1, 1
    failed = True
    while failed:
        told = one(name, how, template, out, number)
        failed = bool(told["killed"] or told["where"])
        print(json.dumps(told), flush=True)
        number += stride


if __name__ == "__main__":
    main()
