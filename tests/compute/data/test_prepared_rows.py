"""Prepared datasets without pictures: texts and numbers become tables, sound becomes recordings."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import wave
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image
from prepare_rows import REVIEWS, as_sound, prepare, reviews
from tensorflow_datasets.proto import tf_example_pb2

from mms_sdk.compute.data.ingest import ingest
from mms_sdk.compute.data.kinds import audio
from mms_sdk.compute.data.sources import samples as sampling
from mms_sdk.compute.data.sources.descriptions import read_description
from mms_sdk.compute.data.sources.examples import features_of
from mms_sdk.compute.data.sources.prepared import open_prepared
from mms_sdk.errors import DataError, InvalidInput, InvalidRequest
from mms_sdk.schema.cleaning import DropNearDuplicates, DropUnreadable, KeepWhere
from mms_sdk.schema.sources import TFDS
from mms_sdk.schema.specs import IngestSpec, Split
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.stores.local import LocalStore

# https://github.com/tensorflow/datasets/issues: it leaves files that it reads open.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

SPLITS = {"train": reviews(40), "validation": reviews(9, seed=1), "test": reviews(12, seed=2)}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("reviews"), REVIEWS, SPLITS, supervised=("text", "label"))


def ingested(root: Path, source: TFDS, **options: Any) -> Dataset:
    dataset = Dataset.open_or_create(LocalStore(root / "rows"), "given")
    (root / "job").mkdir(parents=True, exist_ok=True)
    ingest(dataset, IngestSpec(source=source, **options), job="01J", folder=root / "job", tell=lambda _: None)
    return dataset


def rejects(root: Path) -> dict[str, str]:
    lines = (root / "job" / "rejects.jsonl").read_text().splitlines()
    return {told["source"]: told["reason"] for told in map(json.loads, lines)}


# Texts and numbers ------------------------------------------------------------------------------------------------


def test_texts_numbers_embeddings_and_classes_become_a_table_with_its_splits(prepared: Path, tmp_path: Path) -> None:
    snapshot = ingested(tmp_path, TFDS(prepared)).snapshot()

    assert snapshot.record.splits == {"train": 40, "val": 9, "test": 12}
    assert snapshot.record.split_rule == {"by": "source"}
    kinds = {column.name: (column.kind, column.dtype, column.shape) for column in snapshot.record.columns}
    assert kinds == {
        "text": ("text", "uint8", None),
        "label": ("label", "int32", ()),
        "lang": ("category", "int32", ()),
        "stars": ("number", "int64", ()),
        "score": ("number", "float32", ()),
        "good": ("number", "bool", ()),
        "vector": ("embedding", "float32", (4,)),
        "matrix": ("embedding", "int64", (2, 3)),
        "tokens": ("series", "int64", (None,)),
        "raw": ("bytes", "uint8", None),
        "row_source": ("category", "int32", ()),
        "row_id": ("id", "uint8", (16,)),
        "split": ("split", "uint8", ()),
    }
    rows = np.arange(snapshot.rows)
    written = {row["text"].encode(): (row, split) for split, part in SPLITS.items() for row in part}
    found = snapshot.gather("text", rows)
    assert sorted(found) == sorted(written)
    expected = [written[text][0] for text in found]
    assert snapshot.column("label").labels == ("neutral", "bad", "good")
    assert snapshot.values("label").tolist() == [row["label"] for row in expected]
    langs = snapshot.column("lang").labels
    told = [None if code is None else langs[code] for code in snapshot.gather("lang", rows).tolist()]
    assert told == [[None, "en", "de"][row["lang"] + 1] for row in expected]
    for name in ("stars", "score", "good", "vector", "matrix"):
        np.testing.assert_array_equal(snapshot.values(name), np.stack([row[name] for row in expected]))
    assert [row.tolist() for row in snapshot.gather("tokens", rows)] == [row["tokens"] for row in expected]
    assert list(snapshot.gather("raw", rows)) == [row["raw"] for row in expected]
    names = [snapshot.column("row_source").labels[code] for code in snapshot.values("row_source")]
    assert names == [written[text][1] for text in found]
    places = {"train": 0, "validation": 1, "test": 2}
    assert snapshot.values("split").tolist() == [places[name] for name in names]
    assert "left out: words, Sequence" in snapshot.record.provenance["cleaning"]["notes"]
    snapshot.verify()


def test_what_tensorflow_datasets_reads_itself_is_the_same(prepared: Path, tmp_path: Path) -> None:
    snapshot = ingested(tmp_path, TFDS(prepared, splits="test")).snapshot()
    theirs = {row["text"]: row for row in tfds.builder_from_directory(str(prepared)).as_data_source("test")}
    for row, text in enumerate(snapshot.gather("text", np.arange(snapshot.rows))):
        np.testing.assert_array_equal(snapshot.values("vector")[row], theirs[text]["vector"])
        np.testing.assert_array_equal(snapshot.values("matrix")[row], theirs[text]["matrix"])
        assert snapshot.values("label")[row] == theirs[text]["label"]


def test_one_split_is_divided_by_the_rule_and_others_come_with_theirs(prepared: Path, tmp_path: Path) -> None:
    dataset = ingested(tmp_path, TFDS(prepared, splits="train"), split=Split(train=0.5, val=0, test=0.5))
    assert set(dataset.record().splits) == {"train", "test"}
    ingested(tmp_path / "two", TFDS(prepared, splits=("train", "test")))
    again = ingested(tmp_path / "two", TFDS(prepared))
    assert again.record().splits == {"train": 40, "val": 9, "test": 12}
    assert again.record().provenance["cleaning"]["already_present"] == 52


def test_splits_follow_their_rows_through_cleaning(prepared: Path, tmp_path: Path) -> None:
    steps = (KeepWhere("stars >= 6"), DropNearDuplicates("text", similarity=1.0))
    snapshot = ingested(tmp_path, TFDS(prepared), clean=steps).snapshot()
    assert snapshot.record.splits == {"train": 34, "val": 3, "test": 6}


def test_another_feature_may_be_the_class(prepared: Path, tmp_path: Path) -> None:
    snapshot = ingested(tmp_path, TFDS(prepared, label="lang")).snapshot()
    assert snapshot.column("label").labels == ("en", "de")
    assert snapshot.column("label").title == "lang"
    assert snapshot.column("label_2").kind == "category"
    missing = [row for part in SPLITS.values() for row in part if row["lang"] == -1]
    assert snapshot.rows == 61 - len(missing)
    assert len(rejects(tmp_path)) == len(missing)
    with pytest.raises(InvalidRequest, match=r"of given these are \['label', 'lang', 'text'\]; got 'stars'"):
        ingested(tmp_path, TFDS(prepared, label="stars"))


def test_rows_that_are_damaged_are_left_out_with_the_reason(tmp_path: Path) -> None:
    rows = [{"text": f"{at}".encode() if at != 3 else b"\xff", "label": at % 2} for at in range(9)]
    features = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=["a", "b"])}
    made = prepare(tmp_path / "data", features, {"train": rows})
    snapshot = ingested(tmp_path, TFDS(made), split=Split(train=1, val=0, test=0)).snapshot()
    assert snapshot.rows == 8
    (told,) = rejects(tmp_path).items()
    assert told[0].startswith("train, row ")
    assert "can't decode byte 0xff" in told[1]


def test_a_row_with_nothing_that_can_be_kept_is_refused(tmp_path: Path) -> None:
    words = tfds.features.Sequence(tfds.features.Text())
    made = prepare(tmp_path, {"words": words}, {"train": [{"words": ["a"]}]})
    with pytest.raises(InvalidRequest, match=r"the features of given are \['words'\]; write them to Parquet"):
        ingested(tmp_path, TFDS(made))


def test_features_that_are_left_out_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = {
        "text": tfds.features.Text(),
        "pictures": tfds.features.Sequence(tfds.features.Text()),
        "packed": tfds.features.Tensor(shape=(4,), dtype=np.int64, encoding="zlib"),
    }
    row = {"text": "a", "pictures": ["%!PS-Adobe-3.0 EPSF-3.0"], "packed": np.arange(4)}
    made = prepare(tmp_path / "data", features, {"train": [row]})
    told = json.loads((made / "features.json").read_text())
    told["featuresDict"]["features"]["pictures"]["sequence"]["feature"] = {
        "pythonClassName": "tensorflow_datasets.core.features.image_feature.Image",
        "image": {"shape": {"dimensions": ["-1", "-1", "3"]}, "dtype": "uint8"},
    }
    (made / "features.json").write_text(json.dumps(told))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image, "open", refuse)
    monkeypatch.setattr(zlib, "decompress", refuse)
    snapshot = ingested(tmp_path, TFDS(made), split=Split(train=1, val=0, test=0)).snapshot()
    assert snapshot.gather("text", np.arange(1)) == [b"a"]
    notes = snapshot.record.provenance["cleaning"]["notes"]
    assert {"left out: packed, Tensor, compressed", "left out: pictures, Sequence"} <= set(notes)


def test_values_of_lists_of_lists_are_passed_over(tmp_path: Path) -> None:
    features = {"text": tfds.features.Text(), "words": tfds.features.Sequence(tfds.features.Text())}
    made = prepare(tmp_path, features, {"train": [{"text": "a", "words": ["b"]}]})
    (path,) = made.glob("*.array_record*")
    example = tf_example_pb2.Example.FromString(ArrayRecordReader(str(path)).read([0])[0])
    example.features.feature["words/ragged_flat_values"].bytes_list.value.append(b"b")
    found = features_of(read_description(made), TFDS(made)).row(example.SerializeToString())
    assert found == {"text": "a"}


def test_a_record_that_is_too_large_or_none_is_left_out(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "MAX_BYTES", 10)
    found = open_prepared(TFDS(prepared))
    assert found.rows == 0
    assert {reject.reason.split(";")[0] for reject in found.rejects} == {"a sample has at most 10 bytes"}
    monkeypatch.undo()
    features = features_of(read_description(prepared), TFDS(prepared))
    for data in (b"\xff" * 9, b"\n\x0b\n\t\n\x05stars\x12\x00"):
        with pytest.raises(InvalidInput, match="it is no example"):
            features.row(data)


def test_a_tensor_beyond_all_bounds_is_left_out(prepared: Path, tmp_path: Path) -> None:
    made = Path(shutil.copytree(prepared, tmp_path / "given" / "1.0.0"))
    told = json.loads((made / "features.json").read_text())
    tensor = told["featuresDict"]["features"]["matrix"]["tensor"]
    tensor["shape"] = {"dimensions": [str(2**32), str(2**32), "4"]}
    (made / "features.json").write_text(json.dumps(told))
    assert "left out: matrix, Tensor" in open_prepared(TFDS(made)).notes


# Sound ------------------------------------------------------------------------------------------------------------

SAMPLES = tfds.features.Tensor(shape=(None,), dtype=np.int64)
SOUND = {"audio": SAMPLES, "label": tfds.features.ClassLabel(names=["no", "yes"])}


def sounds(count: int, *, high: int = 2**15, channels: int | None = None) -> list[dict[str, Any]]:
    rng = np.random.default_rng(count)
    return [
        {
            "audio": rng.integers(-high, high, (50 * at, channels) if channels else 50 * at),
            "label": at % 2,
        }
        for at in range(1, count + 1)
    ]


def test_sound_becomes_its_samples_with_what_stands_beside(tmp_path: Path) -> None:
    splits = {
        name: [{**row, "speaker": f"{name} {at}", "id": at, "lang": at % 2 - 1} for at, row in enumerate(sounds(count))]
        for name, count in (("train", 8), ("test", 4))
    }
    beside = {"speaker": tfds.features.Text(), "id": np.int32, "lang": tfds.features.ClassLabel(names=["en"])}
    made = as_sound(prepare(tmp_path / "data", {**SOUND, **beside}, splits), "audio", rate_hz=8000)
    snapshot = ingested(tmp_path, TFDS(made)).snapshot()

    column = snapshot.column("audio")
    assert (column.kind, column.dtype, column.shape, column.rate_hz) == ("audio", "int16", (None, 1), 8000)
    assert snapshot.record.splits == {"train": 8, "test": 4}
    assert snapshot.column("label").labels == ("no", "yes")
    rows = np.arange(snapshot.rows)
    told = [speaker.decode().split() for speaker in snapshot.gather("speaker", rows)]
    expected = [splits[name][int(at)] for name, at in told]
    for row, samples in zip(expected, snapshot.gather("audio", rows), strict=True):
        np.testing.assert_array_equal(samples[:, 0], row["audio"])
    assert snapshot.column("id_2").title == "id"
    assert snapshot.values("id_2").tolist() == [row["id"] for row in expected]
    assert snapshot.gather("lang", rows).tolist() == [[None, 0][row["lang"] + 1] for row in expected]

    named = ingested(
        tmp_path / "named", TFDS(made, label="speaker", splits="test"), split=Split(train=1, val=0, test=0)
    )
    assert named.record().column("label").labels == ("test 0", "test 1", "test 2", "test 3")


def test_a_recording_without_a_class_is_left_out_with_the_reason(tmp_path: Path) -> None:
    rows = [*sounds(4), {"audio": np.arange(5), "label": -1}]
    made = as_sound(prepare(tmp_path / "data", SOUND, {"train": rows}), "audio", rate_hz=8000)
    whole = Split(train=1, val=0, test=0)
    with pytest.raises(DataError, match=r"1 of 5 do not.*it has no class"):
        ingested(tmp_path, TFDS(made), split=whole)
    assert ingested(tmp_path, TFDS(made), clean=(DropUnreadable(),), split=whole).record().rows == 4
    assert list(rejects(tmp_path).values()) == ["it has no class"]


def test_samples_of_more_bits_are_kept_as_wav_files_that_python_reads(tmp_path: Path) -> None:
    rows = sounds(3, high=2**23)
    made = as_sound(prepare(tmp_path / "data", SOUND, {"train": rows}), "audio", rate_hz=8000)
    snapshot = ingested(tmp_path, TFDS(made), split=Split(train=1, val=0, test=0)).snapshot()
    assert snapshot.column("audio").kind == "encoded-audio"
    found = []
    for data in snapshot.gather("audio", np.arange(3)):
        with wave.open(io.BytesIO(data)) as file:
            assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 1, 4)
            found.append(np.frombuffer(file.readframes(file.getnframes()), "<i4"))
    for samples, row in zip(sorted(found, key=len), rows, strict=True):
        np.testing.assert_array_equal(samples, row["audio"])


def test_sound_of_several_channels_and_without_a_rate(tmp_path: Path) -> None:
    rows = sounds(2, channels=2)
    features = {**SOUND, "audio": tfds.features.Tensor(shape=(None, 2), dtype=np.int64)}
    made = as_sound(prepare(tmp_path / "data", features, {"train": rows}), "audio")
    with pytest.raises(InvalidRequest, match="this description says none; say it with rate_hz="):
        ingested(tmp_path, TFDS(made))
    snapshot = ingested(tmp_path, TFDS(made, rate_hz=16000), split=Split(train=1, val=0, test=0)).snapshot()
    assert snapshot.column("audio").rate_hz == 16000
    found = sorted(snapshot.gather("audio", np.arange(2)), key=len)
    for samples, row in zip(found, rows, strict=True):
        np.testing.assert_array_equal(samples, row["audio"])


def test_samples_beyond_32_bits_are_refused_and_not_cut(tmp_path: Path) -> None:
    rows = [{"audio": np.array([2**31]), "label": 0}, {"audio": np.array([1]), "label": 1}]
    made = as_sound(prepare(tmp_path / "data", SOUND, {"train": rows}), "audio", rate_hz=8000)
    with pytest.raises(DataError, match=r"every recording of a source decodes; 1 of 2.*whole numbers of up to 32 bits"):
        ingested(tmp_path, TFDS(made))
    dataset = ingested(tmp_path, TFDS(made), clean=(DropUnreadable(),), split=Split(train=1, val=0, test=0))
    assert dataset.record().rows == 1


def test_sound_that_is_kept_as_files_stays_as_it_is(tmp_path: Path) -> None:
    files = [audio.encode_wav(np.arange(9) + at, rate_hz=8000) for at in range(2)]
    features = {**SOUND, "audio": tfds.features.Scalar(dtype=np.str_)}
    rows = [{"audio": data, "label": at} for at, data in enumerate(files)]
    made = as_sound(prepare(tmp_path / "data", features, {"train": rows}), "audio", encoded=True)
    snapshot = ingested(tmp_path, TFDS(made), split=Split(train=1, val=0, test=0)).snapshot()
    found = sorted(samples[0, 0] for samples in snapshot.gather("audio", np.arange(2)))
    assert found == [0, 1]


def test_sound_is_read_without_tensorflow(tmp_path: Path) -> None:
    made = as_sound(prepare(tmp_path, SOUND, {"train": sounds(2)}), "audio", rate_hz=8000)
    probe = (
        "import sys\n"
        "from mms_sdk.compute.data.sources.prepared import open_prepared\n"
        "from mms_sdk.schema.sources import TFDS\n"
        f"found = open_prepared(TFDS({str(made)!r}))\n"
        "print(len(found.entries), found.entries[0].read().data[:4], 'tensorflow' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("2 b'RIFF' False\n")


def test_two_recordings_in_a_row_are_refused(tmp_path: Path) -> None:
    made = prepare(tmp_path, {"a": SAMPLES, "b": SAMPLES}, {"train": [{"a": np.arange(3), "b": np.arange(3)}]})
    made = as_sound(as_sound(made, "a"), "b")
    with pytest.raises(InvalidRequest, match=r"a row of a prepared dataset has one recording; .* are \['a', 'b'\]"):
        ingested(tmp_path, TFDS(made))


@pytest.mark.parametrize(
    "samples",
    [
        np.arange(-5, 5),
        np.arange(12).reshape(6, 2),
        np.array([-(2**15), 2**15 - 1]),
        np.array([], np.int64),
        np.array([2**15]),
        np.linspace(-1, 1, 7, dtype=np.float32),
        np.array([np.nan, np.inf], np.float32),
    ],
)
def test_wav_files_hold_the_samples_as_they_are(samples: Any) -> None:
    soundfile = pytest.importorskip("soundfile")
    data = audio.encode_wav(samples, rate_hz=8000)
    dtype = "float32" if samples.dtype.kind == "f" else "int32"
    found, rate = soundfile.read(io.BytesIO(data), dtype=dtype, always_2d=True)
    if soundfile.info(io.BytesIO(data)).subtype == "PCM_16":
        found = found // 65536  # soundfile fills the upper bits
    np.testing.assert_array_equal(found, samples.reshape(len(samples), -1) if len(samples) else found)
    assert (rate, len(found)) == (8000, len(samples))
    assert data == audio.encode_wav(samples.copy(), rate_hz=8000)


@pytest.mark.parametrize(("rate_hz", "channels"), [(10**10, 1), (2**31, 2), (8000, 2**15), (-1, 1)])
def test_a_rate_or_channels_that_no_wav_file_has_are_refused(rate_hz: int, channels: int) -> None:
    with pytest.raises(InvalidInput, match="say another rate_hz="):
        audio.encode_wav(np.zeros((3, channels), np.int16), rate_hz=rate_hz)


@pytest.mark.parametrize("samples", [np.array([2**31]), np.array([0.1]), np.array([True]), np.array([1j])])
def test_samples_that_do_not_fit_are_refused(samples: Any) -> None:
    with pytest.raises(InvalidInput, match="up to 32 bits or float32"):
        audio.encode_wav(samples, rate_hz=8000)
