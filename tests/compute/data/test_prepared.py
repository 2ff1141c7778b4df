from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prepare_digits import NAMES, ROWS, as_tfrecord, pixels, prepare
from sklearn.datasets import load_digits

from mms_sdk.compute.data.ingest import ingest
from mms_sdk.compute.data.sources import tfrecords
from mms_sdk.errors import DataError, InvalidInput, InvalidRequest
from mms_sdk.schema.cleaning import DropUnreadable
from mms_sdk.schema.sources import TFDS
from mms_sdk.schema.specs import IngestSpec, Split
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.stores.local import LocalStore

# https://github.com/tensorflow/datasets/issues: it leaves files that it reads open.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tfds")
    made = prepare(root / "data")
    return {"array_record": made, "tfrecord": as_tfrecord(made, root / "tfrecord")}


@pytest.fixture
def folder(prepared: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy that may be damaged."""
    form = getattr(request, "param", "tfrecord")
    return Path(shutil.copytree(prepared[form], tmp_path / "digits" / "1.0.0"))


def ingested(root: Path, source: TFDS, **options: Any) -> Dataset:
    dataset = Dataset.open_or_create(LocalStore(root / "rows"), "digits")
    (root / "job").mkdir(parents=True, exist_ok=True)
    ingest(dataset, IngestSpec(source=source, **options), job="01J", folder=root / "job", tell=lambda _: None)
    return dataset


@pytest.mark.parametrize("form", ["array_record", "tfrecord"])
def test_rows_classes_and_splits_are_those_that_were_prepared(
    prepared: dict[str, Path], tmp_path: Path, form: str
) -> None:
    snapshot = ingested(tmp_path, TFDS(prepared[form])).snapshot()

    assert snapshot.record.splits == {"train": 120, "val": 30, "test": 25}
    assert snapshot.column("label").labels == tuple(NAMES)
    assert snapshot.column("title").title == "Title"
    rows = np.arange(snapshot.rows)
    numbers = [int(title.removeprefix(b"row ")) for title in snapshot.gather("title", rows)]
    assert sorted(numbers) == list(range(sum(ROWS.values())))
    np.testing.assert_array_equal(snapshot.values("image")[..., 0], pixels()[numbers])
    np.testing.assert_array_equal(snapshot.values("label"), load_digits().target[numbers])
    np.testing.assert_array_equal(snapshot.values("weight"), np.array(numbers, np.float32) / 2)
    np.testing.assert_array_equal(snapshot.values("box"), np.tile(np.float32([0, 0.25, 0.5, 1]), (len(rows), 1)))
    begins = np.searchsorted(np.cumsum(list(ROWS.values())), numbers, side="right")
    np.testing.assert_array_equal(snapshot.values("split"), np.array([0, 1, 2])[begins])
    notes = snapshot.record.provenance["cleaning"]["notes"]
    assert "left out: words, Sequence" in notes


def test_the_same_again_brings_nothing_and_other_splits_bring_theirs(prepared: dict[str, Path], tmp_path: Path) -> None:
    dataset = ingested(tmp_path, TFDS(prepared["tfrecord"], splits=("train", "test")))
    assert dataset.record().splits == {"train": 120, "test": 25}
    ingested(tmp_path, TFDS(prepared["tfrecord"], splits=("train", "test")))
    assert dataset.record().rows == 145
    ingested(tmp_path, TFDS(prepared["tfrecord"]))
    assert dataset.record().splits == {"train": 120, "val": 30, "test": 25}
    dataset.verify()


def test_one_split_is_divided_by_the_rule(prepared: dict[str, Path], tmp_path: Path) -> None:
    dataset = ingested(tmp_path, TFDS(prepared["tfrecord"], splits="train"), split=Split(train=0.5, val=0.0, test=0.5))
    counts = dataset.record().splits
    assert counts["train"] + counts["test"] == 120
    assert abs(counts["train"] - 60) < 10


def test_tensorflow_is_not_needed(prepared: dict[str, Path]) -> None:
    probe = (
        "import sys\n"
        "from mms_sdk.compute.data.sources.prepared import open_prepared\n"
        "from mms_sdk.schema.sources import TFDS\n"
        f"found = open_prepared(TFDS({str(prepared['tfrecord'])!r}))\n"
        "print(len(found.entries), found.entries[0].read().label, 'tensorflow' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("175 digit ")
    assert done.stdout.endswith(" False\n")


def test_a_row_that_is_damaged_is_left_out_with_its_reason(folder: Path, tmp_path: Path) -> None:
    path = folder / "digits-train.tfrecord-00000-of-00001"
    data = bytearray(path.read_bytes())
    second = int(tfrecords.offsets(path)[1])
    data[second + 40] ^= 1
    path.write_bytes(data)

    with pytest.raises(DataError, match=r"train/00000001.*checksum differs"):
        ingested(tmp_path, TFDS(folder))
    dataset = ingested(tmp_path, TFDS(folder), clean=[DropUnreadable()])
    assert dataset.record().rows == 174
    (told,) = [json.loads(line) for line in (tmp_path / "job" / "rejects.jsonl").read_text().splitlines()]
    assert told["source"] == "train/00000001"
    assert "checksum differs" in told["reason"]


@pytest.mark.parametrize("damage", ["cut", "length", "shard gone", "fewer rows"])
def test_files_that_are_not_whole_end_the_ingest(folder: Path, tmp_path: Path, damage: str) -> None:
    path = folder / "digits-test.tfrecord-00000-of-00001"
    data = path.read_bytes()
    ends = tfrecords.offsets(path)
    match damage:
        case "cut":
            path.write_bytes(data[:-3])
        case "length":
            path.write_bytes(data[: ends[3]] + bytes([data[ends[3]] ^ 1]) + data[ends[3] + 1 :])
        case "fewer rows":
            path.write_bytes(data[: ends[-2]])
        case _:
            path.unlink()
    with pytest.raises(DataError, match=r"prepare the dataset again"):
        ingested(tmp_path, TFDS(folder))
    assert not Dataset.open(LocalStore(tmp_path / "rows"), "digits").snapshots()


@pytest.mark.parametrize("folder", ["array_record"], indirect=True)
def test_a_damaged_file_of_array_records_is_never_taken_for_a_good_one(folder: Path, tmp_path: Path) -> None:
    path = folder / "digits-test.array_record-00000-of-00001"
    right = path.read_bytes()
    rng, refused = random.Random(0), 0
    for turn in range(40):
        at = rng.randrange(4096 if turn % 2 else len(right))  # half of them where the rows are, not the room behind
        path.write_bytes(right[:at] + bytes([right[at] ^ 1 << rng.randrange(8)]) + right[at + 1 :])
        try:
            dataset = ingested(tmp_path / str(turn), TFDS(folder, splits="test"))
        except DataError:
            refused += 1
            continue
        snapshot = dataset.snapshot()
        numbers = [int(title.removeprefix(b"row ")) for title in snapshot.gather("title", np.arange(snapshot.rows))]
        assert sorted(numbers) == list(range(150, 175))
        np.testing.assert_array_equal(snapshot.values("image")[..., 0], pixels()[numbers])
    assert refused > 5


@pytest.mark.parametrize(
    "spelling",
    ["as it is written", "protobuf's own", "of older versions", "as a text within", "as a message written as a text"],
)
def test_a_description_that_names_a_class_of_its_own_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    own = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
    old = {"type": "evil.Text", "content": {}}
    described = {
        "as it is written": {"pythonClassName": "evil.Text", "text": {}},
        "protobuf's own": {"python_class_name": "evil.Text", "text": {}},
        "of older versions": old,
        "as a text within": {"pythonClassName": own, "jsonFeature": {"json": json.dumps({"a": old})}},
        "as a message written as a text": {
            "type": own,
            "proto_cls": "tensorflow_datasets.FeaturesDict",
            "content": json.dumps({"features": {"a": {"pythonClassName": "evil.Text"}}}),
        },
    }
    top = {"pythonClassName": own, "featuresDict": {"features": {"a": described[spelling]}}}
    for told in (top, described[spelling]):
        (folder / "features.json").write_text(json.dumps(told))
        with pytest.raises(InvalidRequest, match=r"runs none of its code; .* names the class 'evil\.Text'"):
            ingested(tmp_path, TFDS(folder))
    assert not (tmp_path / "ran").exists()


def test_what_is_read_is_what_was_looked_at_and_nothing_beside(folder: Path, tmp_path: Path) -> None:
    told = json.loads((folder / "dataset_info.json").read_text())
    foreign = {"pythonClassName": "evil.Text", "text": {}}
    (folder / "dataset_info.json").write_text(json.dumps({**told, "features": foreign}))
    assert ingested(tmp_path, TFDS(folder)).record().rows == 175
    own = "tensorflow_datasets.scripts.cli.main.X"
    (folder / "features.json").write_text(json.dumps({"pythonClassName": own, "text": {}}))
    with pytest.raises(InvalidRequest, match=r"names the class 'tensorflow_datasets\.scripts"):
        ingested(tmp_path, TFDS(folder))


@pytest.mark.parametrize(
    ("feature", "refused"),
    [
        (
            {"type": "class_label_feature.ClassLabel", "content": {"names_file": "/etc/passwd"}},
            "from the file '/etc/pass",
        ),
        (
            {"type": "class_label_feature.ClassLabel", "content": {"num_classes": 10**7}},
            "one of at most 1,048,576 names",
        ),
        (
            {
                "type": "tensor_feature.Tensor",
                "content": {"shape": [2**20, 2**20], "dtype": "int64", "optional": True},
            },
            "at most 134,217,728 values",
        ),
    ],
)
def test_what_a_description_claims_is_bounded(folder: Path, tmp_path: Path, feature: Any, refused: str) -> None:
    own = "tensorflow_datasets.core.features."
    told = {"type": f"{own}features_dict.FeaturesDict", "content": {"a": {**feature, "type": own + feature["type"]}}}
    (folder / "features.json").write_text(json.dumps(told))
    with pytest.raises(InvalidRequest, match=refused):
        ingested(tmp_path, TFDS(folder))


def test_what_is_no_prepared_dataset_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="name the folder of a version"):
        ingested(tmp_path, TFDS(tmp_path / "nothing"))
    with pytest.raises(InvalidRequest, match=r"splits of .* are \['train', .*; got \['night'\]"):
        ingested(tmp_path, TFDS(folder, splits=("train", "night")))
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match="prepare it again"):
        ingested(tmp_path, TFDS(folder))


def test_every_flipped_byte_of_a_record_is_found(folder: Path) -> None:
    path = folder / "digits-test.tfrecord-00000-of-00001"
    right = path.read_bytes()
    end = int(tfrecords.offsets(path)[1])
    for at in range(end):
        wrong = bytearray(right)
        wrong[at] ^= 0x10
        path.write_bytes(wrong)
        with pytest.raises(InvalidInput):
            first_record(path)


def first_record(path: Path) -> bytes:
    begins = tfrecords.offsets(path)
    with path.open("rb") as file:
        return tfrecords.read_record(file.fileno(), int(begins[0]), int(begins[1]))
