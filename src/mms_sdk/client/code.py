"""What a job runs, as it is taken from where it lies."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mms_sdk.errors import InvalidRequest, NotFound, TooLarge
from mms_sdk.storage import bundles

IGNORE = ".mmsignore"
_NO_CODE = ("__pycache__", "*.pyc", "node_modules", "*.egg-info")


@dataclass(frozen=True, kw_only=True)
class Code:
    """What is run, and the files it needs.

    Attributes:
        kind: `script`, `cell` or `function`.
        name: For people.
        entrypoint: The script within the bundle.
        bundle: A zip archive.
    """

    kind: str
    name: str
    entrypoint: str
    bundle: bytes


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
        content = {"cell.py": script.encode()}
        _check(content["cell.py"], "the cell")
        along = _files(Path(folder).expanduser()) if folder is not None else {}
        return Code(kind="cell", name="cell", entrypoint="cell.py", bundle=bundles.pack(along | content))
    path = Path(script).expanduser().absolute()
    if not path.is_file():
        raise NotFound(
            f"a job runs a script, or the text of a cell with more than one line; there is no file {path}; give its "
            f"path"
        )
    content_of_script = path.read_bytes()
    _check(content_of_script, str(path))
    name = path.stem[:63]
    if folder is None:
        packed = bundles.pack({path.name: content_of_script})
        return Code(kind="script", name=name, entrypoint=path.name, bundle=packed)
    root = Path(folder).expanduser().absolute()
    if not path.is_relative_to(root):
        raise InvalidRequest(f"a script lies in the folder that goes along with it; {path} is not below {root}")
    entrypoint = path.relative_to(root).as_posix()
    packed = bundles.pack(_files(root) | {entrypoint: content_of_script})
    return Code(kind="script", name=name, entrypoint=entrypoint, bundle=packed)


def _check(content: bytes, what: str) -> None:
    try:
        compile(content, what, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise InvalidRequest(f"a job runs Python; {what}{line}: {error}; correct it first") from error


def _files(root: Path) -> dict[str, bytes]:
    if not root.is_dir():
        raise NotFound(f"what goes along with a job is a folder; there is none at {root}; give its path")
    found: dict[str, bytes] = {}
    total = 0
    for path in _kept(root):
        total += path.stat().st_size
        if total > bundles.MAX_UNPACKED_BYTES or len(found) >= bundles.MAX_FILES:
            raise TooLarge(
                f"a bundle holds {bundles.MAX_FILES:,} files and {bundles.MAX_UNPACKED_BYTES:,} bytes; {root} has "
                f"more; name what is no code in {root / IGNORE}, and put data into a dataset"
            )
        found[path.relative_to(root).as_posix()] = path.read_bytes()
    return found


def _kept(root: Path) -> Iterator[Path]:
    # What is hidden, what Python makes by itself, and what the folder's own list names, stays behind.
    ignored = [*_NO_CODE, *_listed(root / IGNORE)]

    def stays(path: Path) -> bool:
        place = path.relative_to(root).as_posix()
        return path.name.startswith(".") or any(
            fnmatch.fnmatch(path.name, each) or fnmatch.fnmatch(place, each) for each in ignored
        )

    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if not stays(Path(folder, name)))
        yield from (path for path in (Path(folder, name) for name in sorted(files)) if not stays(path))


def _listed(path: Path) -> list[str]:
    if not path.is_file():
        return []
    lines = (line.strip().rstrip("/") for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]
