"""Names and references: what a client may call things.

Names, never paths, come from clients: `flowers`, `flowers@7/train`, `flowers@champion`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import StringConstraints

from mms_sdk.errors import InvalidName

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
_NAME = re.compile(NAME_PATTERN.removesuffix("$") + r"\Z")  # `$` alone would accept a trailing newline

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""A name as a field: lower-case letters, digits, `.`, `_`, `-`; begins with a letter or digit; at most 63."""


def check_name(name: str, *, what: str) -> str:
    """Returns `name` if MMS accepts it.

    Args:
        name: The name a person or program chose.
        what: The noun for the message, e.g. `dataset`.

    Raises:
        InvalidName: The name has other characters or is too long.
    """
    article = "an" if what[0] in "aeiou" else "a"
    _refuse_other_than_text(name, f"{article} {what} name")
    if not _NAME.match(name):
        raise InvalidName(
            f"{article} {what} name has 1 to 63 of a-z 0-9 . _ - and begins with a letter or digit; got {name!r}; "
            f"try {suggest_name(name)!r}"
        )
    return name


def suggest_name(text: str) -> str:
    """The acceptable name nearest to `text`."""
    name = re.sub(r"[^a-z0-9._-]+", "-", text.strip().lower()).strip("-._")[:63]
    return name or "unnamed"


@dataclass(frozen=True, kw_only=True)
class DatasetRef:
    """`name[@snapshot-or-tag][/split]`: rows that stay the same for ever once the snapshot is named.

    Attributes:
        name: The dataset.
        snapshot: Its snapshot number, or a tag; None means the newest.
        split: The split; None means all rows.
    """

    name: str
    snapshot: int | str | None = None
    split: str | None = None

    def __str__(self) -> str:
        at = "" if self.snapshot is None else f"@{self.snapshot}"
        return f"{self.name}{at}" + ("" if self.split is None else f"/{self.split}")


def parse_dataset_ref(text: str) -> DatasetRef:
    """Reads `flowers`, `flowers@7`, `flowers@paper`, `flowers/train` or `flowers@7/train`.

    Raises:
        InvalidName: The text is none of these.
    """
    _refuse_other_than_text(text, "a dataset reference")
    whole, slash, split = text.partition("/")
    name, at, snapshot = whole.partition("@")
    check_name(name, what="dataset")
    if slash:
        check_name(split, what="split")
    return DatasetRef(name=name, snapshot=parse_snapshot(snapshot) if at else None, split=split if slash else None)


def parse_snapshot(text: str) -> int | str:
    """Reads what stands behind the `@` of a dataset: a snapshot's number, or a tag.

    Raises:
        InvalidName: The text is neither.
    """
    _refuse_other_than_text(text, "a snapshot or tag")
    if re.fullmatch(r"[1-9][0-9]{0,7}", text):
        return int(text)
    if not text or text[0].isdigit():
        raise InvalidName(
            f"a dataset reference is NAME[@SNAPSHOT|@TAG][/SPLIT] with a snapshot from 1, or a tag that begins with a "
            f"letter; got {text!r}"
        )
    return check_name(text, what="tag")


@dataclass(frozen=True, kw_only=True)
class ModelRef:
    """`name[@version-or-alias]`; without either, the newest version.

    Attributes:
        name: The model.
        version: A version number, an alias, or None for the newest.
    """

    name: str
    version: int | str | None = None

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}@{self.version}"


def parse_model_ref(text: str) -> ModelRef:
    """Reads `flowers`, `flowers@3` or `flowers@champion`.

    Raises:
        InvalidName: The text is none of these.
    """
    _refuse_other_than_text(text, "a model reference")
    name, at, version = text.partition("@")
    check_name(name, what="model")
    if not at:
        return ModelRef(name=name)
    if re.fullmatch(r"[1-9][0-9]{0,7}", version):
        return ModelRef(name=name, version=int(version))
    if version[:1].isdigit():
        raise InvalidName(f"a model reference is NAME[@VERSION|@ALIAS] with a version from 1; got {text!r}")
    return ModelRef(name=name, version=check_name(version, what="alias"))


def _refuse_other_than_text(value: object, what: str) -> None:
    if not isinstance(value, str):
        raise InvalidName(f"{what} is a text, e.g. 'flowers'; got {value!r}, of type {type(value).__name__}")
