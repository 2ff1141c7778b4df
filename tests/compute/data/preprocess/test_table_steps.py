from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from mms_sdk.compute.data.kinds.rows import Cells
from mms_sdk.compute.data.preprocess.pipeline import FittedHostStep, RowsStep, from_json, to_json
from mms_sdk.compute.data.preprocess.table import Encode
from mms_sdk.errors import InvalidInput, InvalidRequest

SIZE = np.array([1.0, np.nan, 3.0, 8.0])
CODES = np.array([2, 0, -1, 2])


def rows(size: Any = SIZE, codes: Any = CODES, labels: tuple[str, ...] = ("red", "blue", "white")) -> dict[str, Cells]:
    count = len(size)
    return {
        "colour": Cells("category", np.asarray(codes), labels),
        "size": Cells("number", np.asarray(size, np.float64)),
        "same": Cells("number", np.full(count, 0.1)),
    }


def fitted(**options: Any) -> Encode:
    return Encode(**options).fit(iter([rows(SIZE[:2], CODES[:2]), rows(SIZE[2:], CODES[2:])]))


def test_numbers_are_standardised_by_the_training_rows_and_missing_ones_are_their_median() -> None:
    there = np.array([1.0, 3.0, 8.0])
    expected = (np.array([1.0, 3.0, 3.0, 8.0]) - there.mean()) / there.std()

    found = fitted().on_rows(rows())

    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-6)
    np.testing.assert_array_equal(found[:, 1], 0)  # what never changes says nothing, and is divided by nothing


def test_missing_numbers_stay_missing_where_that_is_asked_for() -> None:
    found = fitted(missing="nan").on_rows(rows())

    np.testing.assert_array_equal(np.isnan(found), [[False] * 3, [True, False, False], [False] * 3, [False] * 3])


def test_categories_have_codes_from_one_behind_the_numbers_and_zero_is_for_what_is_not_known() -> None:
    step = fitted()

    assert step.features == ("size", "same", "colour")
    assert step.categories == (3,)  # blue never came
    assert step.values == (("red", "white"),)
    np.testing.assert_array_equal(step.on_rows(rows())[:, 2], [2, 1, 0, 2])
    other = rows(codes=[0, 1, 2, -1], labels=("white", "blue", "red"))
    np.testing.assert_array_equal(step.on_rows(other)[:, 2], [2, 0, 1, 0])
    assert step.shape(None) == (3,)
    assert Encode().shape(None) is None


def test_a_row_comes_out_as_among_many() -> None:
    step = fitted()
    assert isinstance(step, RowsStep)
    assert isinstance(step, FittedHostStep)

    for number, row in enumerate(step.on_rows(rows())):
        one = {name: each._replace(values=each.values[number : number + 1]) for name, each in rows().items()}
        np.testing.assert_array_equal(step.on_row(one), row)


def test_it_is_the_same_after_a_trip_through_json_and_learns_only_once() -> None:
    step = fitted()

    assert from_json(json.loads(json.dumps(to_json(step)))) == step
    assert step.fit(pytest.fail(each) for each in ["the rows were read"]) == step


def test_what_cannot_be_encoded_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="got missing='mean'"):
        Encode(missing="mean")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="knows its columns once it is fitted"):
        Encode().on_rows(rows())
    with pytest.raises(InvalidInput, match="column 'size' has 1 rows of infinity; drop them"):
        Encode().fit([rows([1.0, np.inf, 2.0, 3.0])])
    with pytest.raises(InvalidInput, match="column 'size' has -inf"):
        fitted().on_rows(rows([1.0, -np.inf, 2.0, 3.0]))


def test_a_column_without_any_value_becomes_zeros() -> None:
    step = Encode().fit([rows([np.nan] * 4)])

    np.testing.assert_array_equal(step.on_rows(rows([np.nan, 2.0, np.nan, 0.0]))[:, 0], [0, 2, 0, 0])
