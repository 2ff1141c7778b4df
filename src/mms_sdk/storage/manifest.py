"""The list of files that makes a folder complete: names, sizes, digests; written last, checked on opening.

Parts, checkpoints and model artefacts are all such folders.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from mms_sdk.errors import Damaged
from mms_sdk.storage import files
from mms_sdk.storage.remedies import RESTORE
from mms_sdk.storage.stores.base import Store
from mms_sdk.storage.stores.remote import of_sound_copy

NAME = "MANIFEST.json"
VERSION = 1
_SHA256 = re.compile("[0-9a-f]{64}")


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


def check(tree: Store, *, what: str, expected: str | None = None, content: bool = False) -> str:
    """Compares a folder with its manifest.

    Args:
        tree: A sealed folder.
        what: The noun for messages, e.g. `part 01J… of dataset 'flowers'`.
        expected: Digest the manifest must have; None where nobody recorded it.
        content: Read every byte. Otherwise names and sizes only, which costs one `stat` a file.

    Returns:
        SHA-256 of the manifest.

    Raises:
        Damaged: Something is missing, extra, of another size, or (with `content`) of other bytes.
    """
    if content:
        entries, digest = _read(tree.read, tree.url, what=what, expected=expected)
    else:
        entries, digest = _copied_entries(tree, what=what, expected=expected)
    present = {each.key: each.bytes for each in tree.walk("") if not each.key.endswith("/")}
    listed = {entry["path"] for entry in entries}
    for name in sorted(listed - present.keys()):
        raise Damaged(f"{what} is damaged: {name} is missing from {tree.url}; {RESTORE}")
    for name in sorted(present.keys() - listed - {NAME}):
        raise Damaged(f"{what} is damaged: {name} in {tree.url} is not in its manifest; remove that file")
    for entry in entries:
        name, size = entry["path"], present[entry["path"]]
        if size != entry["bytes"]:
            raise Damaged(
                f"{what} is damaged: {tree.url}/{name} has {size} bytes, its manifest says {entry['bytes']}; {RESTORE}"
            )
        if content and tree.sha256(name) != entry["sha256"]:
            raise Damaged(
                f"{what} is damaged: the bytes of {tree.url}/{name} are not those that were written (SHA-256 differs); "
                f"{RESTORE}"
            )
    return digest


def entries_of(tree: Store, *, what: str, expected: str | None = None) -> tuple[list[dict[str, Any]], str]:
    """What a sealed folder says it holds.

    Returns:
        For each file its `path`, `bytes` and `sha256`; and SHA-256 of the manifest.

    Raises:
        Damaged: There is no manifest, or it is not what was written.
    """
    return _read(tree.read, tree.url, what=what, expected=expected)


def sizes(tree: Store, *, what: str, expected: str) -> dict[str, int]:
    """Bytes of each file of a sealed folder, as its manifest says, and of the manifest.

    Raises:
        Damaged: There is no manifest, or it is not what was written.
    """
    entries, _ = _copied_entries(tree, what=what, expected=expected)
    return {**{entry["path"]: entry["bytes"] for entry in entries}, NAME: len(_copied(tree)(NAME))}


def check_file(tree: Store, name: str, *, what: str, expected: str) -> bytes:
    """Reads one file of a sealed folder and checks its bytes.

    Raises:
        Damaged: The file is missing or has other bytes.
    """
    entries, _ = _copied_entries(tree, what=what, expected=expected)
    entry = next((entry for entry in entries if entry["path"] == name), None)

    def read() -> bytes:
        data = _content(_copied(tree), name) if entry is not None else None
        if entry is None or data is None:
            raise Damaged(f"{what} is damaged: {name} is missing from {tree.url}; {RESTORE}")
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise Damaged(
                f"{what} is damaged: the bytes of {tree.url}/{name} are not those that were written; {RESTORE}"
            )
        return data

    return of_sound_copy(tree, name, read)


def _copied_entries(tree: Store, *, what: str, expected: str | None) -> tuple[list[dict[str, Any]], str]:
    return of_sound_copy(tree, NAME, lambda: _read(_copied(tree), tree.url, what=what, expected=expected))


def _read(
    read: Callable[[str], bytes], url: str, *, what: str, expected: str | None
) -> tuple[list[dict[str, Any]], str]:
    body = _content(read, NAME)
    if body is None:
        raise Damaged(f"{what} is incomplete: {url} has no {NAME}; {RESTORE}")
    digest = hashlib.sha256(body).hexdigest()
    if expected is not None and digest != expected:
        raise Damaged(
            f"{what} is damaged: {url}/{NAME} has digest {digest[:12]}…, recorded was {expected[:12]}…; {RESTORE}"
        )
    try:
        told = orjson.loads(body)
        version = told["manifest_version"]
        entries = [{key: entry[key] for key in ("path", "bytes", "sha256")} for entry in told["files"]]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise Damaged(f"{what} is damaged: {url}/{NAME} is not a manifest; {RESTORE}") from error
    if version != VERSION:
        raise Damaged(
            f"{what} cannot be checked: {url}/{NAME} has version {version!r}, this MMS reads {VERSION}; upgrade "
            f"mms-sdk, or {RESTORE}"
        )
    if (wrong := _unfit(entries)) is not None:
        raise Damaged(f"{what} is damaged: {url}/{NAME} lists {wrong}; {RESTORE}")
    return entries, digest


def _unfit(entries: list[dict[str, Any]]) -> str | None:
    # A name may lead nowhere but below the folder, and to one file.
    seen: set[str] = set()
    for entry in entries:
        path, size, digest = entry["path"], entry["bytes"], entry["sha256"]
        if not isinstance(path, str) or not files.is_below(path) or path in seen or path == NAME:
            return f"{str(path)[:80]!r}, which is no name of a file in it, or one twice"
        if type(size) is not int or size < 0 or not isinstance(digest, str) or _SHA256.fullmatch(digest) is None:
            return f"{path!r} with {str(size)[:40]} bytes and the digest {str(digest)[:80]!r}"
        seen.add(path)
    return None


def _content(read: Callable[[str], bytes], name: str) -> bytes | None:
    try:
        return read(name)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


def _copied(tree: Store) -> Callable[[str], bytes]:
    # From this machine's copy where the store is far: small files that are asked for again and again.
    def read(name: str) -> bytes:
        with tree.open(name) as file:
            return file.read()

    return read
