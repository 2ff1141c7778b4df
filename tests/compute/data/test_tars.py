"""Tar files are read as Python's own `tarfile` reads them, and hostile ones are refused in little memory."""

from __future__ import annotations

import contextlib
import io
import os
import random
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_sdk.compute.data.sources.tars import Member, members
from mms_sdk.errors import InvalidInput

NAMES = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1, max_size=150),
    min_size=1,
    max_size=3,
).map("/".join)


def tar(files: dict[str, bytes], *, format: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for name, data in files.items():
            told = tarfile.TarInfo(name)
            told.size = len(data)
            archive.addfile(told, io.BytesIO(data))
    return out.getvalue()


def read(data: bytes, at: Path) -> list[tuple[Member, bytes]]:
    at.write_bytes(data)
    with at.open("rb") as file:
        return [(member, os.pread(file.fileno(), member.size, member.offset)) for member in members(file)]


def refused(data: bytes, at: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        read(data, at)
    return caught.value.message


@pytest.fixture
def at(tmp_path: Path) -> Path:
    return tmp_path / "a.tar"


@given(files=st.dictionaries(NAMES, st.binary(max_size=1500), max_size=5))
@pytest.mark.parametrize(
    "format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["ustar", "gnu", "pax"]
)
def test_files_are_those_that_tarfile_finds(tmp_path_factory, files, format):
    try:
        data = tar(files, format=format)
    except ValueError:  # a name too long for ustar
        return
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        expected = [(told.name, archive.extractfile(told).read()) for told in archive if told.isreg()]

    found = read(data, tmp_path_factory.getbasetemp() / "any.tar")

    assert [(member.name.removesuffix("/"), content) for member, content in found] == expected


def test_a_size_of_many_bytes_is_read(at):
    # GNU writes 8 GiB and more as bytes, not octal digits.
    told = tarfile.TarInfo("a")
    told.size = 9 * 2**30
    header = told.tobuf(tarfile.GNU_FORMAT)
    with at.open("wb") as file:
        file.write(header)
        file.truncate(9 * 2**30 + 3 * 512)  # takes no room
    with at.open("rb") as file:
        assert [(member.name, member.size) for member in members(file)] == [("a", 9 * 2**30)]


def test_folders_are_passed_over_and_what_is_no_plain_file_is_told(at):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, kind in [
            ("folder", tarfile.DIRTYPE),
            ("hard", tarfile.LNKTYPE),
            ("soft", tarfile.SYMTYPE),
            ("disk", tarfile.BLKTYPE),
            ("tty", tarfile.CHRTYPE),
            ("pipe", tarfile.FIFOTYPE),
            ("odd", b"Z"),
            ("contiguous", tarfile.CONTTYPE),
        ]:
            told = tarfile.TarInfo(name)
            told.type, told.linkname = kind, "/etc/passwd"
            archive.addfile(told)
    assert {member.name: member.other for member, _ in read(out.getvalue(), at)} == {
        "hard": "a link",
        "soft": "a link",
        "disk": "a device",
        "tty": "a device",
        "pipe": "a pipe",
        "odd": "of the type b'Z', which MMS does not know",
        "contiguous": "",
    }


def test_a_name_after_a_folder_or_a_link_is_its_own(at):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind in [("d" * 200, tarfile.DIRTYPE), ("l" * 200, tarfile.SYMTYPE), ("short", tarfile.REGTYPE)]:
            told = tarfile.TarInfo(name)
            told.type = kind
            archive.addfile(told)
    assert [member.name for member, _ in read(out.getvalue(), at)] == ["l" * 200, "short"]


@pytest.mark.parametrize("version", ["GNU.sparse.major", "GNU.sparse.map"])
def test_a_file_with_holes_is_told(at, version):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        told = tarfile.TarInfo("holes")
        told.pax_headers = {version: "1", "GNU.sparse.realsize": str(2**60)}
        archive.addfile(told)
        archive.addfile(tarfile.TarInfo("plain"))
    assert [(member.name, member.other) for member, _ in read(out.getvalue(), at)] == [
        ("holes", "a file with holes"),
        ("plain", ""),
    ]


def _retyped(name: str, kind: bytes, *, size: int = 0, flag: bytes = b"") -> bytes:
    told = tarfile.TarInfo(name)
    told.size = size
    header = bytearray(told.tobuf(tarfile.GNU_FORMAT)[:512])
    header[156:157] = kind
    if flag:
        header[482:483] = flag
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header)


def test_a_file_with_holes_of_gnu_is_stepped_over(at):
    more = bytes(504) + b"\1" + bytes(7)
    last = bytes(512)
    holes = _retyped("holes", b"S", size=5, flag=b"\1") + more + last + b"12345".ljust(512, b"\0")
    assert [(member.name, member.other) for member, _ in read(holes + tar({"plain": b"x"}), at)] == [
        ("holes", "a file with holes"),
        ("plain", ""),
    ]


def test_tar_files_put_together_are_read_as_one(at):
    both = tar({"a": b"1"}) + tar({"b": b"2"})
    assert [(member.name, data) for member, data in read(both, at)] == [("a", b"1"), ("b", b"2")]


@pytest.mark.parametrize("zeros", [2**20 + 512, 3 * 2**20])
def test_what_stands_behind_many_zeros_is_read(at, zeros):
    data = tar({"a": b"1"})[:1024] + bytes(zeros) + tar({"b": b"2"})
    assert [(member.name, data) for member, data in read(data, at)] == [("a", b"1"), ("b", b"2")]
    assert "no header" in refused(tar({"a": b"1"}) + bytes(zeros) + b"x" * 512, at)


@pytest.mark.parametrize("part", [1, 511, 512, 513, 1000, 1536, 2047])
def test_what_is_cut_short_is_refused(at, part):
    assert "cut short" in (refused(tar({"a": b"x" * 600, "b": b"y"})[:part], at)) or part < 512


@pytest.mark.parametrize("size", [2**20, 2**40, 2**62, 2**80])
def test_a_size_beyond_the_end_is_refused(at, size):
    told = tarfile.TarInfo("a")
    told.size = size
    assert "ends behind its end" in refused(told.tobuf(tarfile.GNU_FORMAT) + bytes(2048), at)


def test_a_flipped_bit_of_any_byte_of_a_header_is_found(at):
    data = tar({"a": b"x"})
    for place in range(512):
        wrong = bytearray(data)
        wrong[place] ^= 1 << place % 7
        try:
            found = read(bytes(wrong), at)
        except InvalidInput:
            continue
        assert place in range(148, 156), place  # the spaces and zeros around the sum say nothing
        assert [(member.name, content) for member, content in found] == [("a", b"x")]


@pytest.mark.parametrize(
    ("magic", "name"),
    [(b"\x1f\x8b\x08", "gzip"), (b"BZh9", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd")],
)
def test_compressed_ones_are_refused_with_the_next_step(at, magic, name):
    assert f"compressed by {name}, and samples are read in place; decompress it first" in refused(
        magic + bytes(600), at
    )


@pytest.mark.parametrize("data", [b"", b"text", b"PK\x03\x04" + bytes(3000), bytes(100), b"\xff" * 4096])
def test_what_is_no_tar_file_is_refused(at, data):
    assert any(told in refused(data, at) for told in ("it is empty", "no tar file", "damaged"))


def test_a_tar_file_of_nothing_has_nothing(at):
    assert read(tar({}), at) == []


@pytest.mark.parametrize("kind", [b"L", b"x"])
def test_a_name_of_gigabytes_takes_no_memory(at, kind):
    with at.open("wb") as file:
        file.write(_retyped("name", kind, size=2**32))
        file.truncate(2**33)
    tracemalloc.start()
    with at.open("rb") as file, pytest.raises(InvalidInput, match=r"at most 1,048,576 bytes; one says 4,294,967,296"):
        list(members(file))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "record",
    [
        b"0 a=b\n",
        b"99 path=x\n",
        b"8 path=",
        b"no number\n",
        b"9999999999999 a=b\n",
        b"-3 a=b\n",
        b"11 size=-1\n",
        b"11 size=\xff9\n",
        b"11 size=\x809\n",
    ],
)
def test_long_values_that_are_none_are_refused(at, record):
    data = _retyped("name", b"x", size=len(record)) + record.ljust(512, b"\0") + tar({"a": b"1"})
    assert any(told in refused(data, at) for told in ("damaged", "behind its end"))


def test_holes_without_end_are_refused(at, monkeypatch):
    monkeypatch.setattr("mms_sdk.compute.data.sources.tars._MAX_HOLES", 5)
    data = _retyped("holes", b"S", flag=b"\1") + (bytes(504) + b"\1" + bytes(7)) * 9
    assert "at most 5 blocks" in refused(data, at)


def test_whatever_is_written_into_a_header_is_read_or_refused(at):
    rng = random.Random(0)
    right = tar({"a.png": bytes(700), "b" * 150: b"1", "ü.txt": b"2"}, format=tarfile.PAX_FORMAT)
    for _ in range(300):
        wrong = bytearray(right)
        for _ in range(rng.choice([1, 2, 8])):
            wrong[rng.randrange(len(wrong))] = rng.randrange(256)
        for begin in range(0, len(wrong), 512):  # with its sum mended, so that what is behind it is looked at
            header = wrong[begin : begin + 512]
            if header[257:262] == b"ustar":
                total = sum(header) - sum(header[148:156]) + 8 * 32
                wrong[begin + 148 : begin + 156] = f"{total:06o}\0 ".encode()
        with contextlib.suppress(InvalidInput):
            read(bytes(wrong), at)
