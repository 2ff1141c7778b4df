from __future__ import annotations

import importlib.metadata
from pathlib import Path

from mms_sdk.compute.packages import installed, normalised


def test_packages_are_those_that_the_library_finds_by_reading_them() -> None:
    found: dict[str, str] = {}
    for each in importlib.metadata.distributions():
        found.setdefault(normalised(each.name), each.version)
    assert installed() == dict(sorted(found.items()))
    assert list(installed()) == sorted(found)


def test_the_first_of_a_name_counts_and_what_is_no_folder_is_passed_over(tmp_path: Path) -> None:
    for place, name in (("a", "My_Pack.age-1.0.dist-info"), ("b", "my_pack_age-2.0.dist-info"), ("b", "old.egg-info")):
        (tmp_path / place / name).mkdir(parents=True)
    (tmp_path / "b" / "other-1.0-py3.11.egg-info").touch()
    (tmp_path / "file").touch()
    paths = [str(tmp_path / name) for name in ("nowhere", "file", "a", "b")]
    assert installed(paths) == {"my-pack-age": "1.0", "old": "", "other": "1.0"}
