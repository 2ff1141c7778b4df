"""What tensorflow-datasets wrote about a dataset that it prepared, read without running its author's code.

A description names the Python class of each feature, which tensorflow-datasets imports: only those are let through that
it comes with, and what it is given to read is a copy of exactly what was looked at.
Its class for sound asks for TensorFlow as soon as it is made, though what is in the files are tensors, so it is read as
one.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import orjson

from mms_sdk.errors import DataError, InvalidRequest, MissingExtra

_OWN = "tensorflow_datasets.core.features."
_CLASSES = frozenset(
    f"{_OWN}{name}"
    for name in (
        "audio_feature.Audio",
        "bounding_boxes.BBoxFeature",
        "class_label_feature.ClassLabel",
        "dataset_feature.Dataset",
        "feature.Tensor",
        "features_dict.FeaturesDict",
        "image_feature.Image",
        "labeled_image.LabeledImage",
        "scalar.Scalar",
        "sequence_feature.Sequence",
        "tensor_feature.Tensor",
        "text_feature.Text",
        "translation_feature.Translation",
        "translation_feature.TranslationVariableLanguages",
        "video_feature.Video",
    )
)
# Where the name of a class stands: protobuf reads its own spelling too, and older versions wrote `type`.
_CLASS = ("pythonClassName", "python_class_name", "type")
_AUDIO = f"{_OWN}audio_feature.Audio"
_TENSOR = f"{_OWN}tensor_feature.Tensor"
_INFO = "dataset_info.json"
_FEATURES = "features.json"
MAX_VALUES = 2**27
"""Of a tensor: 1 GiB of the widest."""


@dataclass(frozen=True, kw_only=True)
class Sound:
    """What a description says of a feature that is sound.

    Attributes:
        rate_hz: Frames in a second; 0 if it does not say.
        encoded: Whether the bytes of a file are kept, not samples.
    """

    rate_hz: int
    encoded: bool


@dataclass(frozen=True, kw_only=True)
class Description:
    """A description.

    Attributes:
        info: As tensorflow-datasets reads it, with sound as tensors.
        root: The folder of the version.
        sounds: The features that are sound.
    """

    info: Any
    root: Path
    sounds: Mapping[str, Sound]

    def files(self, split: str) -> list[Path]:
        """Those with the records of a split."""
        return [self.root / Path(str(path)).name for path in self.info.splits[split].filepaths]


def read_description(root: Path) -> Description:
    """Reads the description of a prepared dataset.

    Raises:
        InvalidRequest: There is none; or it names a class or a file of its own, or tensors of no size.
        DataError: It is damaged.
        MissingExtra: tensorflow-datasets is not installed.
    """
    try:
        import tensorflow_datasets as tfds
        from google.protobuf.json_format import ParseError
    except ImportError as error:
        raise MissingExtra("tensorflow-datasets", extra="tfds") from error
    described = root / _FEATURES
    if not described.is_file() or not (root / _INFO).is_file():
        raise InvalidRequest(
            f"a prepared dataset is a folder with dataset_info.json and features.json, e.g. "
            f"~/tensorflow_datasets/mnist/3.0.1; {root} has none; name the folder of a version"
        )
    try:
        told, info = orjson.loads(described.read_bytes()), orjson.loads((root / _INFO).read_bytes())
        info.pop("features", None)  # a second place for classes, which nobody writes
        _refuse_foreign(told, described)
        if (values := _default_values(told)) > MAX_VALUES:
            raise InvalidRequest(
                f"the tensors of a row have at most {MAX_VALUES:,} values; those of {described} that may be missing "
                f"have {values:,}; write them to Zarr and ingest that"
            )
        sounds = _sounds(told)
        with tempfile.TemporaryDirectory(prefix="mms-tfds-") as beside:
            for path in root.glob("*.labels.txt"):
                (Path(beside) / path.name).symlink_to(path.absolute())
            for name, content in ((_FEATURES, told), (_INFO, info)):
                (Path(beside) / name).write_bytes(orjson.dumps(content))
            return Description(info=tfds.builder_from_directory(beside).info, root=root, sounds=sounds)
    except InvalidRequest:
        raise
    except ImportError as error:
        raise InvalidRequest(
            f"a feature of {root} is one that tensorflow-datasets does not read without TensorFlow; install it beside: "
            f"pip install tensorflow"
        ) from error
    except (ParseError, AssertionError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise DataError(
            f"{root} is not a description that tensorflow-datasets wrote: {error}; prepare it again"
        ) from error


def _refuse_foreign(told: Any, path: Path) -> None:
    for key, value in _pairs(told):
        if key in _CLASS and isinstance(value, str) and value not in _CLASSES:
            raise InvalidRequest(
                f"opening data runs none of its code; {path} names the class {value[:200]!r}; MMS reads those that "
                f"come with tensorflow-datasets"
            )
        if key in ("names_file", "namesFile"):
            raise InvalidRequest(
                f"names of classes stand beside a description; {path} takes them from the file {str(value)[:200]!r}; "
                f"put them into FEATURE.labels.txt there"
            )


def _default_values(told: Any) -> int:
    # How many values are made as soon as a tensor that may be missing is asked for its shape.
    found = 0
    for _, value in _pairs(told):
        if isinstance(value, Mapping) and value.get("optional"):
            shape = value.get("shape") or ()
            sizes = shape.get("dimensions", ()) if isinstance(shape, Mapping) else shape
            found += prod(max(1, int(size)) for size in sizes if size is not None)
    return found


def _pairs(told: Any) -> Iterator[tuple[str, Any]]:
    # Keys and values at any depth, also of descriptions that are kept as texts within.
    if isinstance(told, str) and told.lstrip()[:1] in ("{", "["):
        with contextlib.suppress(ValueError):
            yield from _pairs(json.loads(told))  # as tensorflow-datasets parses them
    elif isinstance(told, list):
        for each in told:
            yield from _pairs(each)
    elif isinstance(told, Mapping):
        for key, value in told.items():
            yield key, value
            yield from _pairs(value)


def _sounds(told: Any) -> dict[str, Sound]:
    # Features at the top that are sound; in the description they become the tensors that they are kept as.
    found = {}
    for name, feature in told.get("featuresDict", {}).get("features", {}).items():
        if feature.get("pythonClassName") == _AUDIO:
            sound = feature.pop("audio")
            encoded = bool(sound.get("lazyDecode", False))
            found[name] = Sound(rate_hz=int(sound.get("sampleRate", 0)), encoded=encoded)
            feature["pythonClassName"] = _TENSOR
            feature["tensor"] = {key: sound[key] for key in ("shape", "dtype", "encoding") if key in sound}
            if encoded:
                feature["tensor"] = {"shape": {}, "dtype": "string"}
    return found
