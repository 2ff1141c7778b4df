"""What tensorflow-datasets wrote about a dataset that it prepared, read without running its author's code.

A description names the Python class of each feature, which tensorflow-datasets imports: only its own are let through.
Its class for sound asks for TensorFlow as soon as it is made, though what is in the files are tensors, so it is read as
one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from mms_sdk.errors import DataError, InvalidRequest, MissingExtra

_OWN = "tensorflow_datasets."
# Where the name of a class stands: protobuf reads its own spelling too, and older versions wrote `type`.
_CLASS = ("pythonClassName", "python_class_name", "type")
_AUDIO = f"{_OWN}core.features.audio_feature.Audio"
_TENSOR = f"{_OWN}core.features.tensor_feature.Tensor"
_FEATURES = "features.json"


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
        InvalidRequest: There is none; or it names a class of its own.
        DataError: It is damaged.
        MissingExtra: tensorflow-datasets is not installed.
    """
    try:
        import tensorflow_datasets as tfds
        from google.protobuf.json_format import ParseError
    except ImportError as error:
        raise MissingExtra("tensorflow-datasets", extra="tfds") from error
    described = root / _FEATURES
    if not described.is_file() or not (root / "dataset_info.json").is_file():
        raise InvalidRequest(
            f"a prepared dataset is a folder with dataset_info.json and features.json, e.g. "
            f"~/tensorflow_datasets/mnist/3.0.1; {root} has none; name the folder of a version"
        )
    try:
        told = orjson.loads(described.read_bytes())
        _refuse_foreign_classes(told, described)
        sounds = _sounds(told)
        if not sounds:
            return Description(info=tfds.builder_from_directory(str(root)).info, root=root, sounds={})
        with tempfile.TemporaryDirectory(prefix="mms-tfds-") as beside:
            for path in root.iterdir():
                (Path(beside) / path.name).symlink_to(path.absolute())
            (Path(beside) / _FEATURES).unlink()
            (Path(beside) / _FEATURES).write_bytes(orjson.dumps(told))
            return Description(info=tfds.builder_from_directory(beside).info, root=root, sounds=sounds)
    except InvalidRequest:
        raise
    except ImportError as error:
        raise InvalidRequest(
            f"a feature of {root} is one that tensorflow-datasets does not read without TensorFlow; install it beside: "
            f"pip install tensorflow"
        ) from error
    except (ParseError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise DataError(
            f"{root} is not a description that tensorflow-datasets wrote: {error}; prepare it again"
        ) from error


def _refuse_foreign_classes(told: Any, path: Path) -> None:
    if isinstance(told, list):
        for each in told:
            _refuse_foreign_classes(each, path)
    if not isinstance(told, Mapping):
        return
    for key, value in told.items():
        if key in _CLASS and isinstance(value, str) and not value.startswith(_OWN):
            raise InvalidRequest(
                f"opening data runs none of its code; {path} names the class {value!r}; MMS reads those that come with "
                f"tensorflow-datasets"
            )
        if key == "json" and isinstance(value, str):  # a description within the description
            _refuse_foreign_classes(orjson.loads(value), path)
        _refuse_foreign_classes(value, path)


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
