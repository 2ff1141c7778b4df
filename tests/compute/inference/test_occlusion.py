from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mms_sdk.compute.inference import occlusion


@pytest.mark.parametrize(
    ("shape", "dtype", "picture", "parts"),
    [
        ((8, 6, 3), np.uint8, True, 48),
        ((224, 200, 3), np.uint8, True, 64),
        ((9, 1, 1), np.uint8, True, 8),
        ((48,), np.int32, False, 48),
        ((1000, 2), np.float32, False, 64),
        ((1,), np.float32, False, 1),
        ((), np.float32, False, 1),
    ],
)
def test_each_position_is_hidden_once_and_alone(shape: Any, dtype: Any, picture: bool, parts: int) -> None:
    row = np.random.default_rng(0).integers(1, 200, shape).astype(dtype)

    cut = occlusion.cut(row, picture=picture)

    assert cut.hidden.shape == (parts, *shape)
    assert cut.hidden.dtype == dtype
    blank = np.rint(row.mean((0, 1))).astype(dtype) if picture else dtype(0)
    for part in range(parts):
        where = cut.number == part
        assert where.any()
        assert (cut.hidden[part][where] == blank).all()
        assert (cut.hidden[part][~where] == row[~where]).all()


def test_of_a_linear_score_the_saliency_is_each_weight_times_its_input() -> None:
    rng = np.random.default_rng(1)
    row, weights = rng.normal(size=(2, 12)).astype(np.float32)
    cut = occlusion.cut(row, picture=False)

    found = cut.saliency(float(row @ weights), cut.hidden @ weights)

    np.testing.assert_allclose(found, row * weights, atol=1e-5)


def test_the_picture_shows_what_speaks_for_in_red_and_against_in_blue() -> None:
    row = np.full((2, 2, 1), 100, np.uint8)

    png = occlusion.as_png(row, np.array([[1.0, -1.0], [0.0, 0.5]], np.float32))

    shown = np.asarray(Image.open(io.BytesIO(png)))
    assert shown.tolist() == [[[255, 0, 0], [0, 0, 255]], [[100, 100, 100], [177, 50, 50]]]
    assert np.asarray(Image.open(io.BytesIO(occlusion.as_png(row, np.zeros((2, 2)))))).tolist() == [[[100] * 3] * 2] * 2
