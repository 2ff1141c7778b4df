from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from mms_sdk.errors import CheckpointNotFound, Damaged, MmsError, NotWritable, StorageFull
from mms_sdk.storage import checkpoints as module
from mms_sdk.storage import manifest
from mms_sdk.storage.checkpoints import CheckpointFolder, open_checkpoint

DRIVER = Path(__file__).with_name("saves_until_killed.py")


def tree(step: int) -> dict[str, Any]:
    """Arrays of several dtypes, one spread over the devices, that tell their step."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    return {
        "params": {"w": jax.device_put(jnp.arange(64, dtype=jnp.float32).reshape(16, 4) + step, spread)},
        "half": jnp.full((3,), step, jnp.bfloat16),
        "count": jnp.array(step, jnp.int32),
    }


def expected(step: int) -> dict[str, Any]:
    return {
        "params": {"w": np.arange(64, dtype=np.float32).reshape(16, 4) + np.float32(step)},
        "half": np.full((3,), step, jnp.bfloat16),
        "count": np.array(step, np.int32),
    }


def assert_holds(found: Any, step: int) -> None:
    jax.tree.map(lambda one, other: np.testing.assert_array_equal(np.asarray(one), other), found, expected(step))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[CheckpointFolder]:
    opened = CheckpointFolder(tmp_path / "checkpoints", keep=2)
    yield opened
    opened._worker.shutdown()


def save(folder: CheckpointFolder, *steps: int, best: int | None = None) -> None:
    for step in steps:
        folder.save(step, tree(step), {"epoch": step}, best=step == best)
    folder.wait()


def save_arrays(folder: CheckpointFolder, step: int, arrays: dict[str, Any]) -> None:
    folder.save(step, arrays, {}, best=True)
    folder.wait()


def plain_orbax(checkpoint: Path) -> Any:
    """The arrays, as somebody reads them who has Orbax and nothing else."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sharding info not provided")  # it then asks the file, as is wanted here
        return ocp.load(checkpoint / "state")


def steps_of(folder: CheckpointFolder) -> list[int]:
    return [checkpoint.step for checkpoint in folder.all()]


def flip(path: Path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def largest_file(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


# Saving and restoring -------------------------------------------------------------------------------------------


def test_a_checkpoint_restores_with_plain_orbax_to_the_bit(folder: CheckpointFolder) -> None:
    save(folder, 7)

    found = plain_orbax(folder.root / "0000000007")

    assert_holds(found, 7)
    assert found["half"].dtype == jnp.bfloat16


def test_a_checkpoint_is_restored_onto_the_shardings_that_are_asked_for(folder: CheckpointFolder) -> None:
    save(folder, 7)
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    spread = NamedSharding(mesh, PartitionSpec("fsdp", "data"))
    alone = NamedSharding(mesh, PartitionSpec())
    target = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=alone), tree(7))
    target["params"]["w"] = jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=spread)

    found = folder.at(7).load(target)

    assert_holds(found, 7)
    assert found["params"]["w"].sharding == spread


def test_what_was_said_with_a_checkpoint_is_kept_beside_it(folder: CheckpointFolder) -> None:
    meta = {"position": {"epoch": 1, "batch": 3}, "history": [{"val/loss": 0.25}], "options": {"name": "ü"}}
    folder.save(7, tree(7), meta, best=False)
    folder.wait()

    assert folder.at(7).meta == {**meta, "step": 7}
    assert open_checkpoint(folder.root / "0000000007").step == 7


def test_arrays_may_be_given_up_as_soon_as_saving_returns(folder: CheckpointFolder) -> None:
    arrays = tree(7)
    folder.save(7, arrays, {}, best=False)
    for array in jax.tree.leaves(arrays):
        array.delete()
    folder.wait()

    assert_holds(plain_orbax(folder.root / "0000000007"), 7)


def test_a_step_counts_only_once_it_is_complete(folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    seal = manifest.seal
    seen: list[list[int]] = []

    def slow_seal(draft: Path) -> str:
        seen.append(steps_of(folder))
        return seal(draft)

    monkeypatch.setattr(manifest, "seal", slow_seal)
    save(folder, 1, 2)

    assert seen == [[], [1]]
    assert steps_of(folder) == [1, 2]


def test_the_newest_few_and_the_best_are_kept(folder: CheckpointFolder) -> None:
    save(folder, 1, 2, 3, 4, 5, best=2)
    assert steps_of(folder) == [2, 4, 5]

    save(folder, 6, 7, best=7)
    assert steps_of(folder) == [6, 7]
    assert_holds(plain_orbax(folder.root / "0000000007"), 7)


def test_saving_a_step_again_keeps_it_and_may_make_it_the_best(folder: CheckpointFolder) -> None:
    save(folder, 1)
    save(folder, 1, best=1)
    save(folder, 2, 3, 4)

    assert steps_of(folder) == [1, 3, 4]


def test_the_same_step_behind_the_end_of_an_epoch_holds_what_was_measured_there(folder: CheckpointFolder) -> None:
    before = {"position": {"epoch": 0, "batch": 9}, "history": [], "best_step": 0, "stopped": ""}
    behind = before | {"position": {"epoch": 1, "batch": 0}, "history": [{"val/loss": 0.5}], "best_step": 1}
    later = {"seconds": 7.0}  # tells nothing of where the run stands
    for meta, best in ((before, False), (behind, True), (behind | later, True)):
        folder.save(1, tree(1), meta, best=best)
    folder.wait()

    assert folder.at(1).meta == behind | {"step": 1}
    save(folder, 2, 3, 4)
    assert steps_of(folder) == [1, 3, 4]


def test_a_run_that_went_back_past_a_damaged_checkpoint_saves_it_anew(folder: CheckpointFolder) -> None:
    save(folder, 1, 2)
    flip(largest_file(folder.root / "0000000002"), 100)
    assert folder.newest_good()[0].step == 1

    save(folder, 2)

    assert folder.newest_good()[0].step == 2
    assert_holds(plain_orbax(folder.root / "0000000002"), 2)


# Damage ---------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_any_file_is_noticed_before_anything_is_restored(
    folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(folder, 7)
    monkeypatch.setattr(ocp, "load", lambda *_: pytest.fail("damaged arrays were restored"))
    rng = np.random.default_rng(0)
    checkpoint = folder.at(7)
    tried = 0

    for path in [path for path in checkpoint.folder.rglob("*") if path.is_file()]:
        whole = path.read_bytes()
        for _ in range(40 if whole else 0):
            flip(path, int(rng.integers(len(whole))), int(rng.integers(8)))
            with pytest.raises(Damaged, match=r"checkpoint 0000000007 .*backup"):
                checkpoint.load(None)
            path.write_bytes(whole)
            tried += 1

    assert tried >= 40 * 8
    checkpoint.verify()


def test_plain_orbax_would_have_restored_a_flipped_bit_without_a_word(folder: CheckpointFolder) -> None:
    """Why there is a manifest. Should this fail one day, Orbax checks its bytes itself."""
    random = jax.random.normal(jax.random.key(0), (64, 64))
    folder.save(7, {"w": random}, {}, best=False)
    folder.wait()
    path = largest_file(folder.at(7).folder)
    whole = path.read_bytes()
    silent = 0

    for at in np.random.default_rng(0).integers(len(whole) // 4, 3 * len(whole) // 4, 10):
        flip(path, int(at))
        with contextlib.suppress(Exception):
            silent += not np.array_equal(plain_orbax(folder.root / "0000000007")["w"], random)
        path.write_bytes(whole)

    assert silent > 0


def test_the_newest_good_checkpoint_is_found_past_damaged_ones_and_it_is_said_what_was_wrong(
    folder: CheckpointFolder,
) -> None:
    save(folder, 1, 2, 3, best=1)
    flip(largest_file(folder.root / "0000000003"), 50)
    (folder.root / "0000000002" / "meta.json").unlink()

    checkpoint, faults = folder.newest_good()

    assert checkpoint.step == 1
    assert len(faults) == 2
    assert "checkpoint 0000000003 is damaged" in faults[0]
    assert "meta.json" in faults[1]


def test_where_no_checkpoint_is_good_it_is_said_why(folder: CheckpointFolder) -> None:
    with pytest.raises(CheckpointNotFound, match=r"no good checkpoint in .*; found: none"):
        folder.newest_good()
    save(folder, 1)
    flip(largest_file(folder.root / "0000000001"), 50)

    with pytest.raises(CheckpointNotFound, match=r"no good checkpoint in .*0000000001 is damaged"):
        folder.newest_good()
    with pytest.raises(CheckpointNotFound, match=r"0000000009 is not a complete checkpoint; it has no MANIFEST\.json"):
        folder.at(9)


@pytest.mark.parametrize("missing", ["MANIFEST.json", "meta.json", "state"])
def test_a_checkpoint_that_was_not_completed_never_counts(folder: CheckpointFolder, missing: str) -> None:
    save(folder, 1, 2)
    path = folder.root / "0000000002" / missing
    path.rename(folder.root.parent / "aside")

    assert folder.newest_good()[0].step == 1


def test_what_a_killed_process_left_behind_never_counts_and_goes_with_the_next_save(folder: CheckpointFolder) -> None:
    save(folder, 1)
    for name in (".0000000002.partial", ".0000000001.retired"):
        (folder.root / name / "state").mkdir(parents=True)
        (folder.root / name / "state" / "x").write_text("x")

    assert steps_of(folder) == [1]
    assert folder.newest_good()[0].step == 1
    save(folder, 2, 3)

    assert sorted(path.name for path in folder.root.iterdir()) == ["0000000002", "0000000003"]


# Disks that fail ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fail_in", "code", "kind"),
    [
        ("seal", errno.ENOSPC, StorageFull),
        ("seal", errno.EROFS, NotWritable),
        ("write_durable", errno.EDQUOT, StorageFull),
        ("rename", errno.ENOSPC, StorageFull),
    ],
)
def test_a_save_that_fails_is_told_and_never_listed_and_the_one_before_stays(
    folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch, fail_in: str, code: int, kind: type[MmsError]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    save(folder, 1)
    owner: Any = {"seal": manifest, "write_durable": module.files, "rename": Path}[fail_in]
    with monkeypatch.context() as patch:
        patch.setattr(owner, fail_in, fail)
        folder.save(2, tree(2), {}, best=True)
        with pytest.raises(kind, match=os.strerror(code)):
            folder.wait()

    assert [path.name for path in folder.root.iterdir()] == ["0000000001"]
    assert folder.newest_good()[0].step == 1
    folder.wait()
    save(folder, 3)
    assert steps_of(folder) == [1, 3]


def test_a_failed_save_is_told_by_the_next_one(folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "seal", fail)
        folder.save(1, tree(1), {}, best=False)
        with pytest.raises(StorageFull):
            folder.save(2, tree(2), {}, best=False)

    assert steps_of(folder) == []


@pytest.mark.parametrize("kib", [8, 40, 300, 520])
def test_a_disk_that_gets_full_is_told_and_the_step_is_never_listed(
    small_disk: Callable[[int], Path], kib: int
) -> None:
    # 512 KiB of random numbers do not compress: too little room for the folder, for its metadata, for the arrays, or
    # for what comes after them.
    arrays = {"w": jax.random.bits(jax.random.key(0), (128, 1024), jnp.uint32)}
    folder = CheckpointFolder(small_disk(kib) / "checkpoints", keep=2)

    with pytest.raises(StorageFull, match=r"no space left while writing .*Free space there"):
        save_arrays(folder, 1, arrays)

    assert steps_of(folder) == []
    assert [path.name for path in folder.root.iterdir()] == []
    folder._worker.shutdown()


def test_a_disk_that_gets_full_keeps_the_checkpoint_that_was_there(small_disk: Callable[[int], Path]) -> None:
    folder = CheckpointFolder(small_disk(900) / "checkpoints", keep=2)
    arrays = {"w": jax.random.bits(jax.random.key(0), (128, 1024), jnp.uint32)}
    save_arrays(folder, 1, arrays)

    for step in (2, 3):
        with pytest.raises(StorageFull):
            save_arrays(folder, step, arrays)

    checkpoint, faults = folder.newest_good()
    assert (checkpoint.step, faults) == (1, [])
    np.testing.assert_array_equal(plain_orbax(checkpoint.folder)["w"], arrays["w"])
    folder._worker.shutdown()


@pytest.mark.torture
@pytest.mark.parametrize("after_s", [0.0, 0.03, 0.07, 0.13, 0.21, 0.31, 0.47, 0.7])
def test_a_process_killed_while_it_saves_loses_at_most_the_save_it_did_not_wait_for(
    tmp_path: Path, after_s: float
) -> None:
    root = tmp_path / "checkpoints"
    with subprocess.Popen([sys.executable, str(DRIVER), str(root)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while process.stdout.readline() != "4\n":
            pass
        time.sleep(after_s)
        process.kill()
        saved = max([4, *(int(line) for line in process.stdout.read().splitlines())])

    folder = CheckpointFolder(root, keep=2)
    checkpoint, faults = folder.newest_good()

    assert faults == []
    assert saved <= checkpoint.step <= saved + 2  # it may be killed before it tells of a save that it has waited for
    assert checkpoint.meta["epoch"] == checkpoint.step
    np.testing.assert_array_equal(plain_orbax(checkpoint.folder)["w"], np.full((64, 1024), checkpoint.step))
    for kept in folder.all():
        kept.verify()
    save(folder, checkpoint.step + 1)
    assert folder.newest_good()[0].step == checkpoint.step + 1
    folder.close()
