"""What arrives over time, through a workspace: streams that are followed, folders that are watched."""

from __future__ import annotations

import asyncio
import io
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from PIL import Image

import mms_sdk as mms
from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.cleaning import Reject

X = mms.Column(name="x", kind="number", dtype="int64")
FAST = {"every_s": 0.1, "settle_s": 0.4}


@pytest.fixture
def ws(tmp_path: Path) -> Iterator[mms.WorkspaceClient]:
    with mms.connect(workspace=tmp_path / "ws") as ws:
        yield ws


class Counting:
    """Numbers from 0, each with its own as position."""

    name = "counting"

    def __init__(self, upto: int) -> None:
        self.upto = upto

    async def records(self, after: Any) -> Any:
        for number in range(0 if after is None else after + 1, self.upto):
            yield mms.Record(number, {"x": number if number % 10 else "ten"})


def test_a_stream_is_followed_as_a_job_and_goes_on_the_next_time(ws: mms.WorkspaceClient) -> None:
    batch = mms.Batches(rows=10)
    job = ws.datasets.follow("numbers", Counting(25), columns=[X], batch=batch, message="live")
    assert (job.state, job.record.kind) == ("succeeded", "follow")
    assert job.result == {"snapshots": 3, "rows": 22, "rejected": 3}
    assert job.record.spec["stream"] == "counting"
    assert ws.datasets.follow("numbers", Counting(27)).result["rows"] == 2

    numbers = ws.datasets.get("numbers")
    assert numbers.ref == "numbers@4"
    assert numbers.open().values("x").tolist() == [number for number in range(27) if number % 10]
    assert [dataset.rejects() for dataset in map(ws.datasets.get, ("numbers@1", "numbers@4"))] == [
        [reject(0)],
        [],
    ]
    assert ws.datasets.get("numbers@3").rejects() == [reject(20)]
    assert ws.datasets.get("numbers@2").cleaning.kept == 9


def reject(number: int) -> Reject:
    reason = "column 'x' takes whole numbers from -9223372036854775808 to 9223372036854775807; got 'ten'"
    return Reject(source=f"the record before {number}", reason=reason)


def test_an_iterator_is_followed_in_the_event_loop_that_it_belongs_to(ws: mms.WorkspaceClient) -> None:
    async def notebook() -> mms.Job:
        queue: asyncio.Queue[int] = asyncio.Queue(1)

        async def fill() -> None:
            for number in range(7):
                await queue.put(number)

        async def records() -> Any:
            for _ in range(7):
                yield {"x": await queue.get()}

        filling = asyncio.create_task(fill())
        job = await ws.datasets.follow_async("numbers", records(), columns=[X], named="mine")
        await filling
        return job

    assert asyncio.run(notebook()).result == {"snapshots": 1, "rows": 7, "rejected": 0}
    assert ws.datasets.get("numbers").info.provenance["stream"] == "mine"


def test_it_is_followed_where_an_event_loop_runs_already(ws: mms.WorkspaceClient) -> None:
    async def cell() -> mms.Job:
        return ws.datasets.follow("numbers", Counting(5), columns=[X])

    assert asyncio.run(cell()).result["rows"] == 4


def test_a_stream_that_fails_fails_its_job_and_what_came_before_is_kept(ws: mms.WorkspaceClient) -> None:
    async def fails() -> Any:
        yield {"x": 1}
        raise ValueError("the wire is cut")

    with pytest.raises(ValueError, match="the wire is cut"):
        ws.datasets.follow("numbers", fails(), columns=[X])
    job = ws.jobs.list()[0]
    assert (job.state, job.record.error["detail"]) == ("failed", "ValueError: the wire is cut")
    assert ws.datasets.get("numbers").rows == 1


def test_it_ends_when_told_from_another_thread(ws: mms.WorkspaceClient) -> None:
    stop = threading.Event()

    async def waits() -> Any:
        yield {"x": 1}
        stop.set()
        await asyncio.Event().wait()

    assert ws.datasets.follow("numbers", waits(), columns=[X], stop=stop).result["rows"] == 1


_ENDLESS = """
import asyncio, sys
import mms_sdk as mms

async def endless():
    for number in range(10**9):
        yield {"x": number}
        if number == 20:
            print("reading", flush=True)
            await asyncio.Event().wait()

x = mms.Column(name="x", kind="number", dtype="int64")
mms.connect(workspace=sys.argv[1]).datasets.follow("numbers", endless(), columns=[x])
"""


def test_an_interrupt_ends_it_once_what_was_read_is_committed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _ENDLESS, str(tmp_path / "ws")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "reading\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1].rstrip().endswith("KeyboardInterrupt")
    with mms.connect(workspace=tmp_path / "ws") as ws:
        assert ws.datasets.get("numbers").rows == 21
        assert ws.jobs.list()[0].state == "succeeded"


def test_what_cannot_be_followed_or_watched_is_refused(ws: mms.WorkspaceClient, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"a stream has a name and records\(after\)"):
        ws.datasets.follow("numbers", [{"x": 1}], columns=[X])  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="a cleaning step is made by a call"):
        ws.datasets.follow("numbers", Counting(1), columns=[X], clean="drop")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="a dataset begins with its columns"):
        ws.datasets.follow("numbers", Counting(1))
    with pytest.raises(InvalidRequest, match="a folder is looked at every so many seconds"):
        ws.datasets.watch("photos", tmp_path, every_s=0)
    with pytest.raises(InvalidRequest, match="is not there; check the path"):
        ws.datasets.watch("photos", tmp_path / "none")
    assert [job.state for job in ws.jobs.list()] == ["failed"]


def test_a_servers_workspace_is_not_written_to_from_here(tmp_path: Path) -> None:
    with mms.connect("http://127.0.0.1:1", token="nobody is asked") as ws:
        with pytest.raises(InvalidRequest, match="a stream is followed where the files lie"):
            ws.datasets.follow("numbers", Counting(1), columns=[X])
        with pytest.raises(InvalidRequest, match="a folder is watched where the files lie"):
            ws.datasets.watch("photos", tmp_path)


# Watched folders -------------------------------------------------------------------------------------------------


def picture(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


class Watching:
    """A folder that is watched from another thread."""

    def __init__(self, ws: mms.WorkspaceClient, name: str, source: Any, **options: Any) -> None:
        self.said: list[str] = []
        self.stop = threading.Event()
        asked = {**FAST, **options, "say": self.said.append, "stop": self.stop}
        self.thread = threading.Thread(target=lambda: ws.datasets.watch(name, source, **asked))
        self.thread.start()

    def until(self, holds: Callable[[], bool]) -> None:
        """Waits for something."""
        began = time.monotonic()
        while not holds():
            assert self.thread.is_alive(), self.said
            assert time.monotonic() - began < 30, self.said
            time.sleep(0.02)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join(30)
        assert not self.thread.is_alive()


def rows(ws: mms.WorkspaceClient, name: str) -> int:
    try:
        return ws.datasets.get(name).rows
    except mms.errors.DatasetNotFound:
        return 0


def test_pictures_come_in_whole_though_they_are_written_slowly(ws: mms.WorkspaceClient, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    put(folder / "cat/0.png", picture(0))
    with Watching(ws, "pets", mms.ImageFolder(folder)) as watching:
        watching.until(lambda: rows(ws, "pets") == 1)
        slow = picture(1)
        with (folder / "cat/1.png").open("wb") as file:
            for at in range(0, len(slow), len(slow) // 8):
                file.write(slow[at : at + len(slow) // 8])
                file.flush()
                time.sleep(0.15)  # less than it takes to settle
                assert rows(ws, "pets") == 1
        put(folder / "dog/.2.png.part", picture(2))
        time.sleep(0.6)
        (folder / "dog/.2.png.part").rename(folder / "dog/2.png")
        watching.until(lambda: rows(ws, "pets") == 3)
        time.sleep(1.0)
    found = ws.datasets.get("pets").open()
    assert found.gather("source", range(3)) == [b"cat/0.png", b"cat/1.png", b"dog/2.png"]
    assert ws.datasets.get("pets").labels == ("cat", "dog")
    brought = [each for each in watching.said if each.startswith("pets@")]  # a busy machine may look at half a picture
    assert len(ws.datasets.snapshots("pets")) == len(brought) <= 3  # none when nothing was new
    assert watching.said[0] == "pets@1: 1 new"
    again = ws.datasets.ingest("pets", mms.ImageFolder(folder))
    assert (again.cleaning.already_present, again.rows) == (3, 3)


def test_begun_again_it_makes_no_snapshot_of_what_is_there(ws: mms.WorkspaceClient, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    put(folder / "cat/0.png", picture(0))
    for _ in range(2):
        with Watching(ws, "pets", folder) as watching:
            watching.until(lambda: bool(watching.said))
    assert watching.said == ["pets@1: 0 new"]
    assert len(ws.datasets.snapshots("pets")) == 1
    assert [job.result["snapshot"] for job in ws.jobs.list()] == [1, 1]


def test_an_unreadable_file_holds_the_round_up_until_it_is_mended_or_a_step_drops_it(
    ws: mms.WorkspaceClient, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    put(folder / "cat/0.png", picture(0))
    put(folder / "cat/1.png", b"no picture")
    with Watching(ws, "pets", folder) as watching:
        watching.until(lambda: len(watching.said) == 2)
        assert all(
            line.startswith("nothing came in this time: every picture of a source decodes") for line in watching.said
        )
        put(folder / "cat/1.png", picture(1))
        watching.until(lambda: rows(ws, "pets") == 2)
    put(folder / "cat/2.png", b"no picture")
    put(folder / "cat/3.png", picture(3))
    with Watching(ws, "pets", folder, clean=mms.drop_unreadable()) as watching:
        watching.until(lambda: rows(ws, "pets") == 3)
    job = ws.jobs.list()[0]
    pets = ws.datasets.get("pets")
    assert watching.said == [f"{pets.ref}: 1 new, 1 left out; job {job.id} lists them"]
    assert [reject.source for reject in pets.rejects()] == ["cat/2.png"]


def test_of_a_table_that_grows_what_is_new_comes_in(ws: mms.WorkspaceClient, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    put(folder / "a.csv", b"x,y\n1,a\n2,b\n")
    with Watching(ws, "rows", mms.CSV(folder)) as watching:
        watching.until(lambda: rows(ws, "rows") == 2)
        with (folder / "a.csv").open("ab") as file:
            file.write(b"3,c\n")
        put(folder / "b.csv", b"x,y\n4,d\n")
        watching.until(lambda: rows(ws, "rows") == 4)
    assert ws.datasets.get("rows").open().values("x").tolist() == [1, 2, 3, 4]


def test_mms_datasets_watch_takes_what_comes_until_it_is_interrupted(tmp_path: Path) -> None:
    folder, workspace = tmp_path / "in", tmp_path / "ws"
    put(folder / "cat/0.png", picture(0))
    command = [sys.executable, "-m", "mms_sdk.cli", "datasets", "watch", "pets", str(folder)]
    options = ["--every", "0.1s", "--settle", "0.2s", "--workspace", str(workspace)]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "pets@1: 1 new\n"
    put(folder / "dog/1.png", picture(1))
    assert process.stdout.readline() == "pets@2: 1 new\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("", "mms: interrupted\n")
    assert process.returncode == 130
