"""What a job runs, as it is taken from where it lies."""

from __future__ import annotations

import fnmatch
import os
import stat
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from mms_sdk.errors import InvalidRequest, NotFound, TooLarge
from mms_sdk.storage import bundles
from mms_sdk.told import on_one_line

IGNORE = ".mmsignore"
_LEAVE_OUT = f"name it in {IGNORE}, or put a file in its place"
_SHOWN = 300  # of a path that is none
_NO_CODE = ("__pycache__", "*.pyc", "node_modules", "*.egg-info")


@dataclass(frozen=True, kw_only=True)
class Code:
    """What is run, and the files it needs.

    Attributes:
        kind: `script`, `cell` or `function`.
        name: For people.
        entrypoint: The script within the bundle.
        bundle: A zip archive.
        folder: Where it was taken from.
    """

    kind: str
    name: str
    entrypoint: str
    bundle: bytes
    folder: Path


def code_of(script: str | os.PathLike[str], folder: str | os.PathLike[str] | None) -> Code:
    """Packs a script, or the text of a cell, with the folder that goes along.

    Args:
        script: A path, or the text of a cell: what has more than one line.
        folder: What goes along, beside what it ignores; a script lies in it. None for the script alone.

    Raises:
        NotFound: There is no such script or folder.
        InvalidRequest: It is no Python, or lies outside the folder.
        TooLarge: It is more than a bundle holds.
    """
    if isinstance(script, str) and "\n" in script:
        return _cell(script, folder)
    path = _absolute(script)
    if not os.path.isfile(path):  # of a name that no disk takes, too, it says no
        raise NotFound(
            f"a job runs a script, or the text of a cell with more than one line; there is no file "
            f"{str(path)[:_SHOWN]}; give its path"
        )
    content = _read(path, bundles.MAX_UNPACKED_BYTES)
    _check(content, str(path))
    name = on_one_line(path.stem)[:63]
    if folder is None:
        packed = bundles.pack({path.name: content})
        return Code(kind="script", name=name, entrypoint=path.name, bundle=packed, folder=path.parent)
    root = _absolute(folder)
    if not path.is_relative_to(root):
        raise InvalidRequest(f"a script lies in the folder that goes along with it; {path} is not below {root}")
    entrypoint = path.relative_to(root).as_posix()
    packed = bundles.pack(_files(root) | {entrypoint: content})
    return Code(kind="script", name=name, entrypoint=entrypoint, bundle=packed, folder=root)


def _cell(text: str, folder: str | os.PathLike[str] | None) -> Code:
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"a cell is text that can be written as UTF-8; this one is not: {error}") from error
    _check(content, "the cell")
    root = _absolute(folder) if folder is not None else Path()
    packed = bundles.pack((_files(root) if folder is not None else {}) | {"cell.py": content})
    return Code(kind="cell", name="cell", entrypoint="cell.py", bundle=packed, folder=root)


def _absolute(path: str | os.PathLike[str]) -> Path:
    # Without '..', which would lead out of a folder and back.
    return Path(os.path.abspath(Path(path).expanduser()))


def _check(content: bytes, what: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are said where it runs
            compile(content, what, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: brackets without end
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        why = error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__
        raise InvalidRequest(f"a job runs Python; {what}{line}: {why}; correct it first") from error


def _files(root: Path) -> dict[str, bytes]:
    if not os.path.isdir(root):
        raise NotFound(f"what goes along with a job is a folder; there is none at {root}; give its path")
    found: dict[str, bytes] = {}
    left = bundles.MAX_UNPACKED_BYTES
    for path in _kept(root):
        if len(found) >= bundles.MAX_FILES:
            raise _too_large(root)
        found[path.relative_to(root).as_posix()] = content = _read(path, left, root=root)
        left -= len(content)
    return found


def _read(path: Path, most: int, *, root: Path | None = None) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InvalidRequest(f"what goes along with a job is files; {path} is none; {_LEAVE_OUT}")
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:  # a link that leads nowhere, a file of somebody else
        raise InvalidRequest(
            f"what goes along with a job can be read; {path} cannot: {error.strerror}; {_LEAVE_OUT}"
        ) from error
    if len(content) > most:
        raise _too_large(root or path)
    return content


def _too_large(what: Path) -> TooLarge:
    return TooLarge(
        f"a bundle holds {bundles.MAX_FILES:,} files and {bundles.MAX_UNPACKED_BYTES:,} bytes; {what} has more; name "
        f"what is no code in the folder's {IGNORE}, and put data into a dataset"
    )


def _kept(root: Path) -> Iterator[Path]:
    # What is hidden, what Python makes by itself, and what the folder's own list names, stays behind.
    ignored = [*_NO_CODE, *_listed(root / IGNORE)]

    def stays(path: Path) -> bool:
        place = path.relative_to(root).as_posix()
        return path.name.startswith(".") or any(
            fnmatch.fnmatchcase(path.name, each) or fnmatch.fnmatchcase(place, each) for each in ignored
        )

    for folder, names, files in os.walk(root, onerror=_cannot_be_listed):
        names[:] = sorted(name for name in names if not stays(Path(folder, name)))
        for linked in (path for path in (Path(folder, name) for name in names) if path.is_symlink()):
            raise InvalidRequest(
                f"folders that go along with a job lie in its folder; {linked} is a link to one elsewhere; name it in "
                f"{IGNORE}, or put a copy in its place"
            )
        yield from (path for path in (Path(folder, name) for name in sorted(files)) if not stays(path))


def _cannot_be_listed(error: OSError) -> NoReturn:
    raise InvalidRequest(
        f"what goes along with a job can be read; {error.filename} cannot: {error.strerror}; name it in {IGNORE}"
    ) from error


def _listed(path: Path) -> list[str]:
    if not path.is_file():
        return []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} lists what stays behind, in UTF-8; it cannot be read: {error}") from error
    lines = (line.strip().strip("/") for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]
