"""A follower fails at any step and the next one goes on: each record is in one row, or once among the rejects."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.stores.local import LocalStore
from torture import DRIVER, die_at_steps, times

FOLLOW = (
    "import sys, pathlib, dies_at_step; [dies_at_step.follow(pathlib.Path(each), job='next') for each in sys.argv[1:]]"
)


def _told(folder: Path) -> tuple[list[int], list[int]]:
    """Numbers in rows, and numbers of records that the snapshots list as left out."""
    dataset = Dataset.open(LocalStore(folder / "rows"), "rows")
    if not dataset.snapshots():
        return [], []
    dataset.verify()
    left_out = []
    for number in dataset.snapshots():
        provenance = dataset.record(number).provenance
        begin, end = provenance["rejects"]
        lines = (folder / provenance["job"] / "rejects.jsonl").read_bytes()[begin:end].splitlines()
        left_out += [int(json.loads(line)["source"].removeprefix("numbers, ")) for line in lines]
    return dataset.snapshot().values("number").tolist(), left_out


@pytest.mark.torture
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("how", "stride"),
    [("kill", times(3, full=1)), ("enospc", times(6, full=3)), ("interrupt", times(6, full=3))],
    ids=["kill", "enospc", "interrupt"],
)
def test_a_follower_that_fails_at_any_step_and_the_next_bring_each_record_once(
    memory_path: Path, how: str, stride: int, capsys: pytest.CaptureFixture[str]
) -> None:
    template, out = memory_path / "template", memory_path / "out"
    template.mkdir()
    told = die_at_steps("follow", how, template, out, stride=stride)

    folders = [out / f"{attempt['step']:03d}" for attempt in told]
    for left in folders:
        if (left / "rows" / "dataset.json").exists():  # else it failed before there was one
            rows, left_out = _told(left)
            assert (rows, left_out) in [([], []), ([1, 2], [0]), ([1, 2, 4, 5], [0, 3]), ([1, 2, 4, 5], [0, 3, 6])]
    again = [sys.executable, "-c", FOLLOW, *map(str, folders)]
    done = subprocess.run(again, cwd=DRIVER.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for left in folders:
        assert _told(left) == ([1, 2, 4, 5], [0, 3, 6])
    assert len(told) > 100 / stride
    with capsys.disabled():
        print(f"\n{how}: {len(told) - 1} steps")
