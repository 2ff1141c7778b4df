from __future__ import annotations

from pathlib import Path

import pytest

from mms_sdk.errors import InvalidName, InvalidRequest, NotFound
from mms_sdk.storage.secrets import Secrets


@pytest.fixture
def secrets(tmp_path: Path) -> Secrets:
    return Secrets(tmp_path / "secrets")


def test_what_was_set_last_is_what_there_is_until_it_is_removed(secrets: Secrets) -> None:
    assert secrets.names() == []
    secrets.set("HF_TOKEN", b"first")
    secrets.set("B", "été\n".encode())
    secrets.set("HF_TOKEN", b"second")
    assert secrets.names() == ["B", "HF_TOKEN"]
    assert secrets.values(["HF_TOKEN", "B"]) == {b"HF_TOKEN": b"second", b"B": "été\n".encode()}
    assert repr(secrets) == "<secrets B, HF_TOKEN>"
    secrets.remove("B")
    assert secrets.names() == ["HF_TOKEN"]


def test_only_the_owner_can_read_them(secrets: Secrets, tmp_path: Path) -> None:
    secrets.set("A", b"value")
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "secrets" / "A").stat().st_mode & 0o777 == 0o600


def test_what_is_missing_is_told_with_the_next_step(secrets: Secrets) -> None:
    secrets.set("A", b"value")
    for call in (secrets.remove, lambda name: secrets.check(["A", name]), lambda name: secrets.values(["A", name])):
        with pytest.raises(
            NotFound, match="no secret B in this workspace, there are A; set it first: mms secrets set B"
        ):
            call("B")
    secrets.check(["A"])


@pytest.mark.parametrize(
    "name", ["", "a b", "../A", "A/B", "1A", "A-B", "x" * 101, ".A", "A\n", "é", "MMS_JOB", "A=hidden"]
)
def test_a_name_that_no_variable_should_have_is_refused(secrets: Secrets, name: str, tmp_path: Path) -> None:
    for call in (lambda: secrets.set(name, b"value"), lambda: secrets.remove(name), lambda: secrets.values([name])):
        with pytest.raises(InvalidName) as refused:
            call()
        assert "hidden" not in str(refused.value)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("value", [b"", b"hid\0den", b"hidden" * 20_000])
def test_a_value_that_no_variable_can_have_is_refused_and_not_told(secrets: Secrets, value: bytes) -> None:
    with pytest.raises(InvalidRequest, match=f"for A has {len(value):,}") as refused:
        secrets.set("A", value)
    assert "hid" not in str(refused.value)
    assert secrets.names() == []


def test_what_somebody_left_who_was_killed_is_no_secret_and_goes_with_its_name(
    secrets: Secrets, tmp_path: Path
) -> None:
    secrets.set("A", b"value")
    draft = tmp_path / "secrets" / ".A.123.0123456789ab"
    draft.write_bytes(b"value")
    assert secrets.names() == ["A"]
    secrets.remove("A")
    assert not draft.exists()
