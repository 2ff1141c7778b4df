"""Tar files, read by their headers: where their files lie, so that each is read in place. Nothing is unpacked.

A header is a block of 512 bytes, and a file's bytes follow it, filled up to whole blocks (POSIX.1-1988, ustar). A long
name stands before its header, in a member of type `L` (GNU) or `x` (POSIX.1-2001, pax). Python's `tarfile` reads those
into memory whatever they say their size is; here they are bounded. Blocks of zeros are the end mark; where another tar
file was put behind it by `cat`, it is read too.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from mms_sdk.errors import InvalidInput

_BLOCK = 512
_MAX_NAME_BYTES = 2**20  # of a member that holds a long name
_MAX_HOLES = 2**16  # blocks that list them
_PADDING = 2**20  # bytes of zeros that are looked at in one go for more behind them
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_PLAIN = (b"0", b"\0", b"7")
_LINK, _DEVICE, _HOLES = "a link", "a device", "a file with holes"
_OTHERS = {b"1": _LINK, b"2": _LINK, b"3": _DEVICE, b"4": _DEVICE, b"6": "a pipe", b"S": _HOLES}


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file in a tar file.

    Attributes:
        name: As it is written there; bytes that are not UTF-8 as surrogates.
        offset: Where its bytes begin.
        size: How many there are.
        other: What it is, if it is no plain file.
    """

    name: str
    offset: int
    size: int
    other: str = ""


@dataclass(frozen=True, kw_only=True)
class _Ahead:
    """What members before a header say of the file that it is about."""

    name: str = ""
    told: Mapping[str, str] = field(default_factory=dict)


def members(file: BinaryIO) -> Iterator[Member]:
    """The files of an open tar file, in order; folders are passed over.

    Raises:
        InvalidInput: It is none, is compressed, damaged or cut short; what comes after cannot be found.
    """
    handle, end = file.fileno(), os.fstat(file.fileno()).st_size
    _refuse_other_formats(os.pread(handle, _BLOCK, 0))
    at, ahead = 0, _Ahead()
    while (found := _header(handle, at)) is not None:
        at, header = found
        kind, begin = header[156:157], at + _BLOCK
        size = _number(header[124:136])
        if kind not in (b"x", b"g", b"L", b"K"):
            if told := ahead.told.get("size"):
                size = int(told) if re.fullmatch(r"[0-9]{1,20}", told) else None
            begin = _behind_holes(handle, header, begin) if kind == b"S" else begin
        if size is None or begin + size > end:
            raise InvalidInput(f"it is cut short, or damaged: the file at its byte {at:,} ends behind its end")
        if kind == b"L":
            ahead = _Ahead(name=_text(_bounded(handle, begin, size)), told=ahead.told)
        elif kind == b"x":
            ahead = _Ahead(name=ahead.name, told=_pax(_bounded(handle, begin, size)))
        elif kind not in (b"g", b"K"):
            name = ahead.told.get("path") or ahead.name or _name(header)
            if kind != b"5" and not (kind == b"\0" and name.endswith("/")):
                yield Member(name=name, offset=begin, size=size, other=_other(kind, ahead.told))
            ahead = _Ahead()
        at = begin + -(-size // _BLOCK) * _BLOCK


def _header(handle: int, at: int) -> tuple[int, bytes] | None:
    header = os.pread(handle, _BLOCK, at)
    if len(header) < _BLOCK:
        raise InvalidInput("it is cut short: it has no end mark")
    if not any(header):
        behind = _behind_zeros(handle, at)
        return None if behind is None else _header(handle, behind)
    if _number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise InvalidInput(f"it is damaged: what is at its byte {at:,} is no header of a file")
    return at, header


def _behind_zeros(handle: int, at: int) -> int | None:
    with contextlib.suppress(OSError):  # a file without holes, or a place where none are told
        at = max(at, os.lseek(handle, at, os.SEEK_DATA) // _BLOCK * _BLOCK)
    while zeros := os.pread(handle, _PADDING, at):
        if found := zeros.lstrip(b"\0"):
            return at + (len(zeros) - len(found)) // _BLOCK * _BLOCK
        at += len(zeros)
    return None


def _refuse_other_formats(begin: bytes) -> None:
    for magic, name in _COMPRESSED.items():
        if begin.startswith(magic):
            raise InvalidInput(f"it is compressed by {name}, and samples are read in place; decompress it first")
    if len(begin) < _BLOCK:
        raise InvalidInput("it is empty" if not begin else "it is no tar file")


def _number(text: bytes) -> int | None:
    if text[:1] == b"\x80":  # GNU: what does not fit as octal digits, as bytes
        return int.from_bytes(text[1:], "big")
    found = re.match(rb" *([0-7]*)(?=[ \0]|$)", text)
    return int(found[1] or b"0", 8) if found else None


def _name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _other(kind: bytes, told: Mapping[str, str]) -> str:
    if any(name.startswith("GNU.sparse.") for name in told):
        return _HOLES
    return "" if kind in _PLAIN else _OTHERS.get(kind, f"of the type {kind!r}, which MMS does not know")


def _bounded(handle: int, at: int, size: int) -> bytes:
    if size > _MAX_NAME_BYTES:
        raise InvalidInput(f"a name in a tar file has at most {_MAX_NAME_BYTES:,} bytes; one says {size:,}")
    return os.pread(handle, size, at)


def _pax(data: bytes) -> dict[str, str]:
    # Records of the form `length key=value\n`, where the length counts all of it.
    told, at = {}, 0
    while at < len(data):
        head = re.match(rb"([0-9]{1,7}) ([^=]+)=", data[at : at + 300])
        length = int(head[1]) if head else 0
        record = data[at : at + length]
        if head is None or length < head.end() + 1 or len(record) < length or record[-1:] != b"\n":
            raise InvalidInput("it is damaged: a header of long values is not what it should be")
        told[_text(head[2])] = record[head.end() : -1].decode("utf-8", "surrogateescape")
        at += length
    return told


def _behind_holes(handle: int, header: bytes, at: int) -> int:
    more = header[482]
    for _ in range(_MAX_HOLES):
        if not more:
            return at
        block = os.pread(handle, _BLOCK, at)
        more = block[504] if len(block) == _BLOCK else 0
        at += _BLOCK
    raise InvalidInput(f"a file with holes lists them in at most {_MAX_HOLES:,} blocks; one has more")
