"""What `datasets` saved becomes a dataset as `datasets` itself reads it; its files are hostile until looked at."""

from __future__ import annotations

import datetime as dt
import io
import json
import os
import random
import subprocess
import sys
import wave
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image as Pillow

os.environ["HF_HUB_OFFLINE"] = "1"
import datasets
from datasets import Array2D, Audio, ClassLabel, Dataset, DatasetDict, Features, Image, List, Value

from mms_sdk.compute.data.ingest import ingest
from mms_sdk.compute.data.kinds.tabular import digests
from mms_sdk.compute.data.sources.hugging_face import open_hugging_face
from mms_sdk.compute.data.sources.rows import Table
from mms_sdk.errors import DataError, InvalidRequest, NothingToIngest
from mms_sdk.schema.cleaning import DropUnreadable, KeepWhere
from mms_sdk.schema.sources import HuggingFace
from mms_sdk.schema.specs import IngestSpec, Split
from mms_sdk.storage import datasets as stored
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.stores.local import LocalStore

ALL = Split(train=1, val=0, test=0)
datasets.disable_progress_bars()


@pytest.fixture
def bring(tmp_path: Path) -> Any:
    """Ingests a folder into one dataset; returns the snapshot."""
    (tmp_path / "job").mkdir()

    def bring(source: HuggingFace | Path, *clean: Any, split: Split = ALL) -> OpenSnapshot:
        source = source if isinstance(source, HuggingFace) else HuggingFace(source)
        dataset = stored.Dataset.open_or_create(LocalStore(tmp_path / "rows"), "rows")
        spec = IngestSpec(source=source, clean=clean, split=split)
        ingest(dataset, spec, job="j", folder=tmp_path / "job", tell=lambda _: None)
        return dataset.snapshot()

    bring.rejects = lambda: [json.loads(line) for line in (tmp_path / "job" / "rejects.jsonl").read_text().splitlines()]
    return bring


def reviews(rows: int = 20) -> Dataset:
    content = {
        "text": [f"row {at}" if at % 7 else None for at in range(rows)],
        "label": [at % 2 for at in range(rows)],
        "stars": [at / 2 for at in range(rows)],
        "genre": [at % 3 - 1 for at in range(rows)],
        "when": [dt.datetime(2024, 1, 1 + at % 28, tzinfo=dt.UTC) for at in range(rows)],
        "price": [Decimal(at) / 4 for at in range(rows)],
        "words": [list(range(at % 4)) for at in range(rows)],
        "pair": [[at, at + 1] for at in range(rows)],
        "grid": np.arange(rows * 6, dtype=np.float32).reshape(rows, 2, 3).tolist(),
    }
    kinds = Features(
        {
            "text": Value("string"),
            "label": ClassLabel(names=["pos", "neg"]),  # not in order of the alphabet
            "stars": Value("float32"),
            "genre": ClassLabel(names=["z", "a"]),
            "when": Value("timestamp[ms, tz=UTC]"),
            "price": Value("decimal128(9, 2)"),
            "words": List(Value("int16")),
            "pair": List(Value("int32"), length=2),
            "grid": Array2D((2, 3), "float32"),
        }
    )
    return Dataset.from_dict(content, features=kinds)


def pictures(rows: int = 12, seed: int = 0) -> Dataset:
    drawn = np.random.default_rng(seed).integers(0, 256, (rows, 5, 4, 3)).astype(np.uint8)
    content = {
        "img": [Pillow.fromarray(each) for each in drawn],
        "class": [at % 3 for at in range(rows)],
        "caption": [f"picture {at}" for at in range(rows)],
        "box": [[0.5, 1.0, float(at)] for at in range(rows)],
        "meta": [{"a": at} for at in range(rows)],
    }
    kinds = Features(
        {
            "img": Image(),
            "class": ClassLabel(names=["cat", "bee", "ant"]),
            "caption": Value("string"),
            "box": List(Value("float32")),
            "meta": {"a": Value("int64")},
        }
    )
    return Dataset.from_dict(content, features=kinds)


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


# What comes in --------------------------------------------------------------------------------------------------


def test_every_value_of_a_table_is_the_one_that_datasets_reads(tmp_path: Path, bring: Any) -> None:
    reviews().save_to_disk(tmp_path / "saved", num_shards=3)
    expected = datasets.load_from_disk(str(tmp_path / "saved"))

    snapshot = bring(HuggingFace(tmp_path / "saved", label="label"))

    rows = np.arange(snapshot.rows)
    assert snapshot.column("label").labels == ("pos", "neg")
    np.testing.assert_array_equal(snapshot.values("label"), expected["label"])
    texts = [None if text is None else text.decode() for text in snapshot.gather("text", rows)]
    assert texts == list(expected["text"])
    np.testing.assert_array_equal(snapshot.values("stars"), np.float32(expected["stars"]))
    assert snapshot.column("genre").labels == ("z", "a")
    genre = snapshot.gather("genre", rows)
    np.testing.assert_array_equal(np.ma.filled(genre, -1), expected["genre"])
    seconds = [when.timestamp() for when in expected["when"]]
    np.testing.assert_array_equal(snapshot.values("when") / 1000, seconds)
    np.testing.assert_array_equal(snapshot.values("price"), np.array(expected["price"], float))
    assert [row.tolist() for row in snapshot.gather("words", rows)] == list(expected["words"])
    np.testing.assert_array_equal(snapshot.values("pair"), expected["pair"])
    np.testing.assert_array_equal(snapshot.values("grid"), np.float32(expected["grid"]))
    assert snapshot.column("grid").shape == (2, 3)


def test_rows_come_in_the_order_in_which_their_files_are_named(tmp_path: Path, bring: Any) -> None:
    reviews(9).save_to_disk(tmp_path / "saved", num_shards=3)
    state = tmp_path / "saved" / "state.json"
    edit(state, _data_files=json.loads(state.read_text())["_data_files"][::-1])

    snapshot = bring(HuggingFace(tmp_path / "saved", columns="stars"))

    assert list(snapshot.values("stars") * 2) == [6, 7, 8, 3, 4, 5, 0, 1, 2]


@pytest.mark.parametrize("made", [reviews, pictures])
def test_splits_are_those_that_were_saved(tmp_path: Path, bring: Any, made: Any) -> None:
    saved = {"train": made(9), "validation": made(6).select([4, 5]), "test": made(6).select([1, 2, 3])}
    DatasetDict(saved).save_to_disk(tmp_path / "saved")

    snapshot = bring(HuggingFace(tmp_path / "saved"), split=Split(train=0.1, val=0.1, test=0.8))

    assert snapshot.record.splits == {"train": 9, "val": 2, "test": 3}
    assert snapshot.record.split_rule == {"by": "source"}
    np.testing.assert_array_equal(snapshot.values("split"), [0] * 9 + [1] * 2 + [2] * 3)
    again = bring(HuggingFace(tmp_path / "saved"))
    assert (again.record.number, again.rows) == (2, 14)


def test_a_split_whose_rows_are_cleaned_keeps_its_place(tmp_path: Path, bring: Any) -> None:
    DatasetDict(train=reviews(9), test=reviews(6)).save_to_disk(tmp_path / "saved")

    snapshot = bring(tmp_path / "saved", KeepWhere(expression="stars >= 2"))

    assert snapshot.record.splits == {"train": 5, "test": 2}


@pytest.mark.parametrize("shards", [1, 2])
def test_what_load_dataset_keeps_is_read(tmp_path: Path, bring: Any, shards: int) -> None:
    folder = cached(tmp_path, shards)

    snapshot = bring(folder)

    assert snapshot.record.splits == {"train": 3 * shards, "test": 3 * shards}
    assert snapshot.values("a").tolist() == [1, 2, 3] * 2 * shards


def cached(root: Path, shards: int) -> Path:
    (root / "rows.csv").write_text("a,b\n1,x\n2,y\n3,z\n")
    files = {name: [str(root / "rows.csv")] * shards for name in ("train", "test")}
    builder = datasets.load_dataset_builder("csv", data_files=files, cache_dir=str(root / "cache"))
    builder.download_and_prepare(max_shard_size=1)
    return Path(builder.cache_dir)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"splits": None}, "names its splits"),
        ({"splits": {"train": 5}}, "names its splits"),
        ({"splits": {"train": {"num_examples": 4, "dataset_name": "csv"}}}, "has 4 rows by its description"),
        ({"splits": {"train": {"num_examples": 3, "dataset_name": "../x"}}}, "lie beside its description"),
        ({"splits": {"../train": {"num_examples": 3, "dataset_name": "csv"}}}, "lie beside its description"),
        ({"splits": {"train": {"num_examples": 3, "dataset_name": "other"}}}, "cannot be read"),
        ({"splits": {"train": {"num_examples": 3, "shard_lengths": [3] * 9, "dataset_name": "csv"}}}, "cannot be read"),
        ({"features": ["a"]}, "describes columns by name"),
    ],
)
def test_a_cache_that_is_not_as_it_is_described_is_refused(
    tmp_path: Path, bring: Any, fields: dict[str, Any], error: str
) -> None:
    folder = cached(tmp_path, 1)
    edit(folder / "dataset_info.json", **fields)
    with pytest.raises(DataError, match=error):
        bring(folder)


def test_a_split_may_have_any_name_that_a_folder_has(tmp_path: Path, bring: Any) -> None:
    (tmp_path / "saved").mkdir()
    for name in ("a\\b", "train"):
        reviews(5).save_to_disk(tmp_path / "saved" / name)
    (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": ["a\\b", "train"]}))

    assert bring(tmp_path / "saved").column("row_source").labels == ("a\\\\b", "train")


def test_splits_that_show_other_columns_are_refused(tmp_path: Path, bring: Any) -> None:
    DatasetDict(train=reviews(5), test=reviews(5).with_format("numpy", columns=["stars"])).save_to_disk(
        tmp_path / "saved"
    )
    with pytest.raises(DataError, match="all splits have the same columns"):
        bring(tmp_path / "saved")


def test_one_split_is_divided_by_the_rule_and_names_of_another_kind_are_told(tmp_path: Path, bring: Any) -> None:
    DatasetDict(train=reviews(30), extra=reviews(10)).save_to_disk(tmp_path / "saved")

    one = bring(HuggingFace(tmp_path / "saved", splits="train"), split=Split(train=0.5, val=0.0, test=0.5))
    assert abs(one.record.splits["train"] - 15) <= 1
    with pytest.raises(InvalidRequest, match=r"are \['train', 'extra'\]; got \['test'\]"):
        bring(HuggingFace(tmp_path / "saved", splits="test"))

    both = bring(HuggingFace(tmp_path / "saved"))
    assert any("none of train, validation and test" in note for note in both.record.provenance["cleaning"]["notes"])


def test_pictures_come_in_with_their_classes_and_what_stands_beside(tmp_path: Path, bring: Any) -> None:
    pictures().save_to_disk(tmp_path / "saved", num_shards=2)
    expected = datasets.load_from_disk(str(tmp_path / "saved"))

    snapshot = bring(HuggingFace(tmp_path / "saved"))

    rows = np.arange(12)
    np.testing.assert_array_equal(snapshot.values("image"), np.stack([np.asarray(each) for each in expected["img"]]))
    assert snapshot.column("label").labels == ("cat", "bee", "ant")
    np.testing.assert_array_equal(snapshot.values("label"), expected["class"])
    assert [text.decode() for text in snapshot.gather("caption", rows)] == list(expected["caption"])
    np.testing.assert_array_equal(snapshot.values("box"), expected["box"])
    notes = snapshot.record.provenance["cleaning"]["notes"]
    assert any(note.startswith("left out: meta; ") for note in notes)


def test_recordings_come_in_as_their_samples(tmp_path: Path, bring: Any) -> None:
    samples = np.random.default_rng(0).integers(-9999, 9999, (5, 300)).astype(np.int16)
    files = []
    for each in samples:
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(each.tobytes())
        files.append({"bytes": buffer.getvalue(), "path": "x.wav"})
    Dataset.from_dict({"audio": files, "speaker": list("abcba")}).save_to_disk(tmp_path / "saved")
    told = Features({"audio": Audio(), "speaker": Value("string")}).to_dict()  # encoding it would ask for torchcodec
    edit(tmp_path / "saved" / "dataset_info.json", features=told)

    snapshot = bring(HuggingFace(tmp_path / "saved", categories="speaker"))

    np.testing.assert_array_equal(np.stack(snapshot.gather("audio", np.arange(5)))[..., 0], samples)
    assert snapshot.column("speaker").labels == ("a", "b", "c")
    np.testing.assert_array_equal(snapshot.values("speaker"), [0, 1, 2, 1, 0])
    assert snapshot.record.column("label") is None


def test_only_columns_that_the_saved_format_shows_are_taken_unless_others_are_asked_for(
    tmp_path: Path, bring: Any
) -> None:
    reviews().with_format("numpy", columns=["stars", "pair"]).save_to_disk(tmp_path / "saved")

    snapshot = bring(tmp_path / "saved")

    assert [column.name for column in snapshot.record.columns] == ["stars", "pair", "row_source", "row_id", "split"]
    assert any("left out, as the format" in note for note in snapshot.record.provenance["cleaning"]["notes"])
    with pytest.raises(DataError, match="has no 'text'"):
        bring(HuggingFace(tmp_path / "saved", columns="text"))


def test_the_library_datasets_is_not_needed(tmp_path: Path) -> None:
    reviews(4).save_to_disk(tmp_path / "saved")
    probe = (
        "import sys\n"
        "from mms_sdk.compute.data.sources.hugging_face import open_hugging_face\n"
        "from mms_sdk.schema.sources import HuggingFace\n"
        f"found = open_hugging_face(HuggingFace({str(tmp_path / 'saved')!r}))\n"
        "print(sum(map(len, found.read())), 'datasets' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert done.stdout == "4 False\n", done.stderr


# What does not --------------------------------------------------------------------------------------------------


def test_a_file_that_the_data_names_elsewhere_is_not_followed(tmp_path: Path, bring: Any) -> None:
    secret = tmp_path / "secret.png"
    Pillow.new("RGB", (5, 4), "red").save(secret)
    good = io.BytesIO()
    Pillow.new("RGB", (5, 4), "blue").save(good, "PNG")
    rows = [{"bytes": None, "path": str(secret)}, {"bytes": good.getvalue(), "path": str(secret)}, None]
    table = Dataset.from_dict({"img": rows}, features=Features({"img": Image(decode=False)}))
    with_paths = tmp_path / "saved"
    table.save_to_disk(with_paths)
    _replace(with_paths, pa.table({"img": pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}))

    snapshot = bring(tmp_path / "saved", DropUnreadable())

    assert snapshot.values("image").tolist() == [[[[0, 0, 255]] * 5] * 4]
    told = {each["source"]: each["reason"] for each in bring.rejects()}
    assert "secret.png' that is not followed" in told["saved/00000000"].replace(";", "")
    assert told["saved/00000002"] == "there is nothing in this row"


def test_a_class_without_a_name_is_left_out_with_its_row(tmp_path: Path, bring: Any) -> None:
    reviews(6).select_columns(["label", "stars"]).save_to_disk(tmp_path / "saved")
    codes = pa.array([0, 1, 2, -1, None, -2])
    _replace(tmp_path / "saved", pa.table({"label": codes, "stars": pa.array(np.arange(6, dtype=np.float32))}))

    snapshot = bring(tmp_path / "saved")

    assert snapshot.values("label").tolist() == [0, 1]
    assert [(each["source"], each["reason"].split(" ")[0]) for each in bring.rejects()] == [
        ("saved, row 3", "its"),
        ("saved, row 6", "its"),
        ("saved, row 4", "no"),
        ("saved, row 5", "no"),
    ]


def test_a_split_of_which_no_row_is_left_is_none(tmp_path: Path, bring: Any) -> None:
    DatasetDict(train=reviews(4), test=reviews(4)).save_to_disk(tmp_path / "saved")
    table = pa.ipc.open_stream(next((tmp_path / "saved" / "test").glob("*.arrow")).read_bytes()).read_all()
    at = table.schema.get_field_index("label")
    _replace(tmp_path / "saved" / "test", table.set_column(at, "label", pa.array([7] * 4)))

    assert bring(HuggingFace(tmp_path / "saved", label="label")).record.splits == {"train": 4}
    assert len(bring.rejects()) == 4


def _replace(folder: Path, table: pa.Table, **options: Any) -> None:
    # The file of a saved dataset with other content.
    (path,) = folder.glob("data-*.arrow")
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_stream(out, table.schema, **options) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"_indices_data_files": [{"filename": "indices.arrow"}]}, r"flatten_indices\(\) and save it again"),
        ({"_format_type": "custom"}, "a transform, which is code"),
        ({"_data_files": [{"filename": "../other/data.arrow"}]}, "names files beside it"),
        ({"_data_files": [{"filename": "/etc/passwd"}]}, "names files beside it"),
        ({"_data_files": [{"filename": ".."}]}, "names files beside it"),
        ({"_data_files": [{"filename": 5}]}, "names files beside it"),
        ({"_data_files": []}, "names files beside it"),
        ({"_data_files": {}}, "names files beside it"),
        ({"_data_files": "x"}, "names files beside it"),
        ({"_data_files": 5}, "names files beside it"),
        ({"_data_files": [{"filename": "gone.arrow"}]}, "gone.arrow cannot be read"),
        ({"_data_files": [{"filename": "state.json"}]}, "has none and is cut short"),
    ],
)
def test_a_state_that_cannot_be_honoured_is_refused(
    tmp_path: Path, bring: Any, fields: dict[str, Any], error: str
) -> None:
    reviews(4).save_to_disk(tmp_path / "saved")
    edit(tmp_path / "saved" / "state.json", **fields)

    with pytest.raises(DataError, match=error):
        bring(tmp_path / "saved")


@pytest.mark.parametrize("splits", [["../other"], [".."], ["/etc"], [""], [None], [], {}, "train", ["a\0b"]])
def test_splits_are_folders_within(tmp_path: Path, bring: Any, splits: Any) -> None:
    reviews(4).save_to_disk(tmp_path / "other")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": splits}))

    with pytest.raises(DataError, match="names its splits, which are folders beside it"):
        bring(tmp_path / "saved")


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json"])
@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, '{"_type": NaN}', "\xff"])
def test_descriptions_that_are_none_are_refused(tmp_path: Path, bring: Any, name: str, text: str) -> None:
    reviews(4).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / name).write_bytes(text.encode("latin-1"))

    with pytest.raises(DataError, match=rf"{name}.*save the dataset again"):
        bring(tmp_path / "saved")


@pytest.mark.parametrize(
    ("feature", "error"),
    [
        ({"_type": "ClassLabel"}, "classes have names"),
        ({"_type": "ClassLabel", "names": ["a", 1]}, "classes have names"),
        ({"_type": "ClassLabel", "names": ["a" * 10_001]}, "classes have names"),
        ({"_type": "ClassLabel", "names": ["a", "a"]}, "no two classes have one name"),
        ({"_type": "Image"}, "saved as bytes and path"),
        ({"_type": "Audio"}, "saved as bytes and path"),
        ({"_type": "Array2D", "shape": [2, 2]}, "have the shape"),
        ({"_type": "Array2D", "shape": [2**40, 2**40]}, "have one shape"),
        ({"_type": "Array2D", "shape": [-1, 2]}, "have one shape"),
        ({"_type": "Array2D"}, "have one shape"),
    ],
)
def test_a_description_of_a_column_that_does_not_fit_it_is_refused(
    tmp_path: Path, bring: Any, feature: dict[str, Any], error: str
) -> None:
    reviews(4).select_columns(["stars"]).save_to_disk(tmp_path / "saved")
    edit(tmp_path / "saved" / "dataset_info.json", features={"stars": feature})

    with pytest.raises(DataError, match=error):
        bring(tmp_path / "saved")


def test_a_folder_that_is_no_saved_dataset_says_what_would_be_one(tmp_path: Path, bring: Any) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InvalidRequest, match="what save_to_disk writes is a folder with"):
            bring(folder)
    reviews(4).select_columns(["stars"]).save_to_disk(tmp_path / "empty")
    _replace(tmp_path / "empty", pa.table({"stars": pa.array([], pa.float32())}))
    with pytest.raises(NothingToIngest, match="at least one row"):
        bring(tmp_path / "empty")


def test_two_pictures_in_a_row_are_chosen_from_by_columns(tmp_path: Path, bring: Any) -> None:
    made = pictures(4)
    mask = made.cast_column("img", Image(decode=False))["img"][:]
    made.add_column("mask", mask, feature=Image()).save_to_disk(tmp_path / "saved")

    with pytest.raises(InvalidRequest, match=r"\['img', 'mask'\]; choose one"):
        bring(tmp_path / "saved")
    snapshot = bring(HuggingFace(tmp_path / "saved", columns=("mask", "caption"), label="class"))
    assert [column.name for column in snapshot.record.columns][:3] == ["image", "label", "caption"]


@pytest.mark.parametrize("options", [{"columns": "x"}, {"label": "x"}, {"categories": "x"}, {"label": "words"}])
def test_columns_that_are_not_there_or_no_label_are_refused(tmp_path: Path, bring: Any, options: Any) -> None:
    reviews(4).save_to_disk(tmp_path / "saved")
    with pytest.raises(InvalidRequest, match=r"columns of .* are \['text'|a label is a class, a text or a number"):
        bring(HuggingFace(tmp_path / "saved", **options))


# Files that were damaged, or made to harm -----------------------------------------------------------------------


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path, bring: Any) -> None:
    reviews(8).save_to_disk(tmp_path / "saved")
    (path,) = (tmp_path / "saved").glob("*.arrow")
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 8, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="save"):
            bring(tmp_path / "saved")
    # At the end of a batch, Arrow itself would see no more than fewer rows.
    batch = pa.ipc.open_stream(whole).read_next_batch()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
        path.write_bytes(sink.getvalue().to_pybytes()[:-8] if sink.closed else whole[:-8])
    with pytest.raises(DataError, match="cut short"):
        bring(tmp_path / "saved")


@pytest.mark.parametrize("made", [reviews, pictures])
def test_a_flipped_bit_never_ends_the_process(tmp_path: Path, made: Any) -> None:
    made(6).save_to_disk(tmp_path / "saved")
    (path,) = (tmp_path / "saved").glob("*.arrow")
    whole = path.read_bytes()
    rng, refused = random.Random(0), 0
    for _ in range(200):
        at = rng.randrange(len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        try:
            found = open_hugging_face(HuggingFace(tmp_path / "saved"))
            for rows in found.read() if isinstance(found, Table) else found.entries:
                digests(rows, found.schema.names) if isinstance(rows, pa.RecordBatch) else rows.read()
        except (DataError, InvalidRequest):
            refused += 1
    assert refused > 20


def test_a_batch_that_claims_more_rows_than_its_file_can_hold_is_refused(tmp_path: Path, bring: Any) -> None:
    reviews(4).select_columns(["stars"]).save_to_disk(tmp_path / "saved")
    rows = 2**40
    table = pa.table({"stars": pa.Array.from_buffers(pa.null(), rows, [None])})
    _replace(tmp_path / "saved", table, options=pa.ipc.IpcWriteOptions(allow_64bit=True))

    with pytest.raises(DataError, match=r"claims 1,099,511,627,776 rows"):
        bring(tmp_path / "saved")


def test_an_offset_that_points_outside_is_refused(tmp_path: Path, bring: Any) -> None:
    reviews(3).select_columns(["text"]).save_to_disk(tmp_path / "saved")
    offsets = pa.py_buffer(np.array([0, 2, 2**30, 6], np.int32))
    array = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"abcdef")])
    _replace(tmp_path / "saved", pa.table({"text": array}))

    with pytest.raises(DataError, match="cannot be read as an Arrow stream"):
        bring(tmp_path / "saved")


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_compressed_batches_are_refused_before_they_are_decompressed(tmp_path: Path, bring: Any, codec: str) -> None:
    reviews(4).select_columns(["text"]).save_to_disk(tmp_path / "saved")
    bomb = pa.table({"text": ["x" * 2**26]})
    _replace(tmp_path / "saved", bomb, options=pa.ipc.IpcWriteOptions(compression=codec))
    before = pa.total_allocated_bytes()
    del bomb

    with pytest.raises(DataError, match="are not compressed"):
        bring(tmp_path / "saved")
    assert pa.total_allocated_bytes() <= before


MANY = 50_000_000
OFFSETS = pa.array([0, MANY], pa.int32())
RUNS = pa.RunEndEncodedArray.from_arrays(pa.array([MANY], pa.int32()), pa.array([1.0]))


@pytest.mark.parametrize(
    "array",
    [
        pa.array(["a"]).dictionary_encode(),
        pa.StructArray.from_arrays([pa.array(["a"]).dictionary_encode()], ["d"]),
        pa.array(["a"]).cast(pa.string_view()),
        pa.array([[b"a"]], pa.list_(pa.binary_view())),
        pa.array([[1]], pa.list_view(pa.int8())),
        pa.RunEndEncodedArray.from_arrays([1], ["a"]),
        pa.ListArray.from_arrays(OFFSETS, RUNS),
        pa.ListArray.from_arrays(OFFSETS, pa.nulls(MANY)),
        pa.FixedSizeListArray.from_arrays(pa.nulls(MANY), MANY),
        pa.StructArray.from_arrays([pa.nulls(1)], ["n"]),
        pa.Array.from_buffers(pa.binary(0), MANY, [None, pa.py_buffer(b"")]),
    ],
    ids=lambda array: str(array.type),
)
def test_types_of_which_few_bytes_stand_for_many_values_are_refused(
    tmp_path: Path, bring: Any, array: pa.Array
) -> None:
    reviews(4).select_columns(["text"]).save_to_disk(tmp_path / "saved")
    _replace(tmp_path / "saved", pa.table({"text": array}))
    before = pa.total_allocated_bytes()

    with pytest.raises(DataError, match=r"which take room each; 'text' of .* has .*; save it again"):
        bring(tmp_path / "saved")
    assert pa.total_allocated_bytes() <= before


def test_a_column_without_any_value_comes_in_beside_others(tmp_path: Path, bring: Any) -> None:
    reviews(4).select_columns(["text"]).save_to_disk(tmp_path / "saved")
    _replace(tmp_path / "saved", pa.table({"text": ["a", "b", "c", "d"], "none": pa.nulls(4)}))

    assert bring(HuggingFace(tmp_path / "saved", columns="text")).rows == 4


def test_lists_of_a_fixed_size_take_the_room_that_they_claim(tmp_path: Path, bring: Any) -> None:
    reviews(4).select_columns(["text"]).save_to_disk(tmp_path / "saved")
    _replace(tmp_path / "saved", pa.table({"text": pa.FixedSizeListArray.from_arrays(pa.array([True] * 98765), 98765)}))
    (path,) = (tmp_path / "saved").glob("data-*.arrow")
    path.write_bytes(path.read_bytes().replace((98765).to_bytes(4, "little"), MANY.to_bytes(4, "little"), 1))

    with pytest.raises(DataError, match="claims 1 rows of 50,000,000 values"):
        bring(tmp_path / "saved")


def test_structs_are_left_out_by_choosing_columns(tmp_path: Path, bring: Any) -> None:
    reviews(4).select_columns(["text"]).save_to_disk(tmp_path / "saved")
    _replace(tmp_path / "saved", pa.table({"text": pa.array([{"a": 1}] * 3)}))

    with pytest.raises(DataError, match="leave it out with columns="):
        bring(tmp_path / "saved")


def test_dictionaries_are_refused_before_they_are_decompressed(tmp_path: Path, bring: Any) -> None:
    # The schema does not tell of them, and the batch of rows is not compressed.
    reviews(4).select_columns(["text"]).save_to_disk(tmp_path / "saved")
    (path,) = (tmp_path / "saved").glob("data-*.arrow")
    plain = messages(pa.table({"text": ["a"]}))
    coded = messages(pa.table({"text": pa.array(["x" * 2**26]).dictionary_encode()}), compression="zstd")
    with pa.OSFile(str(path), "wb") as out:
        for message in (plain[0], coded[1], plain[1]):
            message.serialize_to(out)
        out.write(b"\xff\xff\xff\xff\0\0\0\0")
    before = pa.total_allocated_bytes()

    with pytest.raises(DataError, match=r"batches of rows; .* has a dictionary; save it again"):
        bring(tmp_path / "saved")
    assert pa.total_allocated_bytes() <= before


def messages(table: pa.Table, **options: Any) -> list[pa.Message]:
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return list(pa.ipc.MessageReader.open_stream(out.getvalue()))


def test_a_file_that_changes_meanwhile_ends_the_ingest(tmp_path: Path) -> None:
    for name, made in (("table", reviews(40)), ("pictures", pictures(4))):
        made.save_to_disk(tmp_path / name)
        found = open_hugging_face(HuggingFace(tmp_path / name))
        (path,) = (tmp_path / name).glob("*.arrow")
        path.write_bytes(b"")
        with pytest.raises(DataError, match="files stay as they are during an ingest"):
            list(found.read()) if name == "table" else found.entries[0].read()


def test_many_files_do_not_stay_open(tmp_path: Path) -> None:
    reviews(40).save_to_disk(tmp_path / "saved", num_shards=40)
    before = len(list(Path("/proc/self/fd").iterdir()))
    found = open_hugging_face(HuggingFace(tmp_path / "saved"))
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
    assert sum(map(len, found.read())) == 40
