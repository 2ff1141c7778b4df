from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from mms_sdk.compute.data.preprocess.pipeline import DeviceStep, HostStep, Pipeline, from_json, to_json
from mms_sdk.compute.data.preprocess.series import Standardize, Window
from mms_sdk.errors import InvalidInput, InvalidRequest

LONG = np.arange(14, dtype=np.float64).reshape(7, 2)


def test_of_a_longer_series_the_last_or_the_first_items_are_kept() -> None:
    np.testing.assert_array_equal(Window(3).on_row(LONG), LONG[4:])
    np.testing.assert_array_equal(Window(3, keep="first").on_row(LONG), LONG[:3])
    assert Window(3).on_row(LONG).dtype == np.float32


def test_a_shorter_series_is_filled_up_with_zeros() -> None:
    np.testing.assert_array_equal(Window(9).on_row(LONG), np.concatenate([np.zeros((2, 2)), LONG]))
    np.testing.assert_array_equal(Window(9, keep="first").on_row(LONG), np.concatenate([LONG, np.zeros((2, 2))]))
    np.testing.assert_array_equal(Window(2).on_row(np.zeros((0, 3))), np.zeros((2, 3)))


def test_single_numbers_are_one_channel() -> None:
    np.testing.assert_array_equal(Window(2).on_row(np.array([1, 2, 3], np.int16)), [[2], [3]])
    assert Window(2).shape((-1,)) == (2, 1)
    assert Window(2).shape((-1, 4)) == (2, 4)


def test_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InvalidInput, match="a series holds finite numbers"):
        Window(2).on_row(np.array([1.0, np.nan]))
    with pytest.raises(InvalidRequest, match="at least one item"):
        Window(0)


def test_channels_are_standardised_by_the_training_rows() -> None:
    rng = np.random.default_rng(0)
    batches = [(1e4 + rng.normal(size=(rows, 5, 3)) * [1, 2, 0]).astype(np.float32) for rows in (4, 1, 9)]
    every = np.concatenate(batches).astype(np.float64)

    fitted = Pipeline.of([Standardize()]).fit(iter(batches)).device[0]

    assert isinstance(fitted, Standardize)
    np.testing.assert_allclose(fitted.mean, every.mean((0, 1)), rtol=1e-9)
    np.testing.assert_allclose(fitted.std[:2], every.std((0, 1))[:2], rtol=1e-6)  # type: ignore[index]
    found = jax.jit(lambda batch: fitted.on_batch(batch, None))(batches[0])
    np.testing.assert_allclose(found[..., 2], 0, atol=1e-6)
    np.testing.assert_allclose(
        found[..., :2], ((batches[0] - every.mean((0, 1))) / every.std((0, 1)).clip(1e-9))[..., :2], atol=2e-3
    )


def test_a_step_is_fitted_on_what_those_before_it_make() -> None:
    batch = np.random.default_rng(0).normal(size=(6, 4, 2)).astype(np.float32)
    first = Standardize(mean=(5.0, 5.0), std=(2.0, 2.0))

    fitted = Pipeline.of([first, Standardize()]).fit(iter([batch])).device[1]

    assert isinstance(fitted, Standardize)
    np.testing.assert_allclose(fitted.mean, ((batch - 5) / 2).mean((0, 1)), rtol=1e-5)


@pytest.mark.parametrize("step", [Window(3), Window(3, keep="first"), Standardize(), Standardize((1.0,), (2.0,))])
def test_a_step_is_the_same_after_a_trip_through_json(step: HostStep | DeviceStep) -> None:
    assert from_json(json.loads(json.dumps(to_json(step)))) == step


def test_what_was_never_measured_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="none reached this one"):
        Standardize().fit([])
    with pytest.raises(InvalidRequest, match="once it is fitted"):
        Standardize().on_batch(np.zeros((1, 2, 3), np.float32), None)  # type: ignore[arg-type]
