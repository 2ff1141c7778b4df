"""Search spaces: what they take, and how they print and travel."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

import mms_sdk as mms
from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.tuning import Space, better_way, space_of

EACH = [
    mms.Uniform(0, 0.5),
    mms.LogUniform(1e-5, 1e-2),
    mms.Integer(1, 4),
    mms.Integer(low=16, high=512, log=True),
    mms.Choice([64, 1.5, "relu", None, False]),
]


@pytest.mark.parametrize("each", EACH, ids=repr)
def test_a_range_prints_as_it_is_written_and_comes_back_from_json(each: Any) -> None:
    assert eval(repr(each), vars(mms)) == each
    adapter: TypeAdapter[Space] = TypeAdapter(Space)
    (again,) = adapter.validate_json(adapter.dump_json({"x": each})).values()
    assert again == each
    if isinstance(each, mms.Choice):
        assert isinstance(again, mms.Choice)
        assert [type(value) for value in again.values] == [int, float, str, type(None), bool]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: mms.Uniform(1, 1), "low below high; got low=1.0, high=1.0"),
        (lambda: mms.Uniform(2, 1), "low below high"),
        (lambda: mms.Uniform(0, float("inf")), "finite numbers"),
        (lambda: mms.Uniform(float("nan"), 1), "finite numbers"),
        (lambda: mms.LogUniform(0, 1), "LogUniform does not fit: low: it is above 0, got 0"),
        (lambda: mms.Integer(1, 2.5), "Integer does not fit: high"),
        (lambda: mms.Integer(1, 10**30), "Integer does not fit: high"),
        (lambda: mms.Integer(0, 8, log=True), "orders of magnitude begin at 1"),
        (lambda: mms.Choice([]), "Choice does not fit: values"),
        (lambda: mms.Choice([1, 2, 1]), "got 1 twice"),
        (lambda: mms.Choice([1, True]), "got True twice"),
        (lambda: mms.Choice([float("inf")]), "values that JSON has; got inf"),
        (lambda: mms.Choice([[1, 2]]), "Choice does not fit: values"),
        (lambda: mms.ASHA(reduction=1), "ASHA does not fit: reduction"),
        (lambda: mms.ASHA(min_epochs=0), "ASHA does not fit: min_epochs"),
        (lambda: mms.Hyperband(1), "got 1 and 1"),
        (lambda: mms.Hyperband(), "Hyperband does not fit: max_epochs"),
    ],
)
def test_a_range_that_is_none_is_refused_with_the_reason(made: Any, said: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        made()
    assert said in refused.value.message


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({}, "names at least one value"),
        (None, "names at least one value"),
        ({"learning rate": mms.Uniform(0, 1)}, "an identifier of Python, since scripts take it as an argument; got"),
        ({"lambda": mms.Uniform(0, 1)}, "got 'lambda'"),
        ({3: mms.Uniform(0, 1)}, "got 3"),
        ({"lr": 0.1}, "got lr=0.1; for a value that stays the same"),
        ({"lr": [0.1, 0.2]}, "mms.Uniform, LogUniform, Integer or Choice"),
    ],
)
def test_a_space_that_is_none_is_refused_with_the_reason(space: Any, said: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        space_of(space)
    assert said in refused.value.message


@pytest.mark.parametrize(
    ("metric", "way"),
    [
        ("val/loss", "minimize"),
        ("loss", "minimize"),
        ("val/rmse", "minimize"),
        ("top_error", "minimize"),
        ("val/accuracy", "maximize"),
        ("closs", "maximize"),
        ("reward", "maximize"),
    ],
)
def test_losses_and_errors_are_better_lower(metric: str, way: str) -> None:
    assert better_way(metric) == way
