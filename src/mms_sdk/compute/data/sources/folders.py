"""Folders: what lies where, listed lazily and without following anything in circles."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mms_sdk.compute.data.sources.samples import Collection, Entry, Sample, refuse_large
from mms_sdk.errors import InvalidRequest, NothingToIngest
from mms_sdk.schema.cleaning import Reject
from mms_sdk.schema.sources import AudioFolder, ImageFolder, VideoFolder

Folder = ImageFolder | AudioFolder | VideoFolder
_TOLD = {
    ImageFolder: ("an image", "pictures"),
    AudioFolder: ("an audio", "recordings"),
    VideoFolder: ("a video", "clips"),
}

# Files that operating systems put into folders; nobody means them.
_CLUTTER = re.compile(r"\.ds_store|thumbs\.db|desktop\.ini|__macosx|\._.*|\.ipynb_checkpoints", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class FileEntry(Entry):
    """One file of a source; its name there is its path within.

    Attributes:
        path: Where it is.
    """

    path: Path

    def read(self) -> Sample:
        """Its bytes."""
        refuse_large(self.path.stat().st_size)
        return Sample(data=self.path.read_bytes(), label=self.label)


def open_folder(folder: Folder) -> Collection:
    """Looks through a folder with one sub-folder for each class. See `list_folder` for errors."""
    entries, rejects = list_folder(folder)
    return Collection(taken=folder, entries=entries, rejects=rejects)


def list_folder(folder: Folder, *, labelled: bool = True) -> tuple[list[FileEntry], list[Reject]]:
    """All files of a folder, in an order that does not depend on the file system.

    Args:
        folder: The source.
        labelled: Sub-folders are classes, and files beside them are left out. Otherwise every file counts.

    Returns:
        The files, and what was left out with the reason.

    Raises:
        InvalidRequest: There is no such folder.
        NothingToIngest: No file is in it.
    """
    kind, what = _TOLD[type(folder)]
    root = Path(folder.path).expanduser()
    if not root.is_dir():
        seen = "a file" if root.exists() else "not there"
        raise InvalidRequest(f"{kind} folder is a folder; {root} is {seen}; check the path")
    rejects: list[Reject] = []
    entries: list[FileEntry] = []
    for path in walk(root, rejects):
        inside = path.relative_to(root)
        source = printable(inside.as_posix())
        label = printable(inside.parts[0]) if len(inside.parts) > 1 else ""
        if labelled and not label:
            rejects.append(Reject(source=source, reason="it lies beside the class folders, not in one"))
        else:
            entries.append(FileEntry(path=path, source=source, label=label if labelled else ""))
    if not entries:
        hint = f"; {len(rejects)} left out, e.g. {rejects[0].source}: {rejects[0].reason}" if rejects else ""
        shape = f"one sub-folder of {what} for each class" if labelled else what
        raise NothingToIngest(f"{kind} folder holds {shape}; no such file is in {root}{hint}")
    return sorted(entries, key=lambda entry: entry.source), rejects


def printable(name: str) -> str:
    r"""A file name as text that can be stored and printed, another for each name.

    Bytes that are not UTF-8 become `\xNN`, and a backslash two, so that the two cannot be mistaken for one another.
    """
    return name.replace("\\", r"\\").encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_clutter(name: str) -> bool:
    """Whether an operating system put a file of that name there, and nobody means it."""
    return any(_CLUTTER.fullmatch(part) for part in name.split("/"))


def walk(
    root: Path, rejects: list[Reject], *, wanted: Callable[[Path, bool], bool] = lambda *_: True
) -> Iterator[Path]:
    """All files below a folder, each once: links are followed, but not in circles.

    Args:
        root: The folder.
        rejects: Where what cannot be taken is put, with the reason.
        wanted: Whether a file is asked for, or, if it is a folder, anything in it; what is not is passed over.
    """
    seen = {_identity(root)}
    inside = root.resolve()
    pending = [root]
    while pending:
        folder = pending.pop()
        try:
            found = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            rejects.append(_reject(root, folder, f"the folder cannot be listed: {error.strerror}"))
            continue
        for entry in found:
            path = Path(entry.path)
            if is_clutter(entry.name):
                continue
            try:
                if not wanted(path, entry.is_dir()):
                    continue
                if entry.is_dir():
                    if entry.is_symlink() and _overlap(path.resolve(), inside):
                        rejects.append(
                            _reject(root, path, "the link leads to a part of this folder, or to one around it")
                        )
                    elif (identity := _identity(path)) in seen:
                        rejects.append(_reject(root, path, "the folder was read already, under another name"))
                    else:
                        seen.add(identity)
                        pending.append(path)
                elif entry.is_file():
                    yield path
                else:
                    rejects.append(_reject(root, path, "it is neither a file nor a folder, or a broken link"))
            except OSError as error:
                rejects.append(_reject(root, path, f"it cannot be read: {error.strerror}"))


def _overlap(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def _identity(path: Path) -> tuple[int, int]:
    told = path.stat()
    return told.st_dev, told.st_ino


def _reject(root: Path, path: Path, reason: str) -> Reject:
    return Reject(source=printable(path.relative_to(root).as_posix()), reason=reason)
