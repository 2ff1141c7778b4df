"""The list of files that makes a folder complete: names, sizes, digests; written last, checked on opening.

Parts, checkpoints and model artefacts are all such folders.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import orjson

from mms_sdk.errors import Damaged
from mms_sdk.storage import files

NAME = "MANIFEST.json"
VERSION = 1


def seal(folder: Path) -> str:
    """Makes a folder complete: syncs what is in it, then writes its manifest.

    Returns:
        SHA-256 of the manifest, by which others refer to exactly these bytes.
    """
    with files.writing(folder):
        files.fsync_tree(folder)
        entries = [
            {
                "path": path.relative_to(folder).as_posix(),
                "bytes": path.stat().st_size,
                "sha256": files.sha256_file(path),
            }
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]
    body = orjson.dumps({"manifest_version": VERSION, "files": entries}, option=orjson.OPT_INDENT_2)
    files.write_durable(folder / NAME, body)
    return hashlib.sha256(body).hexdigest()


def is_sealed(folder: Path) -> bool:
    """Whether the folder was completed."""
    return (folder / NAME).is_file()


def check(folder: Path, *, what: str, expected: str | None = None, content: bool = False) -> str:
    """Compares a folder with its manifest.

    Args:
        folder: A sealed folder.
        what: The noun for messages, e.g. `part 01J… of dataset 'flowers'`.
        expected: Digest the manifest must have; None where nobody recorded it.
        content: Read every byte. Otherwise names and sizes only, which costs one `stat` a file.

    Returns:
        SHA-256 of the manifest.

    Raises:
        Damaged: Something is missing, extra, of another size, or (with `content`) of other bytes.
    """
    entries, digest = _read(folder, what=what, expected=expected)
    present = _present(folder)
    listed = {entry["path"] for entry in entries}
    for name in sorted(listed - present):
        raise Damaged(f"{what} is damaged: {name} is missing from {folder}; restore the folder from a backup")
    for name in sorted(present - listed):
        raise Damaged(f"{what} is damaged: {name} in {folder} is not in its manifest; remove that file")
    for entry in entries:
        path = folder / entry["path"]
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise Damaged(
                f"{what} is damaged: {path} has {size} bytes, its manifest says {entry['bytes']}; restore it from a "
                f"backup"
            )
        if content and files.sha256_file(path) != entry["sha256"]:
            raise Damaged(
                f"{what} is damaged: the bytes of {path} are not those that were written (SHA-256 differs); restore "
                f"it from a backup"
            )
    return digest


def check_file(folder: Path, name: str, *, what: str, expected: str) -> bytes:
    """Reads one file of a sealed folder and checks its bytes.

    Raises:
        Damaged: The file is missing or has other bytes.
    """
    entries, _ = _read(folder, what=what, expected=expected)
    entry = next((entry for entry in entries if entry["path"] == name), None)
    path = folder / name
    if entry is None or not path.is_file():
        raise Damaged(f"{what} is damaged: {name} is missing from {folder}; restore the folder from a backup")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise Damaged(
            f"{what} is damaged: the bytes of {path} are not those that were written; restore it from a backup"
        )
    return data


def _read(folder: Path, *, what: str, expected: str | None) -> tuple[list[dict[str, Any]], str]:
    try:
        body = (folder / NAME).read_bytes()
    except FileNotFoundError as error:
        raise Damaged(f"{what} is incomplete: {folder} has no {NAME}; restore the folder from a backup") from error
    digest = hashlib.sha256(body).hexdigest()
    if expected is not None and digest != expected:
        raise Damaged(
            f"{what} is damaged: {folder / NAME} has digest {digest[:12]}…, recorded was {expected[:12]}…; restore "
            f"the folder from a backup"
        )
    try:
        told = orjson.loads(body)
        version = told["manifest_version"]
        entries = [{key: entry[key] for key in ("path", "bytes", "sha256")} for entry in told["files"]]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise Damaged(f"{what} is damaged: {folder / NAME} is not a manifest; restore it from a backup") from error
    if version != VERSION:
        raise Damaged(
            f"{what} cannot be checked: {folder / NAME} has version {version!r}, this MMS reads {VERSION}; upgrade "
            f"mms-sdk, or restore it from a backup"
        )
    return entries, digest


def _present(folder: Path) -> set[str]:
    found: set[str] = set()
    for parent, _, names in os.walk(folder):
        relative = Path(parent).relative_to(folder)
        found.update((relative / name).as_posix() for name in names)
    found.discard(NAME)
    return found
