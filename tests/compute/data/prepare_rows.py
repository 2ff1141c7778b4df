"""Prepared datasets of texts, of embeddings and of sound, as tensorflow-datasets writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

Rows = Mapping[str, Sequence[Mapping[str, Any]]]


class Given(tfds.core.GeneratorBasedBuilder):
    """Rows by split, as they are given."""

    VERSION = tfds.core.Version("1.0.0")
    features: Any = None
    supervised: Any = None
    rows: Any = None

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(builder=self, features=self.features, supervised_keys=self.supervised)

    def _split_generators(self, _: Any) -> dict[str, Any]:
        return {name: self._generate_examples(rows) for name, rows in self.rows.items()}

    def _generate_examples(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Mapping[str, Any]]]:
        yield from enumerate(rows)


def prepare(root: Path, features: Mapping[str, Any], rows: Rows, *, supervised: tuple[str, str] | None = None) -> Path:
    """The folder of the version, with ArrayRecord files."""
    Given.features, Given.rows, Given.supervised = tfds.features.FeaturesDict(features), rows, supervised
    builder = Given(data_dir=str(root), file_format="array_record")
    builder.download_and_prepare()
    return Path(str(builder.data_path))


def as_sound(prepared: Path, name: str, *, rate_hz: int = 0, encoded: bool = False) -> Path:
    """A tensor described as sound: tensorflow-datasets makes no such feature without TensorFlow, and keeps it so."""
    path = prepared / "features.json"
    told = json.loads(path.read_text())
    feature = told["featuresDict"]["features"][name]
    sound = feature.pop("tensor")
    feature["pythonClassName"] = "tensorflow_datasets.core.features.audio_feature.Audio"
    feature["audio"] = {**sound, "sampleRate": str(rate_hz), "lazyDecode": encoded}
    path.write_text(json.dumps(told))
    return prepared


def reviews(count: int = 40, *, seed: int = 0) -> list[dict[str, Any]]:
    """Rows with what features there are for texts and numbers."""
    rng = np.random.default_rng(seed)
    return [
        {
            "text": f"review {seed}-{at} ü",
            "label": at % 3,
            "lang": at % 2 - (at % 5 == 0),
            "stars": at,
            "score": np.float32(at / 3),
            "good": at % 2 == 0,
            "vector": rng.normal(size=4).astype(np.float32),
            "matrix": rng.integers(0, 9, (2, 3)),
            "tokens": list(range(at % 4)),
            "raw": bytes([0xFF, at]),
            "words": ["a", "b"],
        }
        for at in range(count)
    ]


REVIEWS = {
    "text": tfds.features.Text(),
    "label": tfds.features.ClassLabel(names=["neutral", "bad", "good"]),
    "lang": tfds.features.ClassLabel(names=["en", "de"]),
    "stars": np.int64,
    "score": np.float32,
    "good": np.bool_,
    "vector": tfds.features.Tensor(shape=(4,), dtype=np.float32),
    "matrix": tfds.features.Tensor(shape=(2, 3), dtype=np.int64),
    "tokens": tfds.features.Sequence(np.int64),
    "raw": tfds.features.Scalar(dtype=np.str_),
    "words": tfds.features.Sequence(tfds.features.Text()),
}
