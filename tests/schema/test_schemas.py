from __future__ import annotations

import importlib
import math
import pkgutil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import mms_sdk.schema
from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.access import ROLES, allows
from mms_sdk.schema.base import Asked, Schema
from mms_sdk.schema.dataset import Column
from mms_sdk.schema.deployment import CreateDeployment
from mms_sdk.schema.job import Job
from mms_sdk.schema.model import RegisterVersion, SetAlias
from mms_sdk.schema.sources import ImageFolder
from mms_sdk.schema.specs import IngestSpec, Split


def all_schemas() -> list[type[Schema]]:
    for module in pkgutil.iter_modules(mms_sdk.schema.__path__):
        importlib.import_module(f"mms_sdk.schema.{module.name}")
    direct = [kind for kind in Schema.__subclasses__() if kind is not Asked]
    return [kind for kind in (*direct, *Asked.__subclasses__()) if kind.__module__.startswith("mms_sdk.schema")]


SCHEMAS = all_schemas()


def test_the_schemas_are_found() -> None:
    assert len(SCHEMAS) > 25


@pytest.mark.parametrize("kind", SCHEMAS, ids=lambda kind: kind.__name__)
def test_nobody_can_change_one_once_it_is_made(kind: type[Schema]) -> None:
    made = kind.model_construct()
    for field in [*kind.model_fields, "surprise"]:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(made, field, 1)


@pytest.mark.parametrize("kind", SCHEMAS, ids=lambda kind: kind.__name__)
def test_a_field_that_nobody_knows_is_refused(kind: type[Schema]) -> None:
    with pytest.raises(ValidationError) as told:
        kind.model_validate({"surprise": 1})
    assert ("extra_forbidden", ("surprise",)) in [(error["type"], error["loc"]) for error in told.value.errors()]


fractions = st.floats(0, 1)


@given(st.tuples(fractions, fractions, fractions).filter(lambda three: sum(three) > 0 and three[0] > 0))
def test_fractions_that_add_up_to_one_are_a_split(three: tuple[float, float, float]) -> None:
    train, val, test = (value / sum(three) for value in three)
    if train <= 0 or val >= 1 or test >= 1:
        return
    split = Split(train=train, val=val, test=test)
    assert split.fractions == {
        name: value for name, value in {"train": train, "val": val, "test": test}.items() if value > 0
    }
    assert Split.model_validate_json(split.model_dump_json()) == split


@given(fractions, fractions, fractions)
def test_fractions_that_do_not_add_up_to_one_are_refused(train: float, val: float, test: float) -> None:
    if abs(train + val + test - 1) <= 1e-6:
        return
    with pytest.raises(InvalidRequest):
        Split(train=train, val=val, test=test)


@pytest.mark.parametrize(
    "fields",
    [
        {"train": 0.0, "val": 0.5, "test": 0.5},
        {"train": 1.2, "val": -0.1, "test": -0.1},
        {"train": -0.1, "val": 0.6, "test": 0.5},
        {"train": math.nan},
        {"train": math.inf},
        {"train": 0.8, "val": math.nan, "test": 0.1},
        {"train": "most"},
        {"train": None},
        {"seed": 0.5},
        {"validation": 0.1},
    ],
)
def test_fractions_that_are_none_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="Split does not fit"):
        Split(**fields)
    with pytest.raises(ValidationError):  # on the wire, where it is turned into a problem with all that is wrong
        Split.model_validate(fields)


def test_the_sum_that_was_seen_is_told() -> None:
    with pytest.raises(
        InvalidRequest, match=r"Split does not fit: split fractions add .* train \+ val \+ test is 1\.1"
    ):
        Split(train=0.9)


def test_what_a_person_writes_is_refused_with_the_field_the_rule_and_the_value() -> None:
    with pytest.raises(InvalidRequest, match=r"train: it is at most 1, got 80"):
        Split(train=80, val=10, test=10)
    with pytest.raises(InvalidRequest, match=r"given by name: train=, .* by=, column=; got \(80, 10, 10\)"):
        Split(80, 10, 10)
    with pytest.raises(InvalidRequest, match="ImageFolder does not fit: path: it is missing; give it"):
        ImageFolder()


def test_a_split_without_a_test_part_names_only_what_it_has() -> None:
    assert Split(train=1, val=0, test=0).fractions == {"train": 1}
    assert Split().fractions == {"train": 0.8, "val": 0.1, "test": 0.1}


@pytest.mark.parametrize("name", ["", "Image", "0a", "a-b", "a/b", "../a", "a\n", "a" * 64, "é", "a٣"])
def test_a_column_name_that_would_be_no_folder_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        Column(name=name, kind="number", dtype="float32")


@pytest.mark.parametrize("dtype", ["object", "O", "<f4", "U5", "float128", "int8\n", "void", "datetime64[s]", ""])
def test_a_dtype_that_is_no_plain_number_is_refused(dtype: str) -> None:
    with pytest.raises(InvalidRequest):
        Column(name="x", kind="number", dtype=dtype)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16"])
@pytest.mark.parametrize(("shape", "count"), [((), 1), ((3,), 3), ((8, 6, 3), 144), ((2**20, 2**20), 2**40), ((0,), 0)])
def test_bytes_of_a_row_are_those_of_its_values(dtype: str, shape: tuple[int, ...], count: int) -> None:
    size = {"bool": 1, "uint8": 1, "int64": 8, "float16": 2}[dtype]
    assert Column(name="x", kind="number", dtype=dtype, shape=shape).row_bytes == size * count
    assert Column(name="x", kind="number", dtype=dtype, shape=(None, *shape[1:])).row_bytes is None


@pytest.mark.parametrize(
    "staged", ["", "01ARZ3NDEKTSV4RRFFQ69G5FA", "../../../../../../../../..", "01ARZ3NDEKTSV4RRFFQ69G5FAV\n"]
)
def test_what_is_no_staging_id_is_refused(staged: str) -> None:
    with pytest.raises(ValidationError):
        RegisterVersion(staged=staged)


@pytest.mark.parametrize("number", [0, -1, 100_000_000, 1.5, "one"])
def test_what_is_no_version_number_is_refused(number: Any) -> None:
    with pytest.raises(ValidationError):
        SetAlias(version=number)


@pytest.mark.parametrize("rows", [0, -1, 65, math.nan])
def test_batches_that_cannot_be_served_are_refused(rows: Any) -> None:
    with pytest.raises(ValidationError):
        CreateDeployment(model="m", max_batch=rows)


def test_an_ingest_reads_back_from_json_as_it_was_written() -> None:
    spec = IngestSpec.model_validate(
        {
            "source": {"type": "image-folder", "path": "/x"},
            "clean": [{"step": "drop-odd-sizes", "min_share": 0.9}, {"step": "drop-duplicates"}],
        }
    )
    assert IngestSpec.model_validate_json(spec.model_dump_json()) == spec
    assert [step.step for step in spec.clean] == ["drop-odd-sizes", "drop-duplicates"]
    assert spec.source == ImageFolder("/x")


def test_a_cleaning_step_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ValidationError, match="drop-all"):
        IngestSpec.model_validate({"source": {"type": "image-folder", "path": "/x"}, "clean": [{"step": "drop-all"}]})


def test_numbers_that_json_does_not_have_are_written_as_null() -> None:
    job = Job(id="1", kind="train", name="m", state="queued", created_at="", result={"loss": math.nan, "up": math.inf})
    assert '"loss":null,"up":null' in job.model_dump_json()


@pytest.mark.parametrize("held", range(4))
@pytest.mark.parametrize("needed", range(4))
def test_a_role_may_do_what_the_ones_before_it_may(held: int, needed: int) -> None:
    order: Any = ("predict", "viewer", "editor", "admin")
    assert order == ROLES
    assert allows(order[held], order[needed]) == (held >= needed)
