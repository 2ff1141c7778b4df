"""The compiled step and evaluation, against optax and NumPy written out, on one device and on meshes of eight."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh
from numpy.typing import NDArray
from small_pictures import LABELS, SHAPE, SmallData, metrics_of, mlp_scores, noisy

from mms_sdk.compute.data.load import Loader
from mms_sdk.compute.data.preprocess.image import Normalize, RandomFlip, RandomShift
from mms_sdk.compute.data.preprocess.pipeline import Pipeline
from mms_sdk.compute.models import MLP
from mms_sdk.compute.models.functional import functional
from mms_sdk.compute.sharding.mesh import make_mesh
from mms_sdk.compute.sharding.rules import PartitionRules
from mms_sdk.compute.training.loop import evaluate
from mms_sdk.compute.training.program import Program
from mms_sdk.compute.training.tasks import Classification
from mms_sdk.errors import InvalidRequest
from mms_sdk.storage.reader import Position

FAMILY = MLP(num_classes=3, widths=(16,))
MESHES = [
    pytest.param({"data": 8}, id="data=8"),
    pytest.param({"data": 4, "fsdp": 2}, id="data=4,fsdp=2"),
    pytest.param({"fsdp": 8}, id="fsdp=8", marks=pytest.mark.slow),
]
Batch = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def one_device() -> Mesh:
    return jax.make_mesh((1,), ("data",), devices=jax.devices()[:1], axis_types=(AxisType.Auto,))


def make_program(
    *,
    model: Any = FAMILY,
    optimizer: Any = None,
    steps: Any = (),
    mesh: Mesh | None = None,
    seed: int = 0,
    rules: PartitionRules = PartitionRules(),  # noqa: B008  (frozen)
    task: Any = Classification(),  # noqa: B008  (frozen)
    **options: Any,
) -> Program:
    return Program(
        model=functional(model, SHAPE),
        task=task,
        optimizer=optimizer or optax.adam(1e-2),
        pipeline=Pipeline.of(steps),
        rules=rules,
        mesh=mesh or one_device(),
        seed=seed,
        input_shape=SHAPE,
        labels=LABELS,
        **options,
    )


def batches_of(count: int, *, rows: int = 16) -> list[Batch]:
    rng = np.random.default_rng(3)
    return [
        (
            rng.integers(0, 256, (rows, *SHAPE), np.uint8),
            rng.integers(0, 3, rows).astype(np.int32),
            np.ones(rows, np.float32),
        )
        for _ in range(count)
    ]


def run(program: Program, batches: list[Batch]) -> tuple[Any, list[float]]:
    """State after the batches, and the loss of each."""
    leaves, losses = program.flat(program.init()), []
    for batch in batches:
        placed = jax.device_put(batch, program.batch_sharding)
        leaves, totals = program.step(leaves, program.zero_totals(), *placed)
        losses.append(program.averages(totals, "train")["train/loss"])
    return program.tree(leaves), losses


@pytest.mark.parametrize(
    "optimizer",
    [optax.adamw(1e-2), optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1, momentum=0.9))],
    ids=["adamw", "clipped sgd"],
)
def test_a_step_equals_one_written_by_hand_with_optax(optimizer: Any) -> None:
    program = make_program(optimizer=optimizer, task=Classification(label_smoothing=0.1))
    batches = [(*batch[:2], np.arange(16, dtype=np.float32) % 3) for batch in batches_of(4)]

    def loss(params: Any, pictures: Any, labels: Any, weight: Any) -> Any:
        x = pictures.reshape(16, 12) / np.float32(255)
        x = jnp.maximum(x @ params["layers/0/kernel"] + params["layers/0/bias"][None], 0)
        x = x @ params["head/kernel"] + params["head/bias"][None]
        log_probabilities = x - jnp.log(jnp.exp(x).sum(1, keepdims=True))
        targets = jnp.eye(3)[labels] * 0.9 + 0.1 / 3
        return (-(targets * log_probabilities).sum(1) * weight).sum() / weight.sum()

    @jax.jit
    def step(params: Any, opt: Any, *batch: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, *batch)
        updates, opt = optimizer.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt, value

    params = program.init().params
    opt, losses = jax.jit(optimizer.init)(params), []
    for batch in batches:
        params, opt, value = step(params, opt, *batch)
        losses.append(float(value))

    state, ours = run(program, batches)

    assert ours == pytest.approx(losses, rel=1e-5)
    for path, value in params.items():
        np.testing.assert_allclose(state.params[path], value, rtol=1e-4, atol=1e-6, err_msg=path)
    for one, other in zip(jax.tree.leaves(state.opt), jax.tree.leaves(opt), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    assert int(state.step) == 4


@pytest.fixture(scope="module")
def curve() -> tuple[Any, list[float]]:
    """State and losses on one device; batch normalisation, dropout and augmentation included."""
    return run(noisy_program(None), batches_of(12))


def noisy_program(mesh: Mesh | None) -> Program:
    return make_program(model=noisy, steps=[RandomFlip(), RandomShift(1)], mesh=mesh)


@pytest.mark.parametrize("axes", MESHES)
def test_the_loss_curve_is_the_same_on_every_mesh(axes: dict[str, int], curve: Any) -> None:
    alone, wanted = curve

    state, losses = run(noisy_program(make_mesh(axes)), batches_of(12))

    np.testing.assert_allclose(losses, wanted, rtol=2e-4)
    for path, value in alone.params.items():
        np.testing.assert_allclose(state.params[path], value, rtol=1e-2, atol=1e-4, err_msg=path)
    for path, value in alone.rest.items():
        np.testing.assert_allclose(state.rest[path], value, rtol=1e-3, atol=1e-5, err_msg=path)


def test_parameters_and_what_the_optimiser_keeps_of_them_really_are_divided() -> None:
    rules = PartitionRules((("head/kernel", ("data", None)),))
    program = make_program(mesh=make_mesh({"data": 4, "fsdp": 2}), rules=rules)

    state, _ = run(program, batches_of(2))

    shards = {
        "layers/0/kernel": (12, 8),  # 12×16: the 16 over fsdp=2
        "layers/0/bias": (8,),
        "head/kernel": (4, 3),  # by the rule, over data=4
        "head/bias": (3,),  # 3 does not divide: whole everywhere
    }
    adam = state.opt[0]
    for path, shape in shards.items():
        for held in (state.params[path], adam.mu[path], adam.nu[path]):
            assert {shard.data.shape for shard in held.addressable_shards} == {shape}, path
    assert adam.count.sharding.is_fully_replicated
    assert state.step.sharding.is_fully_replicated


def test_a_step_takes_the_memory_of_the_state_it_is_given() -> None:
    program = make_program()
    leaves = program.flat(program.init())

    after, _ = program.step(leaves, program.zero_totals(), *jax.device_put(batches_of(1)[0], program.batch_sharding))

    assert all(leaf.is_deleted() for leaf in leaves)
    assert not any(leaf.is_deleted() for leaf in after)


def test_padding_rows_change_neither_the_step_nor_the_sums() -> None:
    (pictures, labels, weight) = batches_of(1)[0]
    weight[11:] = 0
    garbage = np.where(weight[:, None, None, None] == 0, 255, pictures), np.where(weight == 0, 2, labels), weight
    short = pictures[:11], labels[:11], np.ones(11, np.float32)

    one, (loss,) = run(make_program(), [(pictures, labels, weight)])
    other, (same,) = run(make_program(), [garbage])
    exact, (wanted,) = run(make_program(), [short])

    assert loss == same == pytest.approx(wanted, rel=1e-6)
    for path, value in one.params.items():
        np.testing.assert_array_equal(value, other.params[path])
        np.testing.assert_allclose(value, exact.params[path], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("batch_size", [8, 16, 24, 64])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_metrics_over_a_split_are_exact_whatever_the_batch_size(pets: SmallData, split: str, batch_size: int) -> None:
    program = make_program(mesh=make_mesh({"data": -1}))
    state = program.init()
    loader = Loader(
        pets.open(),
        split,
        pipeline=program.pipeline,
        batch_size=batch_size,
        seed=None,
        sharding=program.batch_sharding,
    )

    measured = program.averages(evaluate(program, state, loader), split)

    pictures, labels = pets.rows(split)
    assert measured == pytest.approx(metrics_of(mlp_scores(state.params, pictures), labels, split), rel=1e-5)


def test_metrics_of_no_rows_are_zero_and_not_a_division_by_zero() -> None:
    program = make_program()

    assert program.averages(program.zero_totals(), "val") == {"val/loss": 0.0, "val/accuracy": 0.0}


def test_running_averages_and_dropout_play_no_part_in_evaluation() -> None:
    program = make_program(model=noisy, steps=[RandomFlip()])
    state, _ = run(program, batches_of(3))
    batch = jax.device_put(batches_of(1)[0], program.batch_sharding)

    one, other = (program.evaluate(program.served(state), state.rest, program.zero_totals(), *batch) for _ in range(2))

    np.testing.assert_array_equal(one, other)


def test_what_is_random_in_a_step_depends_on_the_seed_and_the_number_of_the_step() -> None:
    batches = batches_of(1) * 2  # the same batch twice
    frozen = {"optimizer": optax.set_to_zero(), "model": noisy, "steps": [RandomShift(1)]}

    _, losses = run(make_program(**frozen), batches)
    _, again = run(make_program(**frozen), batches)
    _, other = run(make_program(**frozen, seed=1), batches)

    assert losses == again
    assert losses[0] != losses[1]
    assert losses[0] != other[0]


def test_without_anything_random_the_same_batch_gives_the_same_loss_in_every_step() -> None:
    _, losses = run(make_program(optimizer=optax.set_to_zero()), batches_of(1) * 3)

    assert len(set(losses)) == 1


def test_a_state_comes_back_from_named_arrays_as_it_was() -> None:
    program = make_program(model=noisy, optimizer=optax.chain(optax.clip(1.0), optax.adamw(1e-3)))
    state, _ = run(program, batches_of(2))
    totals = program.zero_totals() + 3

    named = program.to_arrays(state, totals)
    back, sums = program.from_arrays(named)

    assert jax.tree.structure(back) == jax.tree.structure(state)
    assert jax.tree.all(jax.tree.map(np.array_equal, back, state))
    np.testing.assert_array_equal(sums, totals)
    target = program.target()
    assert jax.tree.structure(target) == jax.tree.structure(named)
    assert jax.tree.all(
        jax.tree.map(lambda want, has: want.sharding == has.sharding, target["params"], named["params"])
    )


def test_the_number_of_parameters_is_that_of_the_arrays() -> None:
    assert make_program().parameters() == 12 * 16 + 16 + 16 * 3 + 3


def test_preprocessing_on_the_device_runs_inside_the_step() -> None:
    steps = [Normalize(mean=(0.5,), std=(0.25,))]
    batch = batches_of(1)[0]

    state, (loss,) = run(make_program(optimizer=optax.set_to_zero(), steps=steps), [batch])

    scores = mlp_scores(state.params, (batch[0] / np.float32(255) - 0.5) / 0.25)
    assert loss == pytest.approx(metrics_of(scores, batch[1], "x")["x/loss"], rel=1e-5)


def test_a_model_with_another_number_of_scores_is_refused() -> None:
    with pytest.raises(InvalidRequest) as refused:
        make_program(model=MLP(num_classes=7)).init()

    assert refused.value.message == (
        "the model gives one score a class, shape (batch, 3); got (2, 7) for a batch of 2; set its num_classes to 3"
    )


class Picky(nnx.Module):
    """Takes rows of 99 values."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(99, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(x.reshape(x.shape[0], -1))


def transposing(params: Any, x: Any) -> Any:
    return jnp.einsum("bhw,wc->bc", x, params["kernel"])


def looking_too_far(params: Any, x: Any) -> Any:
    return x.reshape(x.shape[0], x.shape[5]) @ params["kernel"]


def init(key: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"kernel": jnp.zeros((12, 3))}


@pytest.mark.parametrize(
    "model",
    [lambda rngs: Picky(rngs=rngs), (init, transposing), (init, looking_too_far)],
    ids=["nnx", "einsum", "index"],
)
def test_a_model_that_fails_on_the_shape_of_the_pictures_is_refused_with_that_shape(model: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        make_program(model=model).init()

    assert "batches of shape (batch, 4, 3, 1)" in refused.value.message
    assert refused.value.__cause__ is not None
    assert str(refused.value.__cause__) in refused.value.message


def test_batches_in_host_memory_are_used_as_they_are_on_one_cpu_and_placed_on_several(pets: SmallData) -> None:
    def first(program: Program) -> Any:
        options = {"pipeline": program.pipeline, "batch_size": 16, "seed": 0, "sharding": program.batch_sharding}
        return next(Loader(pets.open(), "train", **options).epoch(Position()))

    alone, divided = first(make_program()), first(make_program(mesh=make_mesh({"data": -1})))

    assert isinstance(alone.inputs, np.ndarray)
    assert divided.inputs.addressable_shards[0].data.shape == (2, *SHAPE)
    np.testing.assert_array_equal(alone.inputs, divided.inputs)
    np.testing.assert_array_equal(alone.labels, divided.labels)
    np.testing.assert_array_equal(alone.weight, divided.weight)
    assert alone.position == divided.position == Position(epoch=0, batch=1)


def test_one_compilation_serves_full_and_padded_batches(pets: SmallData) -> None:
    program = make_program()
    loader = Loader(
        pets.open(), "train", pipeline=program.pipeline, batch_size=16, seed=0, sharding=program.batch_sharding
    )
    leaves, totals = program.flat(program.init()), program.zero_totals()

    for _ in range(2):
        for batch in loader.epoch(Position()):
            leaves, totals = program.step(leaves, totals, batch.inputs, batch.labels, batch.weight)

    assert program.step._cache_size() == 1
    assert program.averages(totals, "train")["train/loss"] > 0
    np.testing.assert_equal(np.asarray(totals)[-2], 2 * 70)


@pytest.mark.slow
def test_hundreds_of_evaluation_batches_on_several_devices_do_not_wait_for_one_another_for_ever(
    pets: SmallData,
) -> None:
    # Without a bound on the batches in flight, XLA's CPU devices run out of threads and end the process after 60 s.
    program = make_program(mesh=make_mesh({"data": 8}))
    loader = Loader(
        pets.open(), "train", pipeline=program.pipeline, batch_size=8, seed=None, sharding=program.batch_sharding
    )
    one_epoch = loader.epoch
    loader.epoch = lambda at: (batch for _ in range(80) for batch in one_epoch(at))  # type: ignore[method-assign]

    totals = evaluate(program, program.init(), loader)

    np.testing.assert_equal(np.asarray(totals)[-2], 80 * 70)
