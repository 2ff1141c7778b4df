"""Everything between the loss and the new parameters, against optax and NumPy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from small_pictures import metrics_of, noisy
from test_program import SHAPE, batches_of, make_program, run

from mms_sdk.compute.sharding.mesh import make_mesh
from mms_sdk.compute.training.lora import LoRA
from mms_sdk.compute.training.precision import Precision
from mms_sdk.compute.training.program import Program
from mms_sdk.compute.training.step_options import StepOptions
from mms_sdk.errors import InvalidRequest


def program_with(optimizer: Any = None, **options: Any) -> Program:
    return make_program(optimizer=optimizer or optax.sgd(0.5), options=StepOptions(**options))


def poisoned(number: int, count: int = 4) -> list[Any]:
    """Batches, of which one has a weight that is no number."""
    batches = batches_of(count)
    pictures, labels, weight = batches[number]
    batches[number] = pictures, labels, np.where(np.arange(len(weight)) == 3, np.nan, weight).astype(np.float32)
    return batches


@pytest.mark.parametrize("axes", [None, {"data": 4, "fsdp": 2}])
def test_a_batch_in_parts_gives_the_step_of_the_whole_batch(axes: dict[str, int] | None) -> None:
    weighed = [(*batch[:2], (np.arange(16) % 3).astype(np.float32)) for batch in batches_of(3)]
    mesh = None if axes is None else make_mesh(axes)

    whole, losses = run(make_program(mesh=mesh), weighed)
    parts, same = run(make_program(mesh=mesh, options=StepOptions(accumulate=2)), weighed)

    assert same == pytest.approx(losses, rel=1e-5)
    for path, value in whole.params.items():
        np.testing.assert_allclose(parts.params[path], value, rtol=1e-4, atol=1e-6, err_msg=path)


def test_averaged_parameters_follow_the_formula_and_are_what_is_served() -> None:
    program, averages = program_with(ema=0.9), None
    leaves, seen = program.flat(program.init()), []
    for batch in batches_of(5):
        leaves, _ = program.step(leaves, program.zero_totals(), *jax.device_put(batch, program.batch_sharding))
        seen.append({path: np.asarray(value) for path, value in program.tree(leaves).params.items()})
    averages = {path: np.asarray(value) for path, value in program.init().params.items()}
    for step, params in enumerate(seen):
        decay = min(0.9, (1 + step) / (10 + step))
        averages = {path: decay * averages[path] + (1 - decay) * value for path, value in params.items()}

    served = program.served(program.tree(leaves))

    for path, value in averages.items():
        np.testing.assert_allclose(served[path], value, rtol=1e-5, atol=1e-7, err_msg=path)
        assert not np.array_equal(served[path], seen[-1][path])


def test_frozen_parameters_stay_to_the_bit_and_the_optimiser_keeps_nothing_of_them() -> None:
    program = make_program(optimizer=optax.adamw(1e-2), options=StepOptions(freeze=("layers/.*",)))
    before = {path: np.asarray(value) for path, value in program.init().params.items()}

    state, _ = run(program, batches_of(3))

    for path, value in state.params.items():
        assert np.array_equal(value, before[path]) == path.startswith("layers/"), path
    assert set(state.opt[0].mu) == {"head/kernel", "head/bias"}
    assert program.learnt() == 16 * 3 + 3 < program.parameters()


def test_running_averages_of_frozen_layers_stay_as_they_are() -> None:
    frozen, free = (make_program(model=noisy, options=StepOptions(freeze=freeze)) for freeze in (("norm",), ()))
    before = {path: np.asarray(value) for path, value in frozen.init().rest.items()}
    assert before

    still, _ = run(frozen, batches_of(2))
    moved, _ = run(free, batches_of(2))

    assert all(np.array_equal(still.rest[path], value) for path, value in before.items())
    assert any(not np.array_equal(moved.rest[path], value) for path, value in before.items())


class Normalised(nnx.Module):
    """A batch normalisation of all values of a picture, then one linear layer."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        size = int(np.prod(SHAPE))
        self.norm = nnx.BatchNorm(size, rngs=rngs)
        self.head = nnx.Linear(size, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.norm(x.reshape(len(x), -1)))


@pytest.mark.parametrize(("freeze", "by_the_batch"), [(("norm",), False), ((), True)])
def test_a_frozen_batch_normalisation_uses_its_running_averages(freeze: tuple[str, ...], by_the_batch: bool) -> None:
    program, batch = make_program(model=Normalised, options=StepOptions(freeze=freeze)), batches_of(1)[0]
    state = program.init()
    kept = {path: np.asarray(value, np.float64) for path, value in {**state.params, **state.rest}.items()}

    _, (loss,) = run(program, [batch])

    pictures = batch[0].reshape(len(batch[0]), -1) / 255
    if by_the_batch:
        mean, var = pictures.mean(0), pictures.var(0)
    else:
        mean, var = kept["norm/mean"], kept["norm/var"]
    scores = (pictures - mean) / np.sqrt(var + 1e-5) @ kept["head/kernel"] + kept["head/bias"]
    assert loss == pytest.approx(metrics_of(scores, batch[1], "train")["train/loss"], rel=1e-4)


def test_a_low_rank_adaptation_learns_a_product_and_serves_the_sum() -> None:
    lora = LoRA(rank=2, alpha=6.0, match="layers/.*kernel")
    program = program_with(lora=lora)
    before = {path: np.asarray(value) for path, value in program.init().params.items()}
    plain = make_program().init().params

    state, losses = run(program, batches_of(3))

    served = program.served(state)
    a, b = (np.asarray(state.params[f"lora/layers/0/kernel/{half}"]) for half in "ab")
    assert (a.shape, b.shape) == ((12, 2), (2, 16))
    assert np.abs(b).max() > 0  # it was zero
    np.testing.assert_array_equal(state.params["layers/0/kernel"], before["layers/0/kernel"])
    np.testing.assert_allclose(served["layers/0/kernel"], before["layers/0/kernel"] + 3 * a @ b, rtol=1e-5, atol=1e-6)
    assert set(served) == set(plain)
    assert not np.array_equal(served["head/kernel"], before["head/kernel"])
    assert program.learnt() == 12 * 2 + 2 * 16 + 16 * 3 + 3
    assert losses[0] == pytest.approx(run(program_with(), batches_of(1))[1][0], rel=1e-6)  # at first it adds nothing


@pytest.mark.parametrize(
    ("shape", "matrix"),
    [((512, 8, 64), (512, 512)), ((8, 64, 512), (512, 512)), ((3, 3, 64, 128), (576, 128)), ((5, 7), (5, 7))],
)
def test_more_than_two_dimensions_are_taken_as_the_matrix_nearest_to_a_square(shape: Any, matrix: Any) -> None:
    assert LoRA().adapted({"a/kernel": shape}) == {"a/kernel": matrix}


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_lower_precision_keeps_parameters_in_float32_and_learns_nearly_the_same(name: Any) -> None:
    batches = batches_of(6)
    _, wanted = run(program_with(), batches)

    state, losses = run(program_with(precision=Precision(name)), batches)

    np.testing.assert_allclose(losses, wanted, rtol=0.03)
    assert not np.array_equal(losses, wanted)
    assert {value.dtype for value in state.params.values()} == {np.dtype(np.float32)}


def test_fp16_scales_the_loss_halves_the_scale_at_an_overflow_and_leaves_that_step_out() -> None:
    program = program_with(precision=Precision("fp16"))
    before = program.init()

    state, _ = run(program, poisoned(0, 1))

    assert float(state.extra["loss_scale"]) == float(before.extra["loss_scale"]) / 2
    assert int(state.extra["good_steps"]) == 0
    for path, value in before.params.items():
        np.testing.assert_array_equal(state.params[path], value)
    after, _ = run(program, batches_of(3))
    assert int(after.extra["good_steps"]) == 3


def test_a_step_that_is_not_finite_is_left_out_and_counted() -> None:
    program = program_with(on_nan="skip")
    leaves, totals = program.flat(program.init()), program.zero_totals()
    for batch in poisoned(1):
        leaves, totals = program.step(leaves, totals, *jax.device_put(batch, program.batch_sharding))
    good = [batch for number, batch in enumerate(batches_of(4)) if number != 1]

    wanted, _ = run(program_with(), good)

    state = program.tree(leaves)
    assert program.left_out(totals) == 1
    assert np.isfinite(program.averages(totals, "train")["train/loss"])
    assert int(state.step) == 4
    for path, value in wanted.params.items():
        np.testing.assert_allclose(state.params[path], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("remat", ["dots", "all"])
def test_computing_again_in_the_backward_pass_changes_nothing_but_memory(remat: Any) -> None:
    wanted, losses = run(program_with(), batches_of(3))

    state, same = run(program_with(remat=remat), batches_of(3))

    assert same == pytest.approx(losses, rel=1e-6)
    for path, value in wanted.params.items():
        np.testing.assert_allclose(state.params[path], value, rtol=1e-5, atol=1e-7)


def test_a_state_with_all_options_comes_back_from_named_arrays() -> None:
    program = program_with(ema=0.9, precision=Precision("fp16"), lora=LoRA(rank=1, match="layers"))
    state, _ = run(program, batches_of(2))

    back, _ = program.from_arrays(program.to_arrays(state, program.zero_totals()))

    assert jax.tree.structure(back) == jax.tree.structure(state) == jax.tree.structure(program.abstract)
    assert jax.tree.all(jax.tree.map(np.array_equal, back, state))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: StepOptions(accumulate=0), "whole number from 1; got accumulate=0"),
        (lambda: StepOptions(ema=1.0), r"decay in \(0, 1\), e.g. 0.999; got ema=1.0"),
        (lambda: StepOptions(remat="some"), "none, dots, all; got remat='some'"),
        (lambda: StepOptions(on_nan="pray"), "stop, skip, rollback; got on_nan='pray'"),
        (lambda: StepOptions(freeze=("(",)), r"freeze is a regular expression over parameter paths; got '\('"),
        (lambda: Precision("fp8"), "fp32, bf16, fp16; got 'fp8'"),
        (lambda: LoRA(rank=0), "whole number from 1; got rank=0"),
        (lambda: program_with(freeze=("nothing",)).init(), "'nothing' finds none among"),
        (lambda: program_with(freeze=(".",)).init(), r"freeze=\['\.'\] leaves none"),
        (lambda: program_with(lora=LoRA(match="bias")).init(), "match='bias' finds none"),
    ],
)
def test_options_that_cannot_work_are_refused(make: Any, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        make()


class Lopsided(nnx.Module):
    """Says how unevenly its experts are used, as mixtures do: here, the square of one parameter."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.linear, self.share = nnx.Linear(12, 3, rngs=rngs), nnx.Param(jnp.full((), 3.0))
        self.balance_loss = nnx.BatchStat(jnp.zeros(()))

    def __call__(self, x: jax.Array) -> jax.Array:
        self.balance_loss.set_value(self.share.get_value() ** 2)
        return self.linear(x.reshape(x.shape[0], 12))


class Loud(Lopsided):
    """Says also how large the scores of two routers are: here, the cube of the same parameter, and none at all."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        super().__init__(rngs=rngs)
        self.router_z_loss = nnx.BatchStat(jnp.zeros(()))
        self.second = nnx.Dict(router_z_loss=nnx.BatchStat(jnp.zeros(())))

    def __call__(self, x: jax.Array) -> jax.Array:
        self.router_z_loss.set_value(self.share.get_value() ** 3)
        return super().__call__(x)


def test_a_thousandth_of_the_mean_z_loss_is_part_of_what_is_minimised_too() -> None:
    program = make_program(model=Loud, optimizer=optax.sgd(1.0))

    state, _ = run(program, batches_of(1))

    assert float(state.params["share"]) == pytest.approx(3.0 - 0.01 * 2 * 3.0 - 0.001 * 3 * 3.0**2 / 2)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_hundredth_of_how_unevenly_experts_are_used_is_part_of_what_is_minimised(accumulate: int) -> None:
    program = make_program(model=Lopsided, optimizer=optax.sgd(1.0), options=StepOptions(accumulate=accumulate))

    state, _ = run(program, batches_of(1))

    assert float(state.params["share"]) == pytest.approx(3.0 - 0.01 * 2 * 3.0)
