"""Jobs of a real Ray: `ray_jobs.py FOLDER`; to be started where there is no network but loopback.

Writes datasets into `FOLDER/workspace`, a file in `FOLDER/died` for each attempt that was ended, and prints a line of
JSON for each job: its name and what came of it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data

import mms_sdk as mms
from mms_sdk.compute.data import ray_data
from mms_sdk.storage.writing import Writing

NUMBER = mms.Column(name="number", kind="number", dtype="int64")
IMAGE = mms.Column(name="image", kind="image", dtype="uint8", shape=(4, 5, 3), color="rgb")
PARITY = mms.Column(name="label", kind="label", dtype="int32", labels=("even", "odd"))
TEXT = mms.Column(name="text", kind="text", dtype="uint8", shape=None)
STEPS = mms.Column(name="steps", kind="series", dtype="float32", shape=(None,), rate_hz=1.0)
COLUMNS = (NUMBER, IMAGE, PARITY, TEXT, STEPS)
SHARES, ROWS_OF_A_SHARE = 16, 5
BLOCKS, ROWS = 8, 200


def dies(folder: Path, who: str) -> None:
    """Kills this worker the first time it is asked."""
    if is_first(folder, who):
        os.kill(os.getpid(), signal.SIGKILL)


def is_first(folder: Path, who: str) -> bool:
    try:
        (folder / "died" / who).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def tasks(ws: mms.WorkspaceClient, folder: Path) -> mms.Dataset:
    """As in the documentation, with workers that die before and after they sealed, and tasks that fail."""

    @ray.remote(max_retries=5, retry_exceptions=True)
    def fill(writing: Writing, share: int) -> None:
        numbers = np.arange(share * ROWS_OF_A_SHARE, (share + 1) * ROWS_OF_A_SHARE)
        with writing.writer(f"share-{share:05}") as writer:
            writer.write({"number": numbers[:2]})
            if share % 8 == 0:
                dies(folder, f"task-{share}")
            if share % 4 == 1 and is_first(folder, f"failed-{share}"):
                raise ValueError("this task fails the first time")
            writer.write({"number": numbers[2:]})
        if share % 8 == 2:
            dies(folder, f"sealed-{share}")

    writing = ws.datasets.write("tasks", columns=[NUMBER])
    ray.get([fill.remote(writing, share) for share in range(SHARES)])
    writing.commit(expect=SHARES)
    return ws.datasets.get("tasks")


class DyingSink(ray_data.PartsSink):
    """A sink some of whose workers die once a part is sealed, before Ray hears of it."""

    def __init__(self, writing: Writing, folder: Path) -> None:
        super().__init__(writing)
        self.folder = folder

    def write(self, blocks: Any, ctx: Any) -> str:
        key = super().write(blocks, ctx)
        if ctx.task_idx % 4 == 0:
            dies(self.folder, f"written-{ctx.task_idx}")
        return key


def rows_of(batch: dict[str, Any]) -> dict[str, Any]:
    numbers = batch["id"]
    steps = np.empty(len(numbers), object)
    steps[:] = [np.arange(number % 4, dtype=np.float32) for number in numbers.tolist()]
    return {
        "number": numbers,
        "image": np.stack([np.full((4, 5, 3), number % 256, np.uint8) for number in numbers]),
        "label": np.array([PARITY.labels[number % 2] for number in numbers]),  # type: ignore[index]
        "text": [f"row {number} ü" for number in numbers],
        "steps": steps,
        "left_out": numbers * 2,
    }


def data(ws: mms.WorkspaceClient, folder: Path) -> mms.Dataset:
    """Rows of every kind, with workers that die while rows are made and once they are written."""

    def flaky(batch: dict[str, Any]) -> dict[str, Any]:
        if 60 in batch["id"] or 170 in batch["id"]:
            dies(folder, f"mapping-{batch['id'][0]}")
        return rows_of(batch)

    plain = ray_data.PartsSink
    ray_data.PartsSink = lambda writing: DyingSink(writing, folder)  # type: ignore[assignment,misc]
    try:
        rows = ray.data.range(ROWS, override_num_blocks=BLOCKS).map_batches(flaky)
        return ws.datasets.write_ray("data", rows, columns=COLUMNS, message="by Ray")
    finally:
        ray_data.PartsSink = plain  # type: ignore[misc]


def more(ws: mms.WorkspaceClient, folder: Path) -> mms.Dataset:
    """Further rows, with the columns that are there, and exceptions that Ray tries again after."""

    def failing(batch: dict[str, Any]) -> dict[str, Any]:
        if is_first(folder, "failed-more"):
            raise ValueError("this batch fails the first time")
        return rows_of({"id": batch["id"] + ROWS})

    rows = ray.data.range(20, override_num_blocks=2)
    return ws.datasets.write_ray("data", rows.map_batches(failing, retry_exceptions=[ValueError], max_retries=3))


def of(columns: tuple[mms.Column, ...], items: list[dict[str, Any]]) -> Callable[[mms.WorkspaceClient, Path], object]:
    return lambda ws, _: ws.datasets.write_ray("refused", ray.data.from_items(items), columns=columns)


def no_rows(ws: mms.WorkspaceClient, _: Path) -> object:
    rows = ray.data.range(3).rename_columns({"id": "number"}).filter(lambda row: row["number"] > 5)
    return ws.datasets.write_ray("refused", rows, columns=[NUMBER])


def raises(ws: mms.WorkspaceClient, _: Path) -> object:
    def fails(batch: dict[str, Any]) -> dict[str, Any]:
        raise ValueError("never works")

    return ws.datasets.write_ray("refused", ray.data.range(3).map_batches(fails), columns=[NUMBER])


JOBS: dict[str, Callable[[mms.WorkspaceClient, Path], object]] = {
    "tasks": tasks,
    "data": data,
    "more": more,
    "no such column": of((NUMBER,), [{"other": 1}]),
    "no such label": of((PARITY,), [{"label": "even"}, {"label": "neither"}]),
    "too large": of((mms.Column(name="x", kind="number", dtype="int8"),), [{"x": 1}, {"x": 300}]),
    "another shape": of((IMAGE,), [{"image": np.zeros((4, 6, 3), np.uint8)}]),
    "another dtype": of((IMAGE,), [{"image": np.zeros((4, 5, 3), np.float32)}]),
    "no value": of((NUMBER,), [{"number": 1}, {"number": None}]),
    "no rows": lambda ws, _: ws.datasets.write_ray(
        "refused",
        ray.data.range(3).filter(lambda row: row["id"] > 5).rename_columns({"id": "number"}),
        columns=[NUMBER],
    ),
    "no dataset": lambda ws, _: ws.datasets.write_ray("refused", [1, 2], columns=[NUMBER]),
    "user's own": raises,
}


def main() -> None:
    folder = Path(sys.argv[1])
    (folder / "died").mkdir()
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        _node_ip_address="127.0.0.1",
        _temp_dir=str(folder / "ray"),
        logging_level="error",
        log_to_driver=False,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    with mms.connect(workspace=folder / "workspace") as ws:
        for name, job in JOBS.items():
            try:
                told = {"job": name, "done": str(job(ws, folder)), "error": "", "message": ""}
            except Exception as error:  # noqa: BLE001
                told = {"job": name, "done": "", "error": type(error).__name__, "message": str(error)}
            print(json.dumps(told), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
