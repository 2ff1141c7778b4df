from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pytest

from mms_sdk.compute.data.preprocess import image
from mms_sdk.compute.data.preprocess.pipeline import DeviceStep, HostStep, Pipeline, from_json, to_json, to_unit
from mms_sdk.errors import Damaged, InvalidRequest

STEPS: list[HostStep | DeviceStep] = [
    image.Resize(8),
    image.Resize(8, 12),
    image.Normalize(),
    image.Normalize(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0)),
    image.RandomFlip(),
    image.RandomShift(2),
    image.RandomRotate(7.5),
]


def batch(rows: int = 4, height: int = 6, width: int = 5, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, height, width, channels), np.uint8)


def test_steps_are_sorted_into_the_host_and_the_device_part_in_their_order() -> None:
    steps = [image.Resize(8), image.RandomFlip(), image.Normalize(mean=(0.0,), std=(1.0,))]

    pipeline = Pipeline.of(steps)

    assert pipeline.host == (steps[0],)
    assert pipeline.device == (steps[1], steps[2])
    assert Pipeline.of([]) == Pipeline()


def test_a_host_step_behind_a_device_step_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"image\.resize stands behind image\.random-flip; move it forward"):
        Pipeline.of([image.RandomFlip(), image.Resize(8)])


@pytest.mark.parametrize("step", [None, "resize", 7, lambda row: row, image.Resize])
def test_what_is_no_step_is_refused_with_an_example(step: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"a preprocessing step is e\.g\. mms\.image\.Resize\(64\)"):
        Pipeline.of([step])


@pytest.mark.parametrize("step", STEPS, ids=repr)
def test_a_step_is_the_same_after_a_trip_through_json(step: HostStep | DeviceStep) -> None:
    assert from_json(json.loads(json.dumps(to_json(step)))) == step


@pytest.mark.parametrize(
    "told", [{}, {"step": "image.explode"}, {"step": "image.resize"}, {"step": "image.resize", "height": 3, "x": 1}]
)
def test_json_that_is_no_step_is_damage_that_names_the_known_ones(told: dict[str, Any]) -> None:
    with pytest.raises(Damaged, match=r"a preprocessing step is one of \['audio\.log-mel', .*'image\.normalize'"):
        from_json(told)


def test_shapes_are_known_before_anything_is_computed() -> None:
    pipeline = Pipeline.of([image.Resize(8, 12), image.RandomFlip(), image.RandomShift()])

    assert pipeline.host_shape((100, 50, 3)) == (8, 12, 3)
    assert pipeline.device_shape((8, 12, 3)) == (8, 12, 3)
    assert Pipeline().host_shape((5, 4, 1)) == (5, 4, 1)
    with pytest.raises(
        InvalidRequest, match=r"these pictures differ in size; begin preprocess with mms\.image\.Resize"
    ):
        Pipeline().host_shape(None)


def test_bytes_become_numbers_from_0_to_1_and_floats_stay() -> None:
    values = np.arange(256, dtype=np.uint8)

    np.testing.assert_allclose(to_unit(values), values / 255, rtol=1e-6)
    assert to_unit(values).dtype == np.float32
    np.testing.assert_array_equal(to_unit(np.array([-3.5, 7.0])), np.array([-3.5, 7.0], np.float32))


def test_outside_training_random_steps_do_nothing() -> None:
    pipeline = Pipeline.of([image.RandomFlip(), image.RandomShift(2), image.RandomRotate(20.0)])

    np.testing.assert_array_equal(pipeline.on_batch(batch()), to_unit(batch()))


def test_in_training_a_key_decides_and_every_step_has_one_of_its_own() -> None:
    pipeline = Pipeline.of([image.RandomFlip(), image.RandomShift(2), image.RandomRotate(20.0)])
    run = jax.jit(pipeline.on_batch)
    one, again, other = (np.asarray(run(batch(32), jax.random.key(seed))) for seed in (0, 0, 1))

    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    twice = Pipeline.of([image.RandomFlip(), image.RandomFlip()]).on_batch(batch(64), jax.random.key(0))
    turned = [not np.array_equal(found, picture) for found, picture in zip(twice, to_unit(batch(64)), strict=True)]
    assert 10 < sum(turned) < 54  # one key for both would turn every picture back


def test_the_device_part_is_the_same_in_a_compiled_program() -> None:
    pipeline = Pipeline.of([image.RandomFlip(), image.Normalize(mean=(0.5,) * 3, std=(0.25,) * 3)])

    np.testing.assert_allclose(
        jax.jit(pipeline.on_batch)(batch(), jax.random.key(3)), pipeline.on_batch(batch(), jax.random.key(3)), rtol=1e-6
    )


def test_fitting_reads_the_rows_once_and_leaves_the_pipeline_as_it_was() -> None:
    reads = []

    def rows() -> Any:
        for part in np.array_split(batch(9), 3):
            reads.append(len(part))
            yield part

    pipeline = Pipeline.of([image.Resize(6, 5), image.RandomFlip(), image.Normalize()])
    fitted = pipeline.fit(rows())

    assert reads == [3, 3, 3]
    assert pipeline.device[1] == image.Normalize()
    np.testing.assert_allclose(fitted.device[1].mean, (batch(9) / 255).mean((0, 1, 2)), rtol=1e-6)
    assert fitted.host == pipeline.host


def test_steps_that_have_nothing_to_learn_do_not_read_the_rows() -> None:
    def rows() -> Any:
        pytest.fail("the rows were read")
        yield

    Pipeline.of([image.RandomFlip(), image.Normalize(mean=(0.0,), std=(1.0,))]).fit(rows())


def test_a_step_of_ones_own_needs_only_the_methods() -> None:
    @dataclass(frozen=True)
    class Half:
        name = "half"

        def fit(self, _batches: Any) -> Half:
            return self

        def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
            return shape

        def on_batch(self, batch: Any, _key: Any) -> Any:
            return batch / 2

    np.testing.assert_allclose(Pipeline.of([Half()]).on_batch(batch()), batch() / 510, rtol=1e-6)  # type: ignore[list-item]
