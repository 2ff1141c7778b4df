"""Files by a pattern: pictures, recordings, clips or texts, one a row."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from mms_sdk.compute.data.sources.folders import FileEntry, printable, walk
from mms_sdk.compute.data.sources.samples import Collection, hint
from mms_sdk.compute.data.sources.splits import SPLIT_NAMES
from mms_sdk.errors import InvalidRequest, NothingToIngest
from mms_sdk.schema.cleaning import Reject
from mms_sdk.schema.sources import Files, Kind

SUFFIXES: dict[str, Kind] = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp"), "image"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm"), "image"),
    **dict.fromkeys((".wav", ".flac", ".ogg", ".mp3"), "audio"),
    **dict.fromkeys((".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".ogv"), "video"),
    **dict.fromkeys((".txt", ".text"), "text"),
}
"""What the names of samples end with."""


def open_files(source: Files) -> Collection:
    """Looks through the files that a pattern names.

    Raises:
        NothingToIngest: There is none.
        InvalidRequest: It is neither file nor folder; or files of several kinds.
    """
    rejects: list[Reject] = []
    base, paths = find_files(source.path, rejects)
    entries = [FileEntry(path=path, source=printable(path.relative_to(base).as_posix())) for path in paths]
    kind, entries = (source.kind, entries) if source.kind else _of_one_kind(entries, source, rejects)
    labelled = False
    if source.label == "folder":
        labelled = True
        entries = [replace(entry, label=printable(entry.path.absolute().parent.name)) for entry in entries]
    elif source.label is not None:
        labelled = "(?P<label>" in source.label
        entries = _by_name(entries, source.label, rejects)
    if not entries:
        raise NothingToIngest(f"a source has at least one file; {source.path} names none{hint(rejects)}")
    return Collection(
        taken=source.taken_as(kind),
        entries=sorted(entries, key=lambda entry: entry.source),
        rejects=rejects,
        labelled=labelled,
    )


def find_files(path: str, rejects: list[Reject]) -> tuple[Path, list[Path]]:
    """The files that a path or a pattern names, or that lie in a folder, and where their names begin.

    In a pattern `*`, `?` and `[…]` stand for parts of a name, and `**` for any number of folders; as in a shell, none
    of them for a dot that a name begins with.

    Args:
        path: Of a file or a folder, or a pattern.
        rejects: Where what cannot be taken is put, with the reason.

    Raises:
        InvalidRequest: It is neither file nor folder, such as a pipe.
    """
    named = Path(path).expanduser()
    if named.is_dir():
        return named, list(walk(named, rejects))
    if named.exists() and not named.is_file():
        raise InvalidRequest(f"a source is a file, a folder or a pattern; {path} is neither file nor folder")
    if named.is_file():
        return named.parent, [named]
    fixed = next((at for at, part in enumerate(named.parts) if re.search(r"[*?\[]", part)), len(named.parts))
    base, pattern = Path(*named.parts[:fixed]), named.parts[fixed:]
    if not pattern or not base.is_dir():
        return base, []

    def wanted(found: Path, is_folder: bool) -> bool:
        reached = _reached(found.relative_to(base).parts, pattern)
        return any(at < len(pattern) for at in reached) if is_folder else len(pattern) in reached

    return base, list(walk(base, rejects, wanted=wanted))


def _reached(parts: Sequence[str], pattern: Sequence[str]) -> set[int]:
    # How many parts of the pattern a path can have used up: none at all means that nothing below it fits either.
    reached = _past_any({0}, pattern)
    for part in parts:
        fits = {at for at in reached if at < len(pattern) and _fits(part, pattern[at])}
        reached = _past_any({at if pattern[at] == "**" else at + 1 for at in fits}, pattern)
    return reached


def _past_any(reached: set[int], pattern: Sequence[str]) -> set[int]:
    # `**` stands for no folder too.
    while more := {at + 1 for at in reached if at < len(pattern) and pattern[at] == "**"} - reached:
        reached = reached | more
    return reached


def _fits(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) and (name[0] != "." or pattern[0] == ".")


def _of_one_kind(entries: Sequence[FileEntry], source: Files, rejects: list[Reject]) -> tuple[Kind, list[FileEntry]]:
    kinds = {entry.source: SUFFIXES.get(entry.path.suffix.lower()) for entry in entries}
    counts = Counter(kind for kind in kinds.values() if kind)
    if len(counts) > 1:
        raise InvalidRequest(
            f"the files of a source are of one kind; those that {source.path} names are {dict(counts)}; narrow the "
            f"pattern, e.g. to *.jpg"
        )
    for name, kind in kinds.items():
        if kind is None:
            rejects.append(Reject(source=name, reason="its name does not end as one that MMS knows; say kind="))
    return next(iter(counts), "image"), [entry for entry in entries if kinds[entry.source]]


def _by_name(entries: Sequence[FileEntry], pattern: str, rejects: list[Reject]) -> list[FileEntry]:
    found = pc.extract_regex(pa.array([entry.source for entry in entries], pa.string()), pattern).to_pylist()
    placed = []
    for entry, groups in zip(entries, found, strict=True):
        if groups is None or "" in groups.values():
            rejects.append(Reject(source=entry.source, reason=f"its path does not fit label={pattern!r}"))
        elif groups.get("split", "train") not in SPLIT_NAMES:
            reason = f"its split {groups['split']!r} is none of {', '.join(SPLIT_NAMES)}"
            rejects.append(Reject(source=entry.source, reason=reason))
        else:
            split = SPLIT_NAMES[groups["split"]] if "split" in groups else ""
            placed.append(replace(entry, label=groups.get("label", ""), split=split))
    return placed
