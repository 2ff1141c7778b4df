"""Which source suits what lies in a folder or begins a file, for whoever named another one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import orjson

from mms_sdk.compute.data.sources.files import SUFFIXES
from mms_sdk.compute.data.sources.folders import walk
from mms_sdk.schema.sources import AudioFolder, ImageFolder, VideoFolder

_LOOKED_AT = 1000  # files of a folder: enough to tell what it is of
_HUGGING_FACE = ("dataset_dict.json", "dataset_info.json", "state.json")
_TABLES = {
    **dict.fromkeys((".csv", ".tsv", ".tab"), "CSV"),
    **dict.fromkeys((".jsonl", ".ndjson"), "JSONL"),
    **dict.fromkeys((".parquet", ".pq"), "Parquet"),
    **dict.fromkeys((".arrow", ".feather"), "Arrow"),
    ".tar": "WebDataset",
}
_FOLDERS = {"image": "ImageFolder", "audio": "AudioFolder", "video": "VideoFolder"}
_MAGIC = (
    (b"PAR1", "Parquet", "read it with mms.Parquet"),
    (b"ARROW1", "Arrow", "read it with mms.Arrow"),
    (b"SQLite format 3\0", "an SQLite database", "read it with mms.SQL"),
    (b"\x89HDF", "HDF5", "read its arrays yourself and ingest them by column"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "unpack it, or save it as CSV"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it"),
    (b"BZh", "compressed with bzip2", "unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it"),
    (b"\xfd7zXZ\0", "compressed with xz", "unpack it"),
)
_COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")  # a CSV file whose name ends so is unpacked as it is read
_HEAD_BYTES = 65536


def folder_meant(named: ImageFolder | AudioFolder | VideoFolder) -> str:
    """The end of a sentence that says which source suits a folder; nothing if the one that was named does."""
    root = Path(named.path).expanduser()
    path = str(named.path).rstrip("/")
    if any((root / name).is_file() for name in _HUGGING_FACE):
        return f"; it looks like what Hugging Face's datasets saves: mms.HuggingFace({path!r})"
    suffixes = Counter(file.suffix.lower() for file in islice(walk(root, []), _LOOKED_AT))
    known = {suffix: count for suffix, count in suffixes.items() if suffix in SUFFIXES or suffix in _TABLES}
    if not known:
        return ""
    suffix = max(known, key=lambda each: known[each])
    kind = SUFFIXES.get(suffix)
    if kind is None:
        return f"; it holds files *{suffix}: mms.{_TABLES[suffix]}({path!r})"
    if kind == "text":
        return f"; it holds texts: mms.Files({f'{path}/**/*{suffix}'!r}, label='folder')"
    if _FOLDERS[kind] != type(named).__name__:
        pattern = f'mms datasets ingest NAME "{path}/**/*{suffix}" --label folder'
        return f"; it holds files *{suffix}: mms.{_FOLDERS[kind]}({path!r}), or {pattern}"
    if not any(file.suffix.lower() == suffix for file in _below(root)):
        return (
            f"; where the files lie in one folder, their names may say the class: mms datasets ingest NAME "
            f"\"{path}/*{suffix}\" --label '(?P<label>[^_]+)_', or mms.Files of the same"
        )
    return ""


def _below(root: Path) -> Iterator[Path]:
    return (file for file in islice(walk(root, []), _LOOKED_AT) if file.parent != root)


def file_meant(path: Path, *, taken: str) -> str:
    """What a file is by its first bytes, and what reads it; nothing if it may be what it is taken for.

    Args:
        path: The file.
        taken: The type of the source: `csv`, `jsonl`, `parquet` or `arrow`.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    for magic, what, remedy in _MAGIC:
        if head.startswith(magic) and what.lower() != taken:
            unpacked = taken == "csv" and "compressed" in what and path.suffix.lower() in _COMPRESSED
            return "" if unpacked else f"it is {what} by its first bytes; {remedy}"
    if taken == "csv" and head.startswith(b"{") and _is_object(head.partition(b"\n")[0]):
        return "its lines are JSON; read it with mms.JSONL"
    return ""


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False
