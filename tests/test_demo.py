"""The main job, as a person runs it: `mms demo` in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import xarray as xr
import zarr
from PIL import Image
from sklearn.datasets import load_digits

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def mms(workspace: Path, *words: str) -> Any:
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment["MMS_WORKSPACE"] = str(workspace)
    command = [sys.executable, "-m", "mms_sdk.cli", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "ws"


@pytest.fixture(scope="module")
def report(workspace: Path) -> dict[str, Any]:
    return dict(mms(workspace, "demo"))


def test_cleaning_finds_what_was_hidden_in_the_folder(report: dict[str, Any]) -> None:
    assert report["cleaning"] == {"drop-unreadable": 2, "drop-duplicates": 5, "drop-odd-sizes": 1}
    assert report["rows"] == len(load_digits().target) == sum(report["splits"].values())


def test_the_model_is_good_and_the_whole_takes_less_than_ninety_seconds(report: dict[str, Any]) -> None:
    assert report["metrics"]["test/accuracy"] >= 0.97
    assert report["seconds"]["all"] < 90


def test_the_parquet_file_has_one_row_for_each_test_picture(report: dict[str, Any]) -> None:
    rows = pq.read_table(report["predictions"]).to_pylist()
    assert len(rows) == report["splits"]["test"] == len({row["source"] for row in rows})
    assert all(sorted(row["ranked_labels"]) == [str(digit) for digit in range(10)] for row in rows)
    assert all(np.all(np.diff(row["ranked_scores"]) <= 0) for row in rows)
    assert all(abs(sum(row["ranked_scores"]) - 1) < 1e-4 for row in rows)
    # The label is the folder the file lies in, which nothing here told the test.
    right = [row["predicted"] == Path(row["source"]).parent.name for row in rows]
    assert np.mean(right) == pytest.approx(report["metrics"]["test/accuracy"], abs=1e-6)


def test_the_parts_open_in_plain_zarr_and_xarray(workspace: Path, report: dict[str, Any]) -> None:
    (part,) = (workspace / "datasets" / "digits" / "parts").iterdir()
    group = zarr.open_group(part / "data.zarr", mode="r")
    opened = xr.open_zarr(part / "data.zarr", consolidated=False)
    assert group["image"].shape == (report["rows"], 8, 8, 1)
    np.testing.assert_array_equal(opened["image"].values, group["image"][:])
    offsets = group["source_offsets"][:]
    first = bytes(group["source_data"][offsets[0] : offsets[1]]).decode()
    picture = np.asarray(Image.open(Path(report["pictures"]) / first))
    np.testing.assert_array_equal(group["image"][0, :, :, 0], picture)
    assert group["label"].attrs["labels"][int(group["label"][0])] == first.partition("/")[0]


@pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning")  # Orbax, of restoring without a target
def test_the_checkpoint_restores_with_plain_orbax(report: dict[str, Any]) -> None:
    from orbax.checkpoint import v1 as ocp

    state = ocp.load(Path(report["checkpoint"]) / "state")
    assert state["params"]["head/kernel"].shape == (64, 10)
    assert all(np.isfinite(value).all() for value in state["params"].values())


def test_the_artefact_predicts_where_the_model_code_cannot_be_imported(report: dict[str, Any]) -> None:
    row = pq.read_table(report["predictions"]).to_pylist()[0]
    program = f"""
import sys
from pathlib import Path

BLOCKED = ("flax", "optax", "mms_sdk.compute.models", "mms_sdk.compute.training")

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(BLOCKED):
            raise ImportError(f"{{name}} is not on this machine")

sys.meta_path.insert(0, Refuse())
from mms_sdk.compute.inference.predictor import Predictor

predictor = Predictor(Path({report["artifact"]!r}), buckets=(1,))
(best,) = predictor.predict([Path({report["pictures"]!r}, {row["source"]!r}).read_bytes()])
print(best.label, best.ranked[0].score)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    label, score = done.stdout.split()
    assert label == row["predicted"]
    assert float(score) == pytest.approx(row["score"], abs=1e-5)


def test_what_the_demo_made_is_there_for_the_other_commands(workspace: Path, report: dict[str, Any]) -> None:
    assert [each["name"] for each in mms(workspace, "datasets")] == ["digits"]
    assert [each["version"] for each in mms(workspace, "models")] == [1]
    assert {each["state"] for each in mms(workspace, "jobs")} == {"succeeded"}
    picture = str(next((Path(report["pictures"]) / "7").glob("0*.png")))
    assert mms(workspace, "predict", "digits", picture)[picture]["ranked"][0]["label"] == "7"


def test_run_again_it_continues_and_breaks_nothing(workspace: Path, report: dict[str, Any]) -> None:
    kept = {path: path.stat().st_mtime_ns for path in (workspace / "datasets").rglob("*") if path.is_file()}
    again = mms(workspace, "demo", "--epochs", "2")
    assert (again["dataset"], again["model"]) == ("digits@2", "digits@2")
    assert (again["rows"], again["splits"]) == (report["rows"], report["splits"])
    assert all(path.stat().st_mtime_ns == at for path, at in kept.items())
    assert [each["version"] for each in mms(workspace, "models")] == [2, 1]


def test_a_persons_own_pictures_of_many_sizes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label, shade in (("Day Light", 200), ("night", 30)):
        for number in range(20):
            height, width = rng.integers(40, 120, 2)
            pixels = rng.integers(0, 50, (height, width, 3)) + shade
            path = tmp_path / "My Photos" / label / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    report = mms(tmp_path / "ws", "demo", "--data", str(tmp_path / "My Photos"), "--epochs", "3")
    assert report["dataset"] == "my-photos@1"
    assert report["rows"] == 40
    assert report["cleaning"]["drop-odd-sizes"] == 0
    assert report["predicted_rows"] == report["splits"]["test"]
