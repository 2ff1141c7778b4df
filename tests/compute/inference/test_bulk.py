from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import tiny_model
from mms_sdk.compute.inference.bulk import Output, predict_folder, predict_snapshot
from mms_sdk.compute.inference.predictor import Predictor
from mms_sdk.errors import Conflict, NothingToIngest, StorageFull
from mms_sdk.schema.job import Progress
from mms_sdk.schema.sources import ImageFolder
from mms_sdk.settings import FENCE_VARIABLE
from mms_sdk.storage import files
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.workspace import Workspace
from tiny_model import Tiny

COLUMNS = {
    "row": pa.int64(),
    "source": pa.string(),
    "label": pa.string(),
    "predicted": pa.string(),
    "score": pa.float32(),
    "ranked_labels": pa.list_(pa.string()),
    "ranked_scores": pa.list_(pa.float32()),
    "error": pa.string(),
}


@pytest.fixture(scope="module")
def small(tiny: Tiny) -> Predictor:
    """With batches so small that bulk prediction needs several."""
    return Predictor(tiny.artifact, buckets=(2, 7))


@pytest.fixture(scope="module")
def pets(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenSnapshot]:
    workspace = Workspace(tmp_path_factory.mktemp("bulk") / "workspace")
    shutil.copytree(tiny.workspace / "datasets", workspace.root / "datasets")
    yield workspace.dataset("pets").snapshot()
    workspace.close()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """23 pictures in folders within folders, and three files that are none."""
    root = tmp_path / "photos"
    for number, picture in enumerate(tiny_model.pictures_of(23)):
        folder = root / f"f{number % 3}" / "deep" if number % 2 else root
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{number:02}.png")
    (root / "05x-garbage.png").write_bytes(b"no picture")
    (root / "10x-short.png").write_bytes((root / "10.png").read_bytes()[:60])
    Image.new("RGB", (9, 9)).save(root / "15x-large.png")
    return root


class Told(list[Progress]):
    def __call__(self, progress: Progress) -> None:
        self.append(progress)


def read(path: Path) -> list[dict[str, Any]]:
    table = pq.read_table(path)
    assert dict(zip(table.column_names, table.schema.types, strict=True)) == COLUMNS
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


@pytest.mark.parametrize("split", ["train", "val", "test", None])
def test_a_split_comes_out_row_by_row_in_order(
    small: Predictor, tiny: Tiny, pets: OpenSnapshot, tmp_path: Path, split: str | None
) -> None:
    told = Told()
    result = predict_snapshot(small, pets, split, to=Output(path=tmp_path / "out.parquet"), tell=told)

    rows = read(tmp_path / "out.parquet")
    members = pets.split_rows(split)
    scores = tiny.scores(pets.values("image")[members])
    truth = [tiny_model.LABELS[code] for code in pets.values("label")[members]]
    assert [row["row"] for row in rows] == members.tolist()
    assert [row["source"] for row in rows] == [source.decode() for source in pets.gather("source", members)]
    assert [row["label"] for row in rows] == truth
    assert [row["source"].split("/")[0] for row in rows] == truth
    for row, expected in zip(rows, scores, strict=True):
        order = np.argsort(-expected)
        assert row["ranked_labels"] == [tiny_model.LABELS[index] for index in order]
        np.testing.assert_allclose(row["ranked_scores"], expected[order], atol=1e-5)
        assert (row["predicted"], row["score"]) == (row["ranked_labels"][0], row["ranked_scores"][0])
    right = np.mean([tiny_model.LABELS[best] == label for best, label in zip(scores.argmax(1), truth, strict=True)])
    assert result == {"rows": len(members), "errors": 0, "accuracy": pytest.approx(right)}
    assert [progress.done for progress in told] == [*range(7, len(members), 7), len(members)]
    assert {progress.total for progress in told} == {len(members)}
    assert small.compiles_after_ready == 0


def test_a_folder_comes_out_file_by_file_with_the_reason_where_one_is_no_picture(
    small: Predictor, tiny: Tiny, photos: Path, tmp_path: Path
) -> None:
    result = predict_folder(small, ImageFolder(photos), to=Output(path=tmp_path / "out.parquet"), tell=Told())

    rows = read(tmp_path / "out.parquet")
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    assert [row["source"] for row in rows] == names
    assert [row["row"] for row in rows] == list(range(26))
    assert {name: result[name] for name in ("rows", "errors")} == {"rows": 26, "errors": 3}
    failed = next(row for row in rows if row["error"])
    assert result["first_error"] == f"{failed['source']}: {failed['error']}"
    for row in rows:
        assert row["label"] is None
        if "x-" in row["source"]:
            assert "readable picture" in row["error"] or "takes pictures of shape (8, 6, 3)" in row["error"]
            assert row["predicted"] is row["score"] is row["ranked_labels"] is row["ranked_scores"] is None
            continue
        assert row["error"] is None
        scores = tiny.scores(np.asarray(Image.open(photos / row["source"]))[None])[0]
        assert row["predicted"] == tiny_model.LABELS[scores.argmax()]
        np.testing.assert_allclose(sorted(row["ranked_scores"]), sorted(scores), atol=1e-5)


def test_a_file_that_is_gone_when_its_turn_comes_has_a_row_with_the_reason(
    small: Predictor, photos: Path, tmp_path: Path
) -> None:
    gone = max(photos.rglob("*.png"))

    def tell(_progress: Progress) -> None:
        gone.unlink(missing_ok=True)

    result = predict_folder(small, ImageFolder(photos), to=Output(path=tmp_path / "out.parquet"), tell=tell)
    assert (result["rows"], result["errors"]) == (26, 4)
    assert read(tmp_path / "out.parquet")[-1]["error"] == "the file cannot be read: No such file or directory"


@pytest.mark.parametrize("top", [1, 2, 3, 50])
def test_top_keeps_the_best(small: Predictor, pets: OpenSnapshot, tmp_path: Path, top: int) -> None:
    predict_snapshot(small, pets, "test", to=Output(path=tmp_path / "all.parquet"), tell=Told())
    predict_snapshot(small, pets, "test", to=Output(path=tmp_path / "some.parquet", top=top), tell=Told())
    for whole, some in zip(read(tmp_path / "all.parquet"), read(tmp_path / "some.parquet"), strict=True):
        for name, value in whole.items():
            assert some[name] == (value[:top] if name.startswith("ranked") else value)


def test_a_folder_in_which_nothing_is_a_picture_has_a_row_for_each_file(small: Predictor, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(9):
        (tmp_path / "in" / f"{number}.txt").write_text("no picture")
    result = predict_folder(small, ImageFolder(tmp_path / "in"), to=Output(path=tmp_path / "out.parquet"), tell=Told())
    assert (result["rows"], result["errors"]) == (9, 9)
    assert result["first_error"].startswith("0.txt: this is not a readable picture")
    assert all(row["error"] for row in read(tmp_path / "out.parquet"))


def test_an_empty_folder_is_refused_and_leaves_nothing(small: Predictor, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(NothingToIngest):
        predict_folder(small, ImageFolder(tmp_path / "in"), to=Output(path=tmp_path / "out.parquet"), tell=Told())
    assert os.listdir(tmp_path) == ["in"]


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("how", ["model", "interrupt", "full while writing", "full at the end", "full on closing"])
def test_a_bulk_prediction_that_fails_leaves_what_was_there_and_nothing_else(
    small: Predictor, pets: OpenSnapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, exists: bool
) -> None:
    if exists:
        (tmp_path / "out.parquet").write_bytes(b"of yesterday")

    def tell(progress: Progress) -> None:
        if progress.done < 14:
            return
        if how == "model":
            raise ZeroDivisionError("half-way")
        if how == "interrupt":
            raise KeyboardInterrupt
        if how == "full while writing":
            monkeypatch.setattr(pq.ParquetWriter, "write_table", full)

    if how == "full at the end":
        monkeypatch.setattr("mms_sdk.storage.files.fsync_file", full)
    if how == "full on closing":
        monkeypatch.setattr(pq.ParquetWriter, "close", full)

    expected = {"model": ZeroDivisionError, "interrupt": KeyboardInterrupt}.get(how, StorageFull)
    with pytest.raises(expected) as told:
        predict_snapshot(small, pets, None, to=Output(path=tmp_path / "out.parquet"), tell=tell)

    if expected is StorageFull:
        assert "no space left while writing" in str(told.value)
        assert "out.parquet" in str(told.value)
    assert os.listdir(tmp_path) == (["out.parquet"] if exists else [])
    if exists:
        assert (tmp_path / "out.parquet").read_bytes() == b"of yesterday"


def test_a_file_that_is_there_is_replaced_once_all_is_well(
    small: Predictor, pets: OpenSnapshot, tmp_path: Path
) -> None:
    to = tmp_path / "out.parquet"
    to.write_bytes(b"of yesterday")
    seen = []

    predict_snapshot(small, pets, None, to=Output(path=to), tell=lambda _progress: seen.append(to.read_bytes()))

    assert set(seen) == {b"of yesterday"}
    assert len(read(to)) == 120
    assert os.listdir(tmp_path) == ["out.parquet"]


def test_what_an_attempt_saved_that_was_given_up_is_its_successors(
    small: Predictor, pets: OpenSnapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fence, out = tmp_path / "over", tmp_path / "attempts" / "out.parquet"
    out.parent.mkdir()
    to = Output(path=out, save_every=14)
    monkeypatch.setenv(FENCE_VARIABLE, str(fence))

    def is_given_up(progress: Progress) -> None:
        if progress.done >= 60:
            fence.touch()
            raise Conflict("another attempt has begun")

    with pytest.raises(Conflict):
        predict_snapshot(small, pets, None, to=to, tell=is_given_up)
    with pytest.raises(Conflict, match="changes nothing any more"):  # it goes on to the end, and is late
        predict_snapshot(small, pets, None, to=to, tell=lambda _: None)
    assert not out.exists()
    monkeypatch.delenv(FENCE_VARIABLE)
    told: list[int] = []
    predict_snapshot(small, pets, None, to=to, tell=lambda progress: told.append(progress.done))

    assert told[:4] == [14, 28, 42, 56]  # a piece at a time, since each was there
    assert [row["row"] for row in read(out)] == list(range(120))
    assert os.listdir(out.parent) == ["out.parquet"]


def test_pieces_of_another_size_are_not_taken_for_those_of_this(
    small: Predictor, pets: OpenSnapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.parquet"
    monkeypatch.setattr(files, "remove_tree", lambda _: None)  # as after a kill
    predict_snapshot(small, pets, None, to=Output(path=out, save_every=28), tell=lambda _: None)

    predict_snapshot(small, pets, None, to=Output(path=out, save_every=14), tell=lambda _: None)

    assert [row["row"] for row in read(out)] == list(range(120))
