"""Shards: tar files in which files that stand one after another and share a key are a sample, as WebDataset has it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from mms_sdk.compute.data.sources import tars
from mms_sdk.compute.data.sources.files import find_files
from mms_sdk.compute.data.sources.folders import is_clutter, printable
from mms_sdk.errors import InvalidInput, InvalidRequest
from mms_sdk.schema.cleaning import Reject

_RANGE = re.compile(r"\{([0-9]+)\.\.([0-9]+)\}")
_MAX_SHARDS = 100_000
_MAX_NAME_BYTES = 4096  # as many as a path has
# Names that WebDataset keeps for itself.
_OF_ITS_OWN = re.compile(r"__[^/]*__($|/)")


class Shard:
    """One tar file; read from several threads."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self._path = path
        self._stamp = _stamp(path.stat())

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """The file, if it is still as it was when it was found.

        Raises:
            InvalidInput: It changed.
        """
        with self._path.open("rb", buffering=0) as file:
            if _stamp(os.fstat(file.fileno())) != self._stamp:
                raise InvalidInput(f"{self.name} changed since it was looked through")
            yield file


@dataclass(frozen=True, kw_only=True, slots=True)
class Keyed:
    """The files of a shard that share a key.

    Attributes:
        source: The shard's name and the key.
        shard: Where they are.
        parts: Where the bytes of each begin, and how many there are, by what its name ends with.
    """

    source: str
    shard: Shard
    parts: Mapping[str, tuple[int, int]]


def find_shards(path: str, rejects: list[Reject]) -> list[Shard]:
    """The tar files that a path, a pattern or a range such as `{000..012}` names, or that lie in a folder.

    Args:
        path: Of them.
        rejects: Where what cannot be taken is put, with the reason.

    Raises:
        InvalidRequest: One of a range is not there.
    """
    ranged, found = _ranged(path), []
    fixed = _before_range(path) if len(ranged) > 1 else None
    for each in ranged:
        base, paths = find_files(each, rejects)
        if len(ranged) > 1 and not paths:
            raise InvalidRequest(f"every shard of {path} is there; {each} is not; name those that are")
        whole = Path(each).expanduser().is_dir()
        for file in sorted(paths):
            name = printable(file.relative_to(base if fixed is None else fixed).as_posix())
            if whole and file.suffix.lower() != ".tar":
                rejects.append(Reject(source=name, reason="its name does not end with .tar"))
            else:
                found.append(Shard(file, name))
    return found


def grouped(shard: Shard, rejects: list[Reject]) -> list[Keyed]:
    """The samples of a shard, in order.

    Args:
        shard: Its headers are read.
        rejects: Where what cannot be taken is put, with the reason.
    """
    found = _Grouped(shard.name, rejects)
    try:
        with shard.opened() as file:
            for member in tars.members(file):
                found.add(member)
    except (InvalidInput, OSError) as error:
        rejects.append(Reject(source=shard.name, reason=str(getattr(error, "strerror", None) or error)))
        if found.last:
            found.bad[found.last] = "it may lack files: what follows it in its shard cannot be read"
    rejects += [Reject(source=found.told(key), reason=reason) for key, reason in found.bad.items()]
    return [
        Keyed(source=found.told(key), shard=shard, parts=parts)
        for key, parts in found.parts.items()
        if key not in found.bad
    ]


class _Grouped:
    """Files of a shard by their key, and the keys of which nothing good comes, with the reason."""

    def __init__(self, name: str, rejects: list[Reject]) -> None:
        self.parts: dict[str, dict[str, tuple[int, int]]] = {}
        self.bad: dict[str, str] = {}
        self.last = ""
        self._name = name
        self._rejects = rejects

    def told(self, name: str) -> str:
        """What a key or a file of the shard is called."""
        return f"{self._name}/{printable(name)}"

    def add(self, member: tars.Member) -> None:
        """Takes one more file."""
        name = member.name.removeprefix("./")
        if (size := len(name.encode("utf-8", "surrogateescape"))) > _MAX_NAME_BYTES:
            reason = f"a name in a shard has at most {_MAX_NAME_BYTES:,} bytes; this one has {size:,}"
            self._rejects.append(Reject(source=self.told(f"{name[:100]}…"), reason=reason))
            return
        if _OF_ITS_OWN.match(name) or is_clutter(name):
            return
        divided, reason = _divided(name), _refused(name, member)
        if reason or divided is None:
            self._rejects.append(
                Reject(source=self.told(name), reason=reason or "its name does not end with what it is")
            )
            return
        key, end = divided[0], sys.intern(divided[1].lower())
        if key != self.last and key in self.parts:
            self.bad[key] = "its key stands in two places of its shard"
        elif end in self.parts.setdefault(key, {}):
            self.bad[key] = f"two of its files end with .{end}"
        else:
            self.parts[key][end] = (member.offset, member.size)
        self.last = key


def _divided(name: str) -> tuple[str, str] | None:
    # Into the key and what it ends with, at the first dot behind the last slash, as WebDataset does.
    folder, slash, last = name.rpartition("/")
    begin, dot, end = last.partition(".")
    return (f"{folder}{slash}{begin}", end) if begin and dot else None


def _refused(name: str, member: tars.Member) -> str:
    if member.other:
        return f"it is {member.other}"
    if name.startswith("/") or ".." in name.split("/"):
        return "its name leads out of the tar file"
    return ""


def _before_range(path: str) -> Path | None:
    # Where names begin if folders are numbered, too: those of two may be alike.
    begin = re.split(r"[*?\[{]", path, maxsplit=1)[0]
    if begin.startswith("~") and "/" not in begin:
        return None
    return Path(begin[: begin.rfind("/") + 1]).expanduser() if "/" in path.partition("{")[2] else None


def _ranged(path: str) -> list[str]:
    ranges = [(int(found[1]), int(found[2])) for found in _RANGE.finditer(path)]
    if not 0 < prod(max(0, last - first + 1) for first, last in ranges) <= _MAX_SHARDS:
        raise InvalidRequest(f"a range of shards, from less to more, has 1 to {_MAX_SHARDS:,} of them; got {path}")
    paths = [path]
    for _ in ranges:
        paths = [each for one in paths for each in _numbered(one)]
    return paths


def _numbered(path: str) -> Iterator[str]:
    found = _RANGE.search(path)
    assert found is not None
    width = len(found[1]) if found[1].startswith("0") else 1
    for number in range(int(found[1]), int(found[2]) + 1):
        yield f"{path[: found.start()]}{number:0{width}}{path[found.end() :]}"


def _stamp(told: os.stat_result) -> tuple[int, int]:
    return told.st_size, told.st_mtime_ns
