"""What one process compiled, the next one finds; and what is damaged, shared or too much does no harm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from mms_sdk.compute import compile_cache
from mms_sdk.compute.compile_cache import cpu, trim, use_compile_cache
from mms_sdk.compute.engines.machine import environment
from mms_sdk.errors import InvalidRequest

PROGRAM = Path(__file__).with_name("compiles_with_a_cache.py")
NAMES = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """JAX as it is where nobody has told it of a cache."""
    before = {name: getattr(jax.config, name) for name in NAMES}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_nothing_is_kept_where_nobody_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMS_COMPILE_CACHE", raising=False)

    assert use_compile_cache() is None
    assert jax.config.jax_compilation_cache_dir is None


def test_the_folder_is_private_and_goes_by_the_kind_of_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMS_COMPILE_CACHE", str(tmp_path / "kept"))

    folder = use_compile_cache()

    assert folder == tmp_path / "kept" / cpu()
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert folder.stat().st_mode & 0o077 == 0


def test_a_cache_that_jax_was_told_of_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMS_COMPILE_CACHE", str(tmp_path / "kept"))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))

    assert use_compile_cache() is None
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMS_COMPILE_CACHE", str(tmp_path / "shared"))
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)

    with pytest.raises(InvalidRequest, match=r"nobody else may write there; .*/shared .* with mode 777; chmod go-w it"):
        use_compile_cache()


def test_nothing_is_kept_without_checksums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MMS_COMPILE_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(compile_cache, "_has_checksums", lambda: False)

    assert use_compile_cache() is None
    assert "$MMS_COMPILE_CACHE is not used" in caplog.text
    assert not (tmp_path / "kept").exists()


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    for number in range(5):
        path = tmp_path / f"{number}-cache"
        path.write_bytes(bytes(100))
        os.utime(path, (1000 - number, 500 + number))  # read the other way about than written

    trim(tmp_path, 250)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-cache", "1-cache"]


def test_trials_keep_what_they_compile_where_the_study_does() -> None:
    assert environment({"MMS_COMPILE_CACHE": "/kept", "MMS_TOKEN": "secret"}) == {"MMS_COMPILE_CACHE": "/kept"}


@pytest.mark.slow
def test_a_process_finds_what_another_compiled_and_damage_does_no_harm(tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent / "training"))
    from small_pictures import make_data

    make_data(tmp_path / "workspace").workspace.close()

    first, second = trained(tmp_path), trained(tmp_path)

    assert first["found"] == 0
    assert second["found"] == first["kept"] > 0
    assert second["learnt"] == first["learnt"]

    for path in (tmp_path / "kept").rglob("*-cache"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    third = trained(tmp_path)

    assert third["found"] == 0
    assert third["learnt"] == first["learnt"]


def trained(folder: Path) -> Any:
    """What a process of its own says that trained in a workspace."""
    variables = {**os.environ, "MMS_COMPILE_CACHE": str(folder / "kept"), "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder / "workspace")], env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
