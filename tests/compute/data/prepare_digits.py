"""Prepared datasets of scikit-learn's digits, as tensorflow-datasets writes them."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image
from sklearn.datasets import load_digits

NAMES = [f"digit {code}" for code in range(10)]
ROWS = {"train": 120, "validation": 30, "test": 25}


def pixels() -> Any:
    """uint8, shape (rows, 8, 8)."""
    return (load_digits().images * 15).astype(np.uint8)


class Digits(tfds.core.GeneratorBasedBuilder):
    """Pictures with classes, texts, numbers and boxes."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
        features = {
            "image": tfds.features.Image(shape=(8, 8, 1)),
            "label": tfds.features.ClassLabel(names=NAMES),
            "Title": tfds.features.Text(),
            "weight": np.float32,
            "box": tfds.features.BBoxFeature(),
            "words": tfds.features.Sequence(tfds.features.Text()),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
        )

    def _split_generators(self, _: Any) -> dict[str, Any]:
        starts = np.cumsum([0, *ROWS.values()]).tolist()
        return {name: self._generate_examples(start, ROWS[name]) for name, start in zip(ROWS, starts, strict=False)}

    def _generate_examples(self, start: int, rows: int) -> Iterator[tuple[int, dict[str, Any]]]:
        digits, targets = pixels(), load_digits().target
        for row in range(start, start + rows):
            encoded = io.BytesIO()
            Image.fromarray(digits[row]).save(encoded, "PNG")
            encoded.seek(0)
            yield (
                row,
                {
                    "image": encoded,
                    "label": int(targets[row]),
                    "Title": f"row {row}",
                    "weight": row / 2,
                    "box": tfds.features.BBox(0.0, 0.25, 0.5, 1.0),
                    "words": ["a", "b"],
                },
            )


def prepare(root: Path) -> Path:
    """The folder of the version, with ArrayRecord files."""
    builder = Digits(data_dir=str(root), file_format="array_record")
    builder.download_and_prepare()
    return Path(str(builder.data_path))


def as_tfrecord(prepared: Path, to: Path) -> Path:
    """The same with TFRecord files: TensorFlow would be needed to have them prepared so."""
    to.mkdir()
    info = json.loads((prepared / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    for split in info["splits"]:
        split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    (to / "dataset_info.json").write_text(json.dumps(info))
    for path in prepared.iterdir():
        if "array_record" in path.name:
            reader = ArrayRecordReader(str(path))
            records = [reader.read([number])[0] for number in range(reader.num_records())]
            framed = b"".join(_framed(bytes(record)) for record in records)
            (to / path.name.replace("array_record", "tfrecord")).write_bytes(framed)
        elif path.name != "dataset_info.json":
            (to / path.name).write_bytes(path.read_bytes())
    return to


def _framed(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", _masked(length)) + data + struct.pack("<I", _masked(data))


def _masked(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17) & 0xFFFFFFFF) + 0xA282EAD8) % 2**32
