from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.job import JobRequest, JobSpec, Resources, Retry


@pytest.mark.parametrize(
    ("asked", "size"),
    [
        ("8GB", 8_000_000_000),
        ("512MiB", 536_870_912),
        ("1.5 GiB", 1_610_612_736),
        ("2TB", 2_000_000_000_000),
        (1000, 1000),
    ],
)
def test_memory_is_bytes_or_a_number_with_a_unit(asked: Any, size: int) -> None:
    assert Resources(memory=asked).memory == size


@pytest.mark.parametrize(
    ("asked", "seconds"), [("90s", 90), ("0.5s", 0.5), ("1.5s", 1.5), ("30min", 1800), ("2 h", 7200), ("1d", 86400)]
)
def test_time_is_seconds_or_a_number_with_a_unit(asked: Any, seconds: float) -> None:
    assert Resources(time=asked).time == seconds


@pytest.mark.parametrize(
    ("field", "asked", "said"),
    [
        ("memory", "8 parrots", "a number with MB, GB, TB, MiB, GiB or TiB; got '8 parrots'"),
        ("memory", "8gb", "got '8gb'"),
        ("memory", "-1GB", "got '-1GB'"),
        ("memory", "nan GB", "got 'nan GB'"),
        ("memory", "9" * 400 + "GB", "got '999"),
        ("memory", "0GB", "more than 0|above 0"),
        ("memory", 1.5, "a whole number"),
        ("time", "2 hours", "a number with s, min, h or d; got '2 hours'"),
        ("time", "9" * 400 + "d", "got '999"),
        ("time", "0s", "more than 0|above 0"),
        ("time", float("inf"), "finite"),
        ("time", float("nan"), "finite|above 0|more than 0"),
        ("cpus", 0, "at least 1"),
        ("cpus", 1.5, "a whole number"),
        ("gpus", -1, "at least 0"),
        ("tpus", 1, "tpus"),
    ],
)
def test_resources_that_cannot_be_are_refused_in_our_words(field: str, asked: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=f"Resources does not fit: .*({said})"):
        Resources(**{field: asked})


def test_a_retry_takes_its_times_by_place() -> None:
    assert Retry(5).times == 5
    for wrong in ({"times": -1}, {"times": 101}, {"wait_s": -1}, {"wait_s": 3601}):
        with pytest.raises(InvalidRequest, match="Retry does not fit"):
            Retry(**wrong)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"MMS_JOB": "1"}, "begin with MMS_ are the engine's; got 'MMS_JOB'"),
        ({"MMS_A-B": "1"}, "got 'MMS_A-B'"),
        ({"MMS_": "1"}, "got 'MMS_'"),
        ({"": "1"}, "a name without '='"),
        ({"A=B": "1"}, "a name without '='"),
        ({"A": "x\0y"}, "no byte 0"),
        ({"A\0": "x"}, "no byte 0"),
        ({"A": "x" * 100_000}, "at most 100,000 bytes; 'A' has 100,001"),
        ({"A": "é" * 50_000}, "'A' has 100,001"),
        ({"A": 1}, "valid string"),
    ],
)
def test_variables_that_no_process_can_have_are_refused(environment: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        JobSpec(bundle="0" * 64, entrypoint="a.py", environment=environment)


@pytest.mark.parametrize("name", ["MMSX", "mms_x", "XMMS_"])
def test_variables_that_only_look_like_the_engines_are_let_in(name: str) -> None:
    assert JobSpec(bundle="0" * 64, entrypoint="a.py", environment={name: ""}).environment == {name: ""}


@pytest.mark.parametrize("field", ["name", "key"])
@pytest.mark.parametrize("value", ["", "x" * 65, "a\nb", "a\0b", "\x1b[2J", "a\x7f"])
def test_a_name_or_key_is_short_and_on_one_line(field: str, value: str) -> None:
    spec = JobSpec(bundle="0" * 64, entrypoint="a.py")
    fields = {"kind": "script", "name": "été", "key": "№ 1", "spec": spec}
    assert JobRequest(**fields).name == "été"

    with pytest.raises(ValidationError, match=field):
        JobRequest(**{**fields, field: value})


def test_a_spec_is_the_same_after_it_was_written_and_read() -> None:
    spec = JobSpec(
        bundle="0" * 64,
        entrypoint="a.py",
        args=("é", ""),
        environment={"A": "é"},
        resources=Resources(cpus=1, gpus=0, memory="1GB", time="1.5s"),
        retry=Retry(2, wait_s=0.1),
        priority=-3,
    )

    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec
    assert JobSpec.model_validate(spec.model_dump(mode="json")) == spec
