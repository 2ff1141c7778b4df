"""Ingest: folders of picture files become a dataset, beside decoding the same files into one array.

What an ingest does besides is to decode each file a second time, so that all of it is known before anything is written;
to digest files; to place them in splits; and to have everything on the disk when it says so.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from benchmarks.storage import pictures
from benchmarks.table import Row, in_turns, speedup
from mms_sdk.compute.data.ingest import ingest
from mms_sdk.compute.data.kinds import image
from mms_sdk.schema.dataset import Column
from mms_sdk.schema.sources import ImageFolder
from mms_sdk.schema.specs import IngestSpec
from mms_sdk.storage.workspace import Workspace
from mms_sdk.storage.writing import Writing, begin

_PROCESSES = 2
_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True)
class Case:
    """Files of one kind."""

    files: int
    side: int
    suffix: str

    @property
    def what(self) -> str:
        """As the table says it."""
        return f"{self.files:,} {self.suffix.upper()} files of {self.side}×{self.side}×3"


CASES = (Case(files=50_000, side=32, suffix="png"), Case(files=5_000, side=224, suffix="jpeg"))


def rows(folder: Path, *, quick: bool) -> list[Row]:
    """The rows of this topic."""
    shrunk = 10 if quick else 1
    cases = [Case(files=case.files // shrunk, side=case.side, suffix=case.suffix) for case in CASES]
    return [row for case in cases for row in _measured(folder / case.suffix, case, rounds=1 if quick else 3)]


def _measured(folder: Path, case: Case, *, rounds: int) -> list[Row]:
    paths = _drawn(folder / "pictures", case)
    megabytes = sum(path.stat().st_size for path in paths) / 1e6
    workspaces = iter(range(1_000))
    runs = {
        "ingest": lambda: _ingested(folder / f"workspace-{next(workspaces)}", folder / "pictures"),
        "writers": lambda: _written(folder / f"workspace-{next(workspaces)}", paths, case),
        "one loop": lambda: _looped(folder / "array.npy", paths, case),
        "two loops": lambda: _looped_at_once(folder, paths, case),
    }
    seen = in_turns(runs, rounds)
    speed = {
        name: f"{case.files / median(seconds):,.0f} rows/s, {megabytes / median(seconds):,.1f} MB/s"
        for name, seconds in seen.items()
    }
    told = (
        ("an ingest, in one process", "ingest", "a loop over Pillow and np.save in one process", "one loop"),
        ("two processes that write one snapshot", "writers", "the loop in two processes", "two loops"),
    )
    return [
        Row(
            what=f"{case.what}: {what}",
            mms=speed[ours],
            beside=f"{beside}, {speed[peer]}",
            ratio=speedup(seen[ours], seen[peer]),
        )
        for what, ours, beside, peer in told
    ]


def _drawn(folder: Path, case: Case) -> list[Path]:
    rng = np.random.default_rng(0)
    paths: list[Path] = []
    for number in range(10):
        (folder / f"class-{number}").mkdir(parents=True)
    while len(paths) < case.files:
        for array in pictures(rng, min(_AT_ONCE, case.files - len(paths)), case.side):
            paths.append(folder / f"class-{len(paths) % 10}" / f"{len(paths):06d}.{case.suffix}")
            Image.fromarray(array).save(paths[-1])
    return paths


def _ingested(workspace: Path, pictures: Path) -> float:
    dataset = Workspace(workspace).open_or_create_dataset("pictures")
    began = time.perf_counter()
    spec = IngestSpec(source=ImageFolder(pictures))
    snapshot, _ = ingest(dataset, spec, job="measured", folder=workspace, tell=lambda _: None)
    spent = time.perf_counter() - began
    assert snapshot.rows == len(list(pictures.rglob("*.*")))
    return spent


def _written(workspace: Path, paths: Sequence[Path], case: Case) -> float:
    dataset = Workspace(workspace).open_or_create_dataset("pictures")
    column = Column(name="image", kind="image", dtype="uint8", shape=(case.side, case.side, 3), color="rgb")
    with _processes() as pool:
        began = time.perf_counter()
        writing = begin(dataset, [column])
        shares = [(writing, f"{number}", paths[number::_PROCESSES]) for number in range(_PROCESSES)]
        list(pool.map(_write, *zip(*shares, strict=True)))
        snapshot = writing.commit(expect=_PROCESSES)
        spent = time.perf_counter() - began
    assert snapshot.rows == len(paths)
    return spent


def _write(writing: Writing, key: str, paths: Sequence[Path]) -> None:
    with writing.writer(key) as writer:
        for start in range(0, len(paths), _AT_ONCE):
            some = paths[start : start + _AT_ONCE]
            writer.write({"image": np.stack([image.decode(path.read_bytes(), color="rgb") for path in some])})


def _looped_at_once(folder: Path, paths: Sequence[Path], case: Case) -> float:
    with _processes() as pool:
        began = time.perf_counter()
        shares = [(folder / f"array-{number}.npy", paths[number::_PROCESSES], case) for number in range(_PROCESSES)]
        list(pool.map(_looped, *zip(*shares, strict=True)))
        return time.perf_counter() - began


def _looped(out: Path, paths: Sequence[Path], case: Case) -> float:
    began = time.perf_counter()
    array = np.empty((len(paths), case.side, case.side, 3), np.uint8)
    for number, path in enumerate(paths):
        with Image.open(path) as opened:
            array[number] = opened.convert("RGB")
    with out.open("wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - began


def _processes() -> ProcessPoolExecutor:
    pool = ProcessPoolExecutor(_PROCESSES, mp_context=multiprocessing.get_context("spawn"))
    list(pool.map(time.sleep, [0.5] * _PROCESSES))  # started, with what they import, before anything is measured
    return pool
