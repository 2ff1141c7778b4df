from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_sdk.errors import Damaged, InvalidRequest, MmsError, NotFound, TooLarge
from mms_sdk.storage import bundles
from mms_sdk.storage.bundles import Bundles, pack

FILES = {"train.py": b"print('x')\n", "models/net.py": b"", "models/sizes.txt": b"1\n" * 5000}


@pytest.fixture
def kept(tmp_path: Path) -> Bundles:
    return Bundles(tmp_path / "bundles")


def archive(*entries: tuple[str, bytes], mode: int = stat.S_IFREG | 0o600, how: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive as anybody may write one, by the names as they are given."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as made, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that stand twice
        for name, content in entries:
            info = zipfile.ZipInfo("x")
            info.filename = name
            info.external_attr = mode << 16
            made.writestr(info, content, how)
    return whole.getvalue()


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What goes in comes out --------------------------------------------------------------------------------------------


def test_the_same_files_are_the_same_bytes_whatever_their_order(kept: Bundles) -> None:
    packed = pack(FILES)

    assert pack(dict(reversed(FILES.items()))) == packed
    assert kept.keep(packed) == hashlib.sha256(packed).hexdigest()
    assert pack({**FILES, "train.py": b"print('y')\n"}) != packed


@given(
    st.dictionaries(
        st.lists(st.sampled_from(["a", "b.py", "ü", "c d", "…", "-x"]), min_size=1, max_size=3).map("/".join),
        st.binary(max_size=300),
        max_size=6,
    )
)
def test_what_is_packed_comes_out_as_it_was_or_is_refused_before(content: dict[str, bytes]) -> None:
    folders = {path.rsplit("/", depth)[0] for path in content for depth in range(1, path.count("/") + 1)}
    if folders & content.keys():
        with pytest.raises(InvalidRequest, match="are both there"):
            pack(content)
        return
    packed = pack(content)
    with zipfile.ZipFile(io.BytesIO(packed)) as told:  # Python's own reader is the witness
        assert {name: told.read(name) for name in told.namelist()} == content
        assert told.testzip() is None


def test_a_bundle_is_unpacked_to_files_that_only_their_owner_reads(kept: Bundles, tmp_path: Path) -> None:
    digest = kept.keep(pack(FILES))
    before = os.umask(0)
    try:
        kept.unpack(digest, tmp_path / "code")
    finally:
        os.umask(before)

    assert tree(tmp_path / "code") == FILES
    assert sorted(kept.names(digest)) == sorted(FILES)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "code").rglob("*")}
    assert modes == {"models": 0o700, "net.py": 0o600, "sizes.txt": 0o600, "train.py": 0o600}


def test_unpacking_that_was_cut_short_is_done_again(kept: Bundles, tmp_path: Path) -> None:
    digest = kept.keep(pack(FILES))
    (tmp_path / "code" / "models").mkdir(parents=True)
    (tmp_path / "code" / "models" / "sizes.txt").write_bytes(b"1\n" * 9000)

    kept.unpack(digest, tmp_path / "code")

    assert tree(tmp_path / "code") == FILES


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_that_others_packed_is_one_too(kept: Bundles, tmp_path: Path, how: int) -> None:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", how) as made:
        made.writestr("train.py", b"print(1)")  # says what may be done with it, and not that it is a file

    kept.unpack(kept.keep(whole.getvalue()), tmp_path / "code")

    assert tree(tmp_path / "code") == {"train.py": b"print(1)"}


def test_an_empty_bundle_is_one(kept: Bundles, tmp_path: Path) -> None:
    kept.unpack(kept.keep(pack({})), tmp_path / "code")

    assert not (tmp_path / "code").exists()


# What is refused ---------------------------------------------------------------------------------------------------

OUT = [
    "../evil.py",
    "a/../../evil.py",
    "a/../b.py",
    "..",
    ".",
    "./a.py",
    "a/./b.py",
    "/etc/cron.d/evil",
    "//evil.py",
    "a//b.py",
    "..\\evil.py",
    "a\\b.py",
    "\\\\server\\share",
    "C:evil.py",
    "C:/evil.py",
    "c:\\evil.py",
    "a.py:stream",
    "evil.py\0.txt",
    "\0",
    "",
]


@pytest.mark.parametrize("name", OUT)
def test_a_path_that_leads_out_or_is_no_name_everywhere_is_refused_by_all(
    kept: Bundles, tmp_path: Path, name: str
) -> None:
    with pytest.raises(InvalidRequest):
        pack({name: b"x"})
    with pytest.raises(InvalidRequest):
        kept.keep(archive(("train.py", b"x"), (name, b"x")))

    assert tree(tmp_path) == {}


@pytest.mark.parametrize("name", ["a\ud800.py", "a" * 256 + ".py", "é" * 128, "/".join(["abcdefghi"] * 101)])
def test_a_name_that_no_disk_takes_is_refused_before_it_is_tried(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"are UTF-8|make it shorter"):
        pack({name: b"x"})


def test_the_longest_names_that_are_let_in_can_be_written(kept: Bundles, tmp_path: Path) -> None:
    content = {"é" * 127 + "x": b"1", "/".join(["a" * 99] * 10): b"2"}

    kept.unpack(kept.keep(pack(content)), tmp_path / "code")

    assert tree(tmp_path / "code") == content


def test_a_path_that_stands_twice_is_refused(kept: Bundles) -> None:
    with pytest.raises(InvalidRequest, match=r"holds each path once; 'a\.py' is there twice"):
        kept.keep(archive(("a.py", b"1"), ("a.py", b"2")))


@pytest.mark.parametrize("names", [("a", "a/b.py"), ("a/b.py", "a"), ("a", "a/b/c.py")])
def test_a_file_where_a_folder_is_needed_is_refused(kept: Bundles, names: tuple[str, str]) -> None:
    with pytest.raises(InvalidRequest, match=r"'a/b.*' and 'a' are both there"):
        kept.keep(archive(*((name, b"x") for name in names)))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFBLK, stat.S_IFCHR, stat.S_IFSOCK])
def test_what_is_no_plain_file_is_refused(kept: Bundles, kind: int) -> None:
    with pytest.raises(InvalidRequest, match="holds plain files"):
        kept.keep(archive(("a.py", b"/etc/passwd"), mode=kind | 0o777))


@pytest.mark.parametrize("name", ["models/", "models/../", "/"])
def test_an_entry_of_a_folder_is_refused_also_with_a_content(kept: Bundles, name: str) -> None:
    with pytest.raises(InvalidRequest, match="without entries of folders"):
        kept.keep(archive((name, b"x")))


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"no zip",
        b"PK\x03\x04" + bytes(100),
        b"PK\x05\x06" + b"\xff" * 18,
        pack(FILES)[:-30],
        pack(FILES)[40:],
        pack(FILES).replace(b"models/net.py", b"models/not.py", 1),  # the file says another name than the list
    ],
)
def test_what_is_no_whole_zip_archive_is_refused(kept: Bundles, tmp_path: Path, packed: bytes) -> None:
    with pytest.raises(InvalidRequest, match="is a zip archive; this is none that can be read"):
        kept.keep(packed)

    assert tree(tmp_path) == {}


@given(at=st.integers(0, len(pack(FILES)) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_changes_no_content_and_never_anything_else(at: int, bit: int) -> None:
    packed = bytearray(pack(FILES))
    packed[at] ^= 1 << bit
    try:
        found = bundles._read(bytes(packed))
    except MmsError:
        return
    assert sorted(found.values()) == sorted(FILES.values())  # in a name, a time or a mode


def test_an_archive_that_asks_for_a_password_is_refused(kept: Bundles) -> None:
    packed = bytearray(archive(("a.py", b"x")))
    for header, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        packed[packed.index(header) + at] |= 1  # the flag of what is encrypted

    with pytest.raises(InvalidRequest, match="none that can be read"):
        kept.keep(bytes(packed))


@pytest.mark.parametrize("how", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_cannot_be_unpacked_bit_by_bit_is_refused(kept: Bundles, how: int) -> None:
    with pytest.raises(InvalidRequest, match="are stored or deflated"):
        kept.keep(archive(("a.py", bytes(10**6)), how=how))


# Limits ------------------------------------------------------------------------------------------------------------


def lying(content: bytes, says: int, *, checksum: int | None = None) -> bytes:
    """An archive of one file, whose size and checksum are said to be others than they are."""
    packed = bytearray(archive(("a.py", content)))
    for header, at in ((b"PK\3\4", 14), (b"PK\1\2", 16)):
        begin = packed.index(header) + at
        if checksum is not None:
            struct.pack_into("<I", packed, begin, checksum)
        struct.pack_into("<I", packed, begin + 8, says)
    return bytes(packed)


def test_a_bomb_that_says_how_large_it_is_is_refused_without_being_unpacked(kept: Bundles) -> None:
    with pytest.raises(TooLarge, match=r"at most 268,435,456 bytes unpacked; this one has 4,000,000,000"):
        kept.keep(lying(bytes(10**6), says=4 * 10**9))


def test_many_files_that_are_a_bomb_together_are_refused(kept: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "MAX_UNPACKED_BYTES", 10**6)

    with pytest.raises(TooLarge, match="this one has 1,000,100"):
        kept.keep(archive(*((f"{number}.txt", bytes(10_001)) for number in range(100))))


@pytest.mark.parametrize("checksum", [None, zlib.crc32(bytes(10))])
def test_a_bomb_that_says_it_is_small_takes_little_memory(kept: Bundles, tmp_path: Path, checksum: int | None) -> None:
    packed = lying(bytes(2**28), says=10, checksum=checksum)
    tracemalloc.start()
    try:
        if checksum is None:
            with pytest.raises(InvalidRequest, match="Bad CRC-32"):
                kept.keep(packed)
        else:  # what was said of it is right for its beginning: it is a file of ten bytes
            kept.unpack(kept.keep(packed), tmp_path / "code")
            assert tree(tmp_path / "code") == {"a.py": bytes(10)}
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert most < 2 * len(packed) + 2**21


def test_a_file_that_is_smaller_than_it_says_is_refused(kept: Bundles) -> None:
    with pytest.raises(InvalidRequest, match=r"says how large its files are; 'a\.py' is not"):
        kept.keep(lying(bytes(10), says=1000))


def test_a_bomb_within_a_bundle_is_a_file_like_any_other(kept: Bundles, tmp_path: Path) -> None:
    inner = archive(("zeros", bytes(2**24)))
    content = {"inner.zip": inner}

    kept.unpack(kept.keep(pack(content)), tmp_path / "code")

    assert tree(tmp_path / "code") == content


def test_a_list_of_files_without_end_is_refused_before_it_is_read(kept: Bundles) -> None:
    one = archive(("a.py", b""))
    entry = one[one.index(b"PK\1\2") : one.index(b"PK\5\6")]
    count = 200_000
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, count % 65536, count % 65536, count * len(entry), 0, 0)
    packed = entry * count + end
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match="at most 5,000 files"):
            kept.keep(packed)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert most < 2**20


def test_so_many_files_and_no_more(monkeypatch: pytest.MonkeyPatch, kept: Bundles) -> None:
    monkeypatch.setattr(bundles, "MAX_FILES", 3)
    assert kept.names(kept.keep(pack({f"{number}.py": b"" for number in range(3)}))) == ["0.py", "1.py", "2.py"]

    four = {f"{number}.py": b"" for number in range(4)}
    with pytest.raises(TooLarge, match="holds 3 files; these are 4"):
        pack(four)
    with pytest.raises(TooLarge, match="at most 3 files; this one has 4"):
        kept.keep(archive(*four.items()))


def test_so_many_bytes_and_no_more(monkeypatch: pytest.MonkeyPatch, kept: Bundles) -> None:
    noise = os.urandom(1000)
    size = len(pack({"a": noise}))
    monkeypatch.setattr(bundles, "MAX_BYTES", size)
    monkeypatch.setattr(bundles, "MAX_UNPACKED_BYTES", 1000)
    kept.keep(pack({"a": noise}))

    with pytest.raises(TooLarge, match="at most 1,000 bytes unpacked; this one has 1,001"):
        pack({"a": bytes(1001)})
    monkeypatch.setattr(bundles, "MAX_BYTES", size - 1)
    for call in (lambda: pack({"a": noise}), lambda: kept.keep(archive(("a", noise)))):
        with pytest.raises(TooLarge, match=rf"at most {size - 1:,} bytes; this one has {size:,}"):
            call()


# What was kept -----------------------------------------------------------------------------------------------------


def test_a_bundle_that_is_gone_says_what_to_do(kept: Bundles, tmp_path: Path) -> None:
    for call in (lambda: kept.names("0" * 64), lambda: kept.unpack("0" * 64, tmp_path / "code")):
        with pytest.raises(NotFound, match=r"no bundle 000.* submit the job again"):
            call()


@pytest.mark.parametrize("damage", [b"", b"no zip", pack({"train.py": b"print('z')\n"})])
def test_a_bundle_that_was_damaged_is_named_and_mended_by_keeping_it_again(
    kept: Bundles, tmp_path: Path, damage: bytes
) -> None:
    packed = pack(FILES)
    digest = kept.keep(packed)
    (path,) = (tmp_path / "bundles").iterdir()
    path.write_bytes(damage)

    for call in (lambda: kept.names(digest), lambda: kept.unpack(digest, tmp_path / "code")):
        with pytest.raises(Damaged, match=f"bundle {digest} in .* is not what was kept"):
            call()
    assert not (tmp_path / "code").exists()
    assert kept.keep(packed) == digest
    kept.unpack(digest, tmp_path / "code")
    assert tree(tmp_path / "code") == FILES


def test_keeping_it_twice_keeps_it_once(kept: Bundles, tmp_path: Path) -> None:
    assert kept.keep(pack(FILES)) == kept.keep(pack(FILES))

    assert len(list((tmp_path / "bundles").iterdir())) == 1


@pytest.mark.slow
def test_processes_that_keep_the_same_at_once_keep_it_once_and_none_fails(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from mms_sdk.storage.bundles import Bundles, pack\n"
    code += "print('ready', flush=True); sys.stdin.readline()\n"
    code += "for n in range(50): print(Bundles(Path(sys.argv[1], str(n))).keep(pack({'a.py': b'%d' % n})))"
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(3)]  # type: ignore[call-overload]
    try:
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        told = [process.communicate(timeout=100)[0].split() for process in processes]
    finally:
        for process in processes:
            process.kill()

    expected = [hashlib.sha256(pack({"a.py": b"%d" % number})).hexdigest() for number in range(50)]
    assert told == [expected] * 3
    assert sorted(path.name for path in tmp_path.glob("*/*")) == sorted(f"{digest}.zip" for digest in expected)
