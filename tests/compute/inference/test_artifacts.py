from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from made_artifacts import Spoilt, edit_card, seal_again
from registers_versions import STAGED

import mms_sdk as mms
import tiny_model
from mms_sdk.compute.inference.export import copy_model, read_card
from mms_sdk.compute.inference.predictor import Predictor
from mms_sdk.errors import Damaged, InvalidRequest, ModelNotFound
from mms_sdk.schema.names import ModelRef
from mms_sdk.storage import manifest
from mms_sdk.storage.stores.local import LocalStore
from mms_sdk.storage.workspace import Workspace
from tiny_model import Tiny

PROGRAM = Path(__file__).with_name("registers_versions.py")


@pytest.fixture
def kept(tiny: Tiny, tmp_path: Path) -> Path:
    """The artefact folder of `tiny@1` in the new workspace `tmp_path/workspace`."""
    workspace = Workspace(tmp_path / "workspace")
    tiny_model.register(tiny, workspace)
    workspace.close()
    (folder,) = (tmp_path / "workspace" / "artifacts").iterdir()
    return folder


@pytest.fixture
def ws(tmp_path: Path) -> Iterator[Any]:
    """A client of the workspace `tmp_path/workspace`."""
    with mms.connect(workspace=tmp_path / "workspace") as ws:
        yield ws


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def refusal(ws: Any) -> str:
    with pytest.raises(Damaged) as told:
        ws.deployments.create("tiny", model="tiny@1", max_batch=1)
    assert list(ws.deployments.list()) == []
    return told.value.message


def test_a_flipped_bit_in_any_file_is_damage_and_is_not_served(kept: Path, ws: Any) -> None:
    rng = random.Random(0)
    files = [path for path in files_of(kept) if path.stat().st_size]
    chosen = [*files, *rng.choices(files, k=40)]
    missed = []

    for path in chosen:
        data = path.read_bytes()
        path.write_bytes(flipped(data, rng.randrange(8 * len(data))))
        message = refusal(ws)
        if str(path) not in message or "model tiny@1 is damaged" not in message:
            missed.append((path.name, message))
        path.write_bytes(data)

    assert missed == []
    assert len(files) > 8
    assert ws.deployments.create("tiny", model="tiny@1", max_batch=1).record.state == "ready"


@pytest.mark.torture
def test_no_flipped_bit_out_of_two_thousand_goes_unseen(kept: Path, tmp_path: Path) -> None:
    rng = random.Random(1)
    workspace = Workspace(tmp_path / "workspace")
    row = workspace.catalog.models.resolve(ModelRef(name="tiny"))
    files = [path for path in files_of(kept) if path.stat().st_size]
    for path in rng.choices(files, k=2000):
        data = path.read_bytes()
        path.write_bytes(flipped(data, rng.randrange(8 * len(data))))
        with pytest.raises(Damaged, match=path.name):
            workspace.artifact(row["artifact"], digest=row["digest"], what="model tiny@1")
        path.write_bytes(data)
    workspace.artifact(row["artifact"], digest=row["digest"], what="model tiny@1")
    workspace.close()


def test_a_missing_file_is_damage(kept: Path, ws: Any) -> None:
    for path in files_of(kept):
        data = path.read_bytes()
        path.unlink()
        assert path.relative_to(kept).as_posix() in refusal(ws)
        path.write_bytes(data)
    assert ws.deployments.create("tiny", model="tiny@1", max_batch=1).record.state == "ready"


def test_a_file_too_short_or_too_long_is_damage(kept: Path, ws: Any) -> None:
    for path in files_of(kept):
        data = path.read_bytes()
        for other in (data[:-1], data[: len(data) // 2], b"", data + b"\0"):
            if other != data:
                path.write_bytes(other)
                assert path.relative_to(kept).as_posix() in refusal(ws)
        path.write_bytes(data)


@pytest.mark.parametrize("name", ["more.txt", "weights/more", "weights/state/d/more", ".hidden", "new/more.py"])
def test_a_file_too_many_is_damage(kept: Path, ws: Any, name: str) -> None:
    (kept / name).parent.mkdir(exist_ok=True)
    (kept / name).write_bytes(b"x")
    assert name in refusal(ws)


def test_an_artefact_sealed_again_after_a_change_is_not_the_one_that_was_registered(kept: Path, ws: Any) -> None:
    edit_card(kept, lambda card: card["labels"].reverse())
    seal_again(kept)
    assert "MANIFEST.json has digest" in refusal(ws)


def test_a_folder_that_is_gone_is_damage(kept: Path, ws: Any) -> None:
    shutil.rmtree(kept)
    assert "tiny@1 is incomplete" in refusal(ws)


def _next_version(card: dict[str, Any]) -> None:
    card["artifact_version"] = 2


BAD_CARDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "garbage": (lambda folder: (folder / "model.json").write_bytes(b"\x80\x04N."), "no readable model.json"),
    "no-object": (lambda folder: (folder / "model.json").write_bytes(b"[1]"), "no readable model.json"),
    "empty": (lambda folder: (folder / "model.json").write_bytes(b""), "no readable model.json"),
    "missing": (lambda folder: (folder / "model.json").unlink(), "no readable model.json"),
    "newer": (lambda folder: edit_card(folder, _next_version), "artefact version 2; this MMS reads 1; upgrade mms-sdk"),
    "no-card": (lambda folder: (folder / "model.json").write_bytes(b'{"artifact_version": 1}'), "is not a model card"),
    "more": (lambda folder: edit_card(folder, lambda card: card.update(code="import os")), "is not a model card"),
    "step": (lambda folder: edit_card(folder, lambda card: card["host"].append({"step": "os.system"})), "step is one"),
    "shape": (
        lambda folder: edit_card(folder, lambda card: card["signature"]["inputs"][0].update(shape=[9, 9, 3])),
        "its model.json says",
    ),
    "labels": (lambda folder: edit_card(folder, lambda card: card["labels"].pop()), "its model.json says"),
    "no-program": (lambda folder: (folder / "forward.stablehlo").write_bytes(b"garbage"), "does not load"),
    "half-program": (
        lambda folder: (folder / "forward.stablehlo").write_bytes((folder / "forward.stablehlo").read_bytes()[:3000]),
        "does not load",
    ),
    "empty-program": (lambda folder: (folder / "forward.stablehlo").write_bytes(b""), "does not load"),
    "missing-program": (lambda folder: (folder / "forward.stablehlo").unlink(), "does not load"),
    "no-weights": (lambda folder: shutil.rmtree(folder / "weights"), "does not load"),
    "no-values": (lambda folder: shutil.rmtree(folder / "weights/state/ocdbt.process_0"), "does not load"),
}


@pytest.mark.parametrize("what", BAD_CARDS)
def test_what_does_not_load_is_not_registered(tiny: Tiny, ws: Any, tmp_path: Path, what: str) -> None:
    spoil, reason = BAD_CARDS[what]

    with pytest.raises(Damaged, match=reason):
        ws.models.register("tiny", Spoilt(tiny.artifact, spoil))

    assert list(ws.models.list()) == []
    assert files_of(tmp_path / "workspace" / "artifacts") == []
    assert ws.models.register("tiny", Spoilt(tiny.artifact)).version == 1


def test_what_is_not_what_its_manifest_says_is_not_registered(tiny: Tiny, ws: Any, tmp_path: Path) -> None:
    class Changed(Spoilt):
        def export(self, folder: Path, *, metrics: Any = None) -> None:
            super().export(folder)
            edit_card(folder, lambda card: card["labels"].reverse())

    with pytest.raises(Damaged, match=r"staged artefact .* is damaged: .*model\.json"):
        ws.models.register("tiny", Changed(tiny.artifact))
    assert list(ws.models.list()) == []
    assert files_of(tmp_path / "workspace" / "artifacts") == []


def staged_in(template: Path, tiny: Tiny) -> None:
    workspace = Workspace(template / "workspace")
    tiny_model.register(tiny, workspace)
    workspace.close()
    shutil.copytree(tiny.artifact, template / "workspace" / "staging" / STAGED)
    shutil.copytree(tiny.artifact, template / "source")


def killed_at_every_step(work: str, tiny: Tiny, folder: Path) -> list[tuple[dict[str, Any], list[int]]]:
    """What was told of each child, and the versions there were after it."""
    template, out = folder / "template", folder / "out"
    template.mkdir()
    staged_in(template, tiny)
    out.mkdir()
    command = [sys.executable, "-W", "ignore", str(PROGRAM), "dies", work, str(template), str(out)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    ends = []
    for told in map(json.loads, ran.stdout.splitlines()):
        workspace = Workspace(out / f"{told['step']:03d}" / "workspace")
        rows = workspace.catalog.models.list("tiny")
        for row in rows:
            workspace.artifact(row["artifact"], digest=row["digest"], what="what is visible")
        assert tiny_model.register(tiny, workspace) == len(rows) + 1
        workspace.close()
        ends.append((told, sorted(row["version"] for row in rows)))
    return ends


def assert_old_then_new(ends: list[tuple[dict[str, Any], list[int]]], *, steps: int) -> None:
    assert all(told["killed"] for told, _ in ends[:-1])
    assert (ends[-1][0]["killed"], ends[-1][0]["error"]) == (False, "")
    visible = [versions for _, versions in ends]
    assert visible == sorted(visible)
    assert visible[0] == [1]
    assert visible[-1] == [1, 2]
    assert len(ends) > steps


def test_a_register_killed_at_any_step_shows_no_version_or_a_whole_one(tiny: Tiny, tmp_path: Path) -> None:
    assert_old_then_new(killed_at_every_step("keep", tiny, tmp_path), steps=3)


@pytest.mark.torture
@pytest.mark.timeout(600)
def test_registering_through_the_sdk_killed_at_any_step_shows_no_version_or_a_whole_one(
    tiny: Tiny, tmp_path: Path
) -> None:
    assert_old_then_new(killed_at_every_step("register", tiny, tmp_path), steps=30)


def test_workspaces_that_register_at_once_get_a_number_each(tiny: Tiny, tmp_path: Path) -> None:
    opened = [Workspace(tmp_path / "workspace") for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda number: tiny_model.register(tiny, opened[number % 4]), range(24)))
    assert sorted(numbers) == list(range(1, 25))
    assert len({row["artifact"] for row in opened[0].catalog.models.list("tiny")}) == 24
    for workspace in opened:
        workspace.close()


@pytest.mark.torture
def test_processes_that_register_at_once_get_a_number_each(tiny: Tiny, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", str(PROGRAM), "at-once", str(tmp_path / "ws"), str(tiny.artifact), "3"]
    Workspace(tmp_path / "ws").close()
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outs = [child.stdout for child in children if child.stdout is not None]
    assert [out.readline() for out in outs] == ["ready\n"] * 3

    (tmp_path / "go").touch()
    numbers = [int(line) for child in children for line in child.communicate()[0].splitlines()]

    assert sorted(numbers) == list(range(1, 10))
    workspace = Workspace(tmp_path / "ws")
    rows = workspace.catalog.models.list("tiny")
    assert sorted(row["version"] for row in rows) == list(range(1, 10))
    assert len({row["artifact"] for row in rows}) == 9
    workspace.close()


def test_a_staged_artefact_is_registered_once(tiny: Tiny, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "workspace")
    tiny_model.register(tiny, workspace)
    staged = workspace.catalog.models.list()[0]["artifact"]
    with pytest.raises(ModelNotFound, match="nothing is staged"):
        workspace.keep_artifact(staged)
    workspace.close()


def test_a_card_says_where_the_model_came_from(tiny: Tiny) -> None:
    card = read_card(tiny.artifact)
    assert card.labels == tiny_model.LABELS
    assert (card.signature.inputs[0].shape, card.signature.outputs[0].shape) == ((8, 6, 3), (3,))
    assert card.parameters == 8 * 6 * 3 * 16 + 16 + 16 * 3 + 3
    assert card.lineage.dataset == "pets@1"
    assert card.metrics["test/accuracy"] == 0.5
    np.testing.assert_allclose(card.device[0]["mean"], tiny.mean, atol=1e-5)
    np.testing.assert_allclose(card.device[0]["std"], tiny.std, atol=1e-5)


def test_no_file_of_an_artefact_is_or_holds_a_pickle(tiny: Tiny) -> None:
    for path in files_of(tiny.artifact):
        data = path.read_bytes()
        assert not data.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")), path
        # Two bytes are met by chance in random weights; with the frame that a pickle begins with they are not.
        assert b"\x80\x04\x95" not in data, path
        assert b"\x80\x05\x95" not in data, path
        assert not data.startswith(b"PK"), path


ALONE = """
import os, sys
os.environ["JAX_PLATFORMS"] = "cpu"
REFUSED = ("flax", "optax", "cloudpickle", "mms_sdk.compute.models", "mms_sdk.compute.training")

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if any(name == refused or name.startswith(refused + ".") for refused in REFUSED):
            raise ModuleNotFoundError(f"{name} is not to be had here", name=name)

sys.meta_path.insert(0, Refuse())

import pickle, _pickle

def poisoned(*_, **__):
    raise SystemExit("something was unpickled")

class Poisoned:
    def __init__(self, *_, **__):
        poisoned()

for module in (pickle, _pickle):
    module.load = module.loads = poisoned
    module.Unpickler = Poisoned
pickle._Unpickler = Poisoned

from pathlib import Path
import numpy as np
from mms_sdk.compute.inference.predictor import Predictor

predictor = Predictor(Path(sys.argv[1]), buckets=(1, 8))
np.save(sys.argv[3], predictor.scores(np.load(sys.argv[2])))
assert not [name for name in sys.modules if name.startswith(REFUSED)]
try:
    import flax
except ModuleNotFoundError:
    print("done")
"""


def test_a_version_predicts_where_its_source_cannot_be_imported_and_nothing_is_unpickled(
    tiny: Tiny, predictor: Predictor, kept: Path, tmp_path: Path
) -> None:
    pictures = tiny_model.pictures_of(20)
    np.save(tmp_path / "pictures.npy", pictures)

    command = [sys.executable, "-c", textwrap.dedent(ALONE), *map(str, (kept, tmp_path / "pictures.npy"))]
    ran = subprocess.run([*command, str(tmp_path / "scores.npy")], capture_output=True, text=True, check=False)

    assert (ran.returncode, ran.stdout) == (0, "done\n"), ran.stderr
    scores = np.load(tmp_path / "scores.npy")
    np.testing.assert_allclose(scores, predictor.scores(pictures), atol=1e-6)
    np.testing.assert_allclose(scores, tiny.scores(pictures), atol=1e-5)


def test_the_card_of_a_version_is_plain_json(tiny: Tiny) -> None:
    told = orjson.loads((tiny.artifact / "model.json").read_bytes())
    assert told == json.loads(read_card(tiny.artifact).model_dump_json())


def test_a_copy_is_the_same_model_with_further_metrics(tiny: Tiny, tmp_path: Path) -> None:
    before = read_card(tiny.artifact)
    copy_model(tiny.artifact, tmp_path / "copy", metrics={"test/mine": 0.5})

    manifest.check(LocalStore(tmp_path / "copy"), what="the copy", content=True)
    card = read_card(tmp_path / "copy")
    assert card.metrics == {**before.metrics, "test/mine": 0.5}
    assert card.model_copy(update={"metrics": before.metrics}) == before
    for path in files_of(tiny.artifact):
        name = path.relative_to(tiny.artifact)
        if name.name not in ("model.json", manifest.NAME):
            assert (tmp_path / "copy" / name).read_bytes() == path.read_bytes()


def test_nothing_damaged_is_copied_and_no_metric_that_is_no_number(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"finite numbers; got mine=nan"):
        copy_model(tiny.artifact, tmp_path / "copy", metrics={"mine": float("nan")})
    shutil.copytree(tiny.artifact, tmp_path / "spoilt")
    forward = tmp_path / "spoilt" / "forward.stablehlo"
    forward.write_bytes(flipped(forward.read_bytes(), 99))
    with pytest.raises(Damaged):
        copy_model(tmp_path / "spoilt", tmp_path / "copy", metrics={})
    assert not (tmp_path / "copy").exists()
