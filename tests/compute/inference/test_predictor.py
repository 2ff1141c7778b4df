from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from made_artifacts import linear, softmax
from PIL import Image

import tiny_model
from mms_sdk.compute.inference.predictor import BUCKETS, BULK_BUCKETS, Predictor
from mms_sdk.errors import InvalidInput
from tiny_model import Tiny

SHAPE = (4, 5, 1)
KERNEL = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
RESIZE = {"step": "image.resize", "height": 4, "width": 5}


@pytest.fixture(scope="module")
def predictor(tiny: Tiny) -> Predictor:
    """The tiny model with the batch sizes of serving."""
    return Predictor(tiny.artifact)


@pytest.fixture(scope="module")
def gray(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """A model of grey pictures of 4×5."""
    return Predictor(linear(tmp_path_factory.mktemp("gray") / "artifact", KERNEL, shape=SHAPE), buckets=(1, 4))


@pytest.fixture(scope="module")
def resizing(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """A model of colour pictures of any size, made 4×5."""
    kernel = np.random.default_rng(1).normal(size=(60, 4)).astype(np.float32)
    folder = tmp_path_factory.mktemp("resizing") / "artifact"
    return Predictor(linear(folder, kernel, shape=(4, 5, 3), host=[RESIZE]), buckets=(1,))


def png(array: np.ndarray[Any, Any]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


def test_scores_of_a_batch_of_any_size_are_those_of_its_rows_one_by_one(predictor: Predictor) -> None:
    pictures = tiny_model.pictures_of(2 * BUCKETS[-1])
    alone = np.concatenate([predictor.scores(picture[None]) for picture in pictures])

    for size in range(1, len(pictures) + 1):
        start = len(pictures) - size  # other rows meet other neighbours
        scores = predictor.scores(pictures[start:])
        assert scores.shape == (size, 3)
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, alone[start:], atol=1e-6, err_msg=f"{size} rows")

    assert predictor.compiles_after_ready == 0
    assert predictor.scores(pictures[:0]).shape == (0, 3)


def test_scores_are_those_of_the_trained_module(tiny: Tiny, predictor: Predictor) -> None:
    pictures = tiny_model.pictures_of(150, seed=7)
    pictures[0], pictures[1] = 0, 255
    np.testing.assert_allclose(predictor.scores(pictures), tiny.scores(pictures), atol=1e-5)


def test_scores_of_rows_that_are_not_contiguous_are_those_of_a_copy(predictor: Predictor) -> None:
    pictures = tiny_model.pictures_of(12)[::-2]
    np.testing.assert_array_equal(predictor.scores(pictures), predictor.scores(pictures.copy()))


def test_bulk_batch_sizes_say_the_same_as_those_of_serving(tiny: Tiny, predictor: Predictor) -> None:
    pictures = tiny_model.pictures_of(300)
    bulk = Predictor(tiny.artifact, buckets=BULK_BUCKETS)
    np.testing.assert_allclose(bulk.scores(pictures), predictor.scores(pictures), atol=1e-6)
    assert bulk.compiles_after_ready == 0


def test_a_batch_goes_to_the_smallest_bucket_that_holds_it(predictor: Predictor) -> None:
    for rows in range(1, BUCKETS[-1] + 1):
        assert predictor.bucket(rows) == min(size for size in BUCKETS if size >= rows)


def test_a_linear_model_says_what_numpy_says(gray: Predictor) -> None:
    pictures = np.random.default_rng(2).integers(0, 256, (9, *SHAPE), np.uint8)
    expected = softmax(pictures.reshape(9, -1).astype(np.float64) / 255 @ KERNEL)
    np.testing.assert_allclose(gray.scores(pictures), expected, atol=1e-5)


def test_predictions_are_ranked_as_numpy_sorts_them(predictor: Predictor) -> None:
    pictures = tiny_model.pictures_of(40)
    scores = predictor.scores(pictures)

    for told, row in zip(predictor.predict(list(pictures)), scores, strict=True):
        order = np.argsort(row)[::-1]
        assert [entry.label for entry in told.ranked] == [tiny_model.LABELS[index] for index in order]
        np.testing.assert_allclose([entry.score for entry in told.ranked], row[order], atol=1e-6)
        assert sum(entry.score for entry in told.ranked) == pytest.approx(1, abs=1e-5)
        assert told.label == tiny_model.LABELS[row.argmax()]
    assert predictor.predict([]) == []


def test_equal_scores_are_ranked_in_order_of_the_labels(predictor: Predictor) -> None:
    scores = np.array([[0.2, 0.4, 0.4], [0.5, 0, 0.5]], np.float32)
    assert [[label for label, _ in row] for row in predictor.ranked(scores)] == [
        ["bee", "cat", "ant"],
        ["ant", "cat", "bee"],
    ]


@pytest.mark.parametrize("top", [0, 1, 2, 3, 9])
def test_top_keeps_the_best_and_nought_keeps_all(predictor: Predictor, top: int) -> None:
    scores = predictor.scores(tiny_model.pictures_of(10))
    whole = predictor.rank(scores)
    assert [told.ranked for told in predictor.rank(scores, top)] == [told.ranked[: top or 3] for told in whole]
    assert {len(told.ranked) for told in predictor.rank(scores, top)} == {min(top or 3, 3)}


def test_a_file_and_the_array_in_it_are_one_input(predictor: Predictor) -> None:
    for picture in tiny_model.pictures_of(5):
        np.testing.assert_array_equal(predictor.prepare(png(picture)), picture)
        np.testing.assert_array_equal(predictor.prepare(picture), picture)


def test_a_gray_model_takes_files_and_arrays_with_and_without_the_channel(gray: Predictor) -> None:
    picture = np.random.default_rng(3).integers(0, 256, SHAPE, np.uint8)
    for given in (picture, picture[..., 0], png(picture[..., 0]), png(np.repeat(picture, 3, axis=2))):
        np.testing.assert_array_equal(gray.prepare(given), picture)


def test_a_picture_of_any_size_is_resized_as_pillow_resizes(resizing: Predictor) -> None:
    picture = np.random.default_rng(4).integers(0, 256, (9, 7, 3), np.uint8)
    expected = np.asarray(Image.fromarray(picture).resize((5, 4), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resizing.prepare(picture), expected)
    np.testing.assert_array_equal(resizing.prepare(png(picture)), expected)


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint16", "bool", "U1", "O"])
def test_an_array_that_is_not_uint8_is_refused(predictor: Predictor, dtype: str) -> None:
    with pytest.raises(InvalidInput, match=r"a picture is uint8 of shape .*; got .*\(8, 6, 3\); convert"):
        predictor.prepare(np.zeros((8, 6, 3), dtype))


@pytest.mark.parametrize("shape", [(), (8,), (8, 6), (1, 8, 6, 3), (0, 6, 3), (8, 6, 0)])
def test_an_array_that_is_no_picture_is_refused(predictor: Predictor, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match=r"a picture is uint8 of shape .*; got uint8 of shape .*; convert") as told:
        predictor.prepare(np.zeros(shape, np.uint8))
    assert str(shape) in told.value.message


@pytest.mark.parametrize("shape", [(6, 8, 3), (8, 6, 1), (8, 6, 4), (9, 6, 3), (16, 12, 3)])
def test_a_picture_of_another_shape_is_refused(predictor: Predictor, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match=r"takes pictures of shape \(8, 6, 3\) .*; got .*; resize or conv") as told:
        predictor.prepare(np.zeros(shape, np.uint8))
    assert str(shape) in told.value.message


def test_a_file_of_another_size_is_refused(predictor: Predictor) -> None:
    with pytest.raises(InvalidInput, match=r"takes pictures of shape \(8, 6, 3\) .*; got \(5, 6, 3\); resize"):
        predictor.prepare(png(np.zeros((5, 6, 3), np.uint8)))


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 100])
def test_an_array_with_other_channels_is_refused_before_it_is_resized(resizing: Predictor, channels: int) -> None:
    with pytest.raises(InvalidInput, match=rf"takes pictures of shape .*{channels}\); resize or convert"):
        resizing.prepare(np.zeros((9, 7, channels), np.uint8))


@pytest.mark.parametrize("garbage", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"\x80\x04N.", b"x" * 5000])
def test_bytes_that_are_no_picture_are_refused(predictor: Predictor, garbage: bytes) -> None:
    with pytest.raises(InvalidInput, match="not a readable picture"):
        predictor.prepare(garbage)


def test_a_picture_with_too_many_pixels_is_refused(tiny: Tiny) -> None:
    small = Predictor(tiny.artifact, buckets=(1,), max_pixels=47)
    with pytest.raises(InvalidInput, match=r"at most 47 pixels .* 6×8 = 48 pixels"):
        small.prepare(png(np.zeros((8, 6, 3), np.uint8)))


def test_a_predictor_answers_many_threads_at_once(predictor: Predictor) -> None:
    pictures = tiny_model.pictures_of(400)
    expected = predictor.scores(pictures)
    parts = [slice(start, start + 1 + start % 7) for start in range(390)]
    with ThreadPoolExecutor(8) as pool:
        for part, scores in zip(parts, pool.map(lambda part: predictor.scores(pictures[part]), parts), strict=True):
            np.testing.assert_allclose(scores, expected[part], atol=1e-6)
    assert predictor.compiles_after_ready == 0
