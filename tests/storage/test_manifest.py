from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from mms_sdk.errors import Damaged
from mms_sdk.storage import manifest
from mms_sdk.storage.stores.local import LocalStore


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    folder = tmp_path / "thing"
    (folder / "inner" / "deep").mkdir(parents=True)
    (folder / "a").write_bytes(b"some bytes")
    (folder / "inner" / "deep" / "ü b\n").write_bytes(bytes(1000))
    (folder / "empty").write_bytes(b"")
    manifest.seal(folder)
    return folder


def test_sealing_returns_the_digest_that_checking_finds(sealed: Path) -> None:
    digest = hashlib.sha256((sealed / "MANIFEST.json").read_bytes()).hexdigest()

    assert manifest.check(LocalStore(sealed), what="thing", content=True) == digest
    assert manifest.check(LocalStore(sealed), what="thing", expected=digest) == digest


def test_equal_folders_have_equal_manifests(sealed: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "inner" / "deep").mkdir(parents=True)
    (other / "inner" / "deep" / "ü b\n").write_bytes(bytes(1000))
    (other / "empty").write_bytes(b"")
    (other / "a").write_bytes(b"some bytes")

    assert manifest.seal(other) == manifest.check(LocalStore(sealed), what="thing")


def test_a_folder_without_a_manifest_is_incomplete(tmp_path: Path) -> None:
    assert not manifest.is_sealed(tmp_path)
    with pytest.raises(Damaged, match=r"thing is incomplete: .* has no MANIFEST\.json; restore"):
        manifest.check(LocalStore(tmp_path), what="thing")


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])  # every seventh bit, or every one
def test_a_flipped_bit_of_a_manifest_is_noticed_even_where_its_digest_was_not_recorded(
    sealed: Path, stride: int
) -> None:
    path = sealed / "MANIFEST.json"
    whole = path.read_bytes()

    missed = []
    for at in range(0, 8 * len(whole), stride):
        harmed = bytearray(whole)
        harmed[at // 8] ^= 1 << at % 8
        path.write_bytes(harmed)
        try:
            manifest.check(LocalStore(sealed), what="thing", content=True)
        except Damaged:
            continue
        missed.append((at, bytes(harmed)))

    assert missed == []
    assert len(whole) > 400


def test_a_flipped_bit_in_any_listed_file_is_noticed_by_reading_the_content(sealed: Path) -> None:
    rng = np.random.default_rng(0)
    for path in (sealed / "a", sealed / "inner" / "deep" / "ü b\n"):
        whole = path.read_bytes()
        for _ in range(40):
            harmed = bytearray(whole)
            harmed[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
            path.write_bytes(harmed)
            with pytest.raises(
                Damaged, match=r"are not those that were written .*restore a new workspace from a backup"
            ):
                manifest.check(LocalStore(sealed), what="thing", content=True)
        path.write_bytes(whole)


def test_a_file_is_read_only_if_its_bytes_are_those_listed(sealed: Path) -> None:
    expected = manifest.check(LocalStore(sealed), what="thing")

    assert manifest.check_file(LocalStore(sealed), "a", what="thing", expected=expected) == b"some bytes"
    (sealed / "a").write_bytes(b"other byte")
    with pytest.raises(Damaged, match="thing is damaged"):
        manifest.check_file(LocalStore(sealed), "a", what="thing", expected=expected)
    (sealed / "a").unlink()
    with pytest.raises(Damaged, match="a is missing"):
        manifest.check_file(LocalStore(sealed), "a", what="thing", expected=expected)
    with pytest.raises(Damaged, match="unlisted is missing"):
        manifest.check_file(LocalStore(sealed), "unlisted", what="thing", expected=expected)


def test_a_manifest_of_a_newer_version_asks_for_an_upgrade(sealed: Path) -> None:
    path = sealed / "MANIFEST.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "manifest_version": 2}))

    with pytest.raises(Damaged, match="has version 2, this MMS reads 1; upgrade mms-sdk"):
        manifest.check(LocalStore(sealed), what="thing")


@pytest.mark.parametrize("body", [b"", b"[]", b"7", b'{"files": 3, "manifest_version": 1}', b'{"files": [3]}', b"\xff"])
def test_what_is_no_manifest_is_told_as_damage(sealed: Path, body: bytes) -> None:
    (sealed / "MANIFEST.json").write_bytes(body)

    with pytest.raises(Damaged, match="is not a manifest"):
        manifest.check(LocalStore(sealed), what="thing")
