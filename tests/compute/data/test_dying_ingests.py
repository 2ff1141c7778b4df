from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from make_pictures import noise, write, write_classes

from mms_sdk.compute.data.ingest import ingest
from mms_sdk.schema.cleaning import DropDuplicates, DropUnreadable
from mms_sdk.schema.sources import ImageFolder
from mms_sdk.schema.specs import IngestSpec
from mms_sdk.storage.workspace import Workspace
from torture import die_at_steps, times

SPEC = {"clean": (DropUnreadable(), DropDuplicates())}


def ingest_here(root: Path, photos: Path) -> None:
    workspace = Workspace(root)
    dataset = workspace.open_or_create_dataset("flowers")
    spec = IngestSpec(source=ImageFolder(photos), clean=SPEC["clean"])
    ingest(dataset, spec, job="before", folder=workspace.job_folder("before"), tell=lambda _progress: None)
    workspace.close()


def expected(photos: Path) -> dict[str, np.ndarray]:
    seeds = {path.relative_to(photos).as_posix(): path for path in photos.rglob("*.png")}
    return {source: noise(6, 5, seed=seed_of(source)) for source in seeds}


def seed_of(source: str) -> int:
    label, _, name = source.partition("/")
    return {"cat": 0, "dog": 1000, "eel": 2000}[label] + int(name[:3])


@pytest.mark.torture
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("how", "stride"),
    [("kill", times(3, full=1)), ("enospc", 3), ("interrupt", 3)],
    ids=["kill", "enospc", "interrupt"],
)
@pytest.mark.parametrize("grown", [False, True], ids=["first ingest", "grown folder"])
def test_an_ingest_that_fails_at_any_step_leaves_the_old_or_the_new_snapshot_and_the_next_one_goes_well(
    memory_path: Path, grown: bool, how: str, stride: int
) -> None:
    photos, template, out = memory_path / "out" / "photos", memory_path / "template", memory_path / "out"
    write_classes(photos, {"cat": 4, "dog": 4})
    template.mkdir()
    if grown:
        ingest_here(template / "workspace", photos)
        for number in range(3):
            write(photos / "eel" / f"{number:03d}.png", noise(6, 5, seed=2000 + number))
    old, new = (8, 11) if grown else (0, 8)

    told = die_at_steps("ingest", how, template, out, stride=stride)

    pixels, states = expected(photos), []
    for attempt in told:
        root = out / f"{attempt['step']:03d}" / "workspace"
        workspace = Workspace(root)
        rows = 0
        if "flowers" in workspace.dataset_names():
            snapshot = workspace.dataset("flowers").snapshot()
            snapshot.verify()
            rows = snapshot.rows
            sources = snapshot.gather("source", np.arange(rows))
            for source, picture in zip(sources, snapshot.values("image"), strict=True):
                np.testing.assert_array_equal(picture, pixels[source.decode()])
        workspace.close()
        assert rows in (old, new), attempt
        states.append(rows)
        if len(states) % 5 == 0 or attempt is told[-1]:
            ingest_here(root, photos)
            snapshot = Workspace(root).dataset("flowers").snapshot()
            assert snapshot.rows == new
            assert snapshot.verify() > 0

    assert states == sorted(states)
    assert (states[0], states[-1]) == (old, new)
    assert told[-1]["step"] > 100
    if how == "enospc":
        assert {attempt["error"] for attempt in told} == {"StorageFull", ""}
        assert all("Free space there" in attempt["message"] for attempt in told if attempt["error"])
