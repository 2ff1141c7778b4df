from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from mms_sdk.compute.data.preprocess.image import Normalize, RandomFlip, RandomRotate, RandomShift, Resize
from mms_sdk.errors import InvalidRequest


def pictures(rows: int, height: int, width: int, channels: int = 2) -> Any:
    return np.random.default_rng(0).random((rows, height, width, channels), np.float32)


def bilinear(picture: np.ndarray, y: float, x: float) -> np.ndarray:
    """A value between pixels, pixels beyond the edge being those of the edge."""
    height, width, _ = picture.shape
    y0, x0 = int(np.floor(y)), int(np.floor(x))
    value = np.zeros(picture.shape[2])
    for row, wy in ((y0, y0 + 1 - y), (y0 + 1, y - y0)):
        for column, wx in ((x0, x0 + 1 - x), (x0 + 1, x - x0)):
            value += wy * wx * picture[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
    return value


# Resize -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_gives_the_size_asked_for_as_pillow_does(channels: int) -> None:
    row = np.random.default_rng(0).integers(0, 256, (20, 30, channels), np.uint8)

    found = Resize(8, 12).on_row(row)

    bands = [Image.fromarray(row[:, :, band]).resize((12, 8), Image.Resampling.BILINEAR) for band in range(channels)]
    np.testing.assert_array_equal(found, np.stack([np.asarray(band) for band in bands], -1))
    assert Resize(8).on_row(row).shape == (8, 8, channels)
    assert Resize(8).shape((20, 30, channels)) == (8, 8, channels)


@pytest.mark.parametrize(("height", "width"), [(0, None), (-1, 5), (5, 0)])
def test_a_picture_without_pixels_is_refused(height: int, width: int | None) -> None:
    with pytest.raises(InvalidRequest, match=rf"at least one pixel a side; got Resize\({height}, {width}\)"):
        Resize(height, width)


# Normalize --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_mean_and_deviation_are_those_of_all_pixels_however_they_are_batched(channels: int) -> None:
    rows = pictures(50, 6, 7, channels)

    fitted = Normalize().fit(iter(np.array_split(rows, [1, 3, 30])))

    np.testing.assert_allclose(fitted.mean, rows.astype(np.float64).mean((0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(fitted.std, rows.astype(np.float64).std((0, 1, 2)), rtol=1e-6)
    out = np.asarray(fitted.on_batch(rows, None))
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(out.std((0, 1, 2)), 1, atol=1e-5)


def test_what_is_given_is_kept_and_only_the_rest_is_measured() -> None:
    rows = pictures(10, 4, 4)

    assert Normalize(mean=(0.5, 0.5)).fit([rows]).mean == (0.5, 0.5)
    np.testing.assert_allclose(Normalize(mean=(0.5, 0.5)).fit([rows]).std, rows.std((0, 1, 2)), rtol=1e-4)
    given = Normalize(mean=(0.5, 0.5), std=(2.0, 4.0))
    assert given.fit(iter(())) == given
    np.testing.assert_allclose(given.on_batch(rows, None), (rows - 0.5) / np.array([2.0, 4.0]), rtol=1e-6)


def test_a_constant_channel_is_not_blown_up() -> None:
    rows = np.full((5, 4, 4, 2), 0.25, np.float32)
    rows[:, :, :2, 1] = 0.75

    fitted = Normalize().fit([rows])

    assert fitted.std is not None
    assert fitted.std[0] == 1.0
    np.testing.assert_allclose(np.asarray(fitted.on_batch(rows, None))[..., 0], 0, atol=1e-6)


def test_a_step_that_has_seen_no_rows_says_so_instead_of_giving_nan() -> None:
    with pytest.raises(InvalidRequest, match="none reached this one; give it mean= and std="):
        Normalize().fit(iter(()))
    with pytest.raises(InvalidRequest, match="once it is fitted; call fit"):
        Normalize().on_batch(pictures(1, 2, 2), None)


# Random steps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [RandomFlip(), RandomShift(2), RandomRotate(30.0)], ids=repr)
def test_a_random_step_does_nothing_without_a_key_and_the_same_with_the_same_key(step: Any) -> None:
    rows = pictures(16, 6, 5)
    one, again, other = (np.asarray(step.on_batch(rows, jax.random.key(seed))) for seed in (0, 0, 1))

    np.testing.assert_array_equal(step.on_batch(rows, None), rows)
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    assert one.shape == rows.shape
    assert one.dtype == np.float32
    assert step.fit([rows]) is step
    assert step.shape((6, 5, 2)) == (6, 5, 2)


@pytest.mark.parametrize("step", [RandomShift(0), RandomRotate(0.0)], ids=repr)
def test_a_step_of_no_reach_does_nothing(step: Any) -> None:
    rows = pictures(3, 4, 4)

    np.testing.assert_array_equal(step.on_batch(rows, jax.random.key(0)), rows)


def test_about_half_of_the_pictures_are_mirrored_left_to_right() -> None:
    rows = pictures(200, 3, 4)

    out = np.asarray(RandomFlip().on_batch(rows, jax.random.key(0)))

    mirrored = [np.array_equal(found, picture[:, ::-1]) for found, picture in zip(out, rows, strict=True)]
    kept = [np.array_equal(found, picture) for found, picture in zip(out, rows, strict=True)]
    assert all(one != other for one, other in zip(mirrored, kept, strict=True))
    assert 65 < sum(mirrored) < 135  # five standard deviations


def test_a_shift_is_a_window_of_the_picture_with_its_edges_repeated() -> None:
    rows, reach = pictures(300, 5, 6), 2
    out = np.asarray(RandomShift(reach).on_batch(rows, jax.random.key(0)))
    y, x = np.mgrid[0:5, 0:6]
    offsets = [(dy, dx) for dy in range(-reach, reach + 1) for dx in range(-reach, reach + 1)]

    found = []
    for moved, picture in zip(out, rows, strict=True):
        matches = [
            (dy, dx)
            for dy, dx in offsets
            if np.array_equal(moved, picture[np.clip(y + dy, 0, 4), np.clip(x + dx, 0, 5)])
        ]
        assert len(matches) == 1
        found += matches

    assert set(found) == set(offsets)
    assert max(found.count(offset) for offset in offsets) < 12 + 5 * 12**0.5


def test_a_turn_samples_between_pixels_around_the_middle() -> None:
    rows, degrees = pictures(6, 7, 6), 30.0
    key = jax.random.key(4)
    limit = np.deg2rad(degrees)
    angles = np.asarray(jax.random.uniform(key, (6,), minval=-limit, maxval=limit))

    out = np.asarray(RandomRotate(degrees).on_batch(rows, key))

    for picture, turned, angle in zip(rows, out, angles, strict=True):
        for row in range(7):
            for column in range(6):
                y, x = row - 3.0, column - 2.5
                from_y = np.cos(angle) * y + np.sin(angle) * x + 3.0
                from_x = np.cos(angle) * x - np.sin(angle) * y + 2.5
                np.testing.assert_allclose(turned[row, column], bilinear(picture, from_y, from_x), atol=1e-5)
    assert angles.min() < 0 < angles.max()


def test_a_turn_by_a_quarter_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pictures(2, 5, 5)
    monkeypatch.setattr(jax.random, "uniform", lambda *_, **__: np.array([np.pi / 2, -np.pi / 2], np.float32))

    out = np.asarray(RandomRotate(90.0).on_batch(rows, jax.random.key(0)))

    np.testing.assert_allclose(out[0], np.rot90(rows[0], k=1), atol=1e-5)
    np.testing.assert_allclose(out[1], np.rot90(rows[1], k=-1), atol=1e-5)
