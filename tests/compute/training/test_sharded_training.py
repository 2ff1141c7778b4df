"""Training on meshes of eight devices: the same losses on every one of them, and what a person may do by hand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec
from small_pictures import SHAPE, SmallData

import mms_sdk as mms
from mms_sdk.compute.data.preprocess.pipeline import Pipeline
from mms_sdk.compute.models.functional import functional
from mms_sdk.compute.models.moe import MoE
from mms_sdk.compute.sharding.mesh import make_mesh
from mms_sdk.compute.training.program import Program
from mms_sdk.compute.training.tasks import Classification
from mms_sdk.errors import InvalidRequest

init = nnx.initializers.lecun_normal()
SIZES = (1, 2, 4, 8)
MESHES = [
    {"data": data, "fsdp": fsdp, "tensor": tensor}
    for data in SIZES
    for fsdp in SIZES
    for tensor in SIZES
    if data * fsdp * tensor == 8
]
QUICK = {"data": 2, "fsdp": 2, "tensor": 2}


def linear(inputs: int, outputs: int, names: Any, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, kernel_init=nnx.with_partitioning(init, names), rngs=rngs)


class Perceptron(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up = linear(prod(SHAPE), 16, (None, "tensor"), rngs)
        self.head = linear(16, 3, ("tensor", None), rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(nnx.relu(self.up(x.reshape(x.shape[0], prod(SHAPE)))))


class Attentive(nnx.Module):
    """The four lines of a picture look at one another, with eight heads."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = linear(3, 16, (None, None), rngs)
        self.into = linear(16, 48, (None, "tensor"), rngs)
        self.out = linear(16, 16, ("tensor", None), rngs)
        self.head = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.embed(x[..., 0])
        query, key, value = jnp.moveaxis(self.into(x).reshape(*x.shape[:2], 3, 8, 2), 2, 0)
        seen = mms.sharding.ring_attention(query, key, value, causal=True)
        return self.head((x + self.out(seen.reshape(x.shape))).mean(1))


class Expert(nnx.Module):
    """One layer of experts."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Linear(3, 8, rngs=rngs)
        self.experts = MoE(8, 8, experts=4, capacity_factor=None, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.embed(x[..., 0])
        return self.head((x + self.experts(x)).mean(1))


@dataclass(frozen=True, kw_only=True)
class ByHand(Classification):
    """Cross-entropy whose sum over devices is written by hand."""

    def sums(self, outputs: jax.Array, labels: jax.Array, weight: jax.Array) -> Any:
        mesh = mms.sharding.current_mesh()
        whole = super().sums
        if mesh is None:
            return whole(outputs, labels, weight)

        def of_part(*rows: jax.Array) -> Any:
            return jax.lax.psum(whole(*rows), ("data", "fsdp"))

        rows = PartitionSpec(("data", "fsdp"))
        return jax.shard_map(of_part, mesh=mesh, in_specs=rows, out_specs=PartitionSpec())(outputs, labels, weight)


def losses(model: Any, mesh: Any, *, task: Any = None, steps: int = 4) -> list[float]:
    """Of a few steps on the same batches."""
    program = Program(
        model=functional(model, SHAPE),
        task=task or Classification(),
        optimizer=optax.adam(1e-2),
        pipeline=Pipeline.of(()),
        rules=mms.PartitionRules(),
        mesh=mesh,
        seed=0,
        input_shape=SHAPE,
        labels=("a", "b", "c"),
    )
    rng = np.random.default_rng(3)
    leaves, out = program.flat(program.init()), []
    for _ in range(steps):
        pictures = rng.integers(0, 256, (16, *SHAPE), np.uint8)
        batch = (pictures, rng.integers(0, 3, 16).astype(np.int32), np.ones(16, np.float32))
        placed = jax.device_put(batch, program.batch_sharding)
        leaves, totals = program.step(leaves, program.zero_totals(), *placed)
        out.append(program.averages(totals, "train")["train/loss"])
    return out


@cache
def alone(model: Any) -> list[float]:
    """The same on one device."""
    return losses(model, make_mesh({"data": 1}, jax.devices()[:1]))


@pytest.mark.parametrize("model", [Perceptron, Attentive])
@pytest.mark.parametrize(
    "sizes", [pytest.param(each, id=str(each), marks=() if each == QUICK else pytest.mark.slow) for each in MESHES]
)
def test_every_mesh_of_eight_gives_the_losses_of_one_device(model: Any, sizes: dict[str, int]) -> None:
    np.testing.assert_allclose(losses(model, make_mesh(sizes)), alone(model), rtol=2e-5)


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        (Attentive, {"data": 2, "sequence": 4}),
        pytest.param(Attentive, {"data": 2, "sequence": 2, "tensor": 2}, marks=pytest.mark.slow),
        (Expert, {"data": 2, "expert": 4}),
        pytest.param(Expert, {"data": 2, "fsdp": 2, "expert": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_layers_that_exchange_by_hand_find_the_mesh_of_the_trainer(model: Any, sizes: dict[str, int]) -> None:
    np.testing.assert_allclose(losses(model, make_mesh(sizes)), alone(model), rtol=2e-5)


def test_a_loss_may_add_up_over_the_devices_by_hand() -> None:
    mesh = make_mesh({"data": 4, "fsdp": 2})

    np.testing.assert_allclose(losses(Perceptron, mesh, task=ByHand()), alone(Perceptron), rtol=2e-5)


def trainer(**options: Any) -> mms.Trainer:
    return mms.Trainer(model=partial(Perceptron), epochs=1, batch_size=16, **options)


def test_a_replicated_run_holds_every_parameter_whole_on_every_device(pets: SmallData) -> None:
    told = trainer(mesh="replicated").sharding(pets)
    result = trainer(mesh="replicated").fit(pets, progress="none")

    assert {(each.spec, each.bytes_per_device == each.bytes) for each in told.placements} == {((), True)}
    assert result.mesh == "8 cpu devices: data=8"
    for value in result.best.state.params.values():
        assert value.sharding.is_fully_replicated
    assert trainer(mesh="replicated").describe()["mesh"] == "replicated"
    with pytest.raises(InvalidRequest, match="replicated mesh keeps every parameter whole"):
        trainer(mesh="replicated", rules=mms.PartitionRules((("head", ("data",)),)))


def test_the_report_says_where_the_trainer_then_puts_each_parameter(pets: SmallData) -> None:
    asked = trainer(mesh=QUICK, rules=mms.PartitionRules((("head/kernel", ("fsdp", None)),)))

    told = {each.path: each for each in asked.sharding(pets).placements}
    params = asked.fit(pets, progress="none").best.state.params

    assert {path: each.decided_by for path, each in told.items()} == {
        "head/bias": "nothing",
        "head/kernel": "rule 'head/kernel'",
        "up/bias": "fsdp",
        "up/kernel": "names (None, 'tensor')",
    }
    for path, value in params.items():
        assert {shard.data.nbytes for shard in value.addressable_shards} == {told[path].bytes_per_device}, path


def test_a_report_records_no_job_and_a_rule_without_a_parameter_trains_nothing(pets: SmallData) -> None:
    before = pets.workspace.catalog.jobs.list()

    trainer(mesh=QUICK).sharding(pets)
    with pytest.raises(InvalidRequest, match=r"'haed' matches none of 4; near are \['head"):
        trainer(rules=mms.PartitionRules((("haed", ()),))).fit(pets, progress="none")

    assert pets.workspace.catalog.jobs.list() == before


def test_a_run_over_chosen_devices_stays_on_them_and_is_continued_there(pets: SmallData) -> None:
    mesh = mms.sharding.make_mesh({"data": 2, "fsdp": 2}, jax.devices()[4:])
    rules = mms.PartitionRules((("up/kernel", (None, ("data", "fsdp"))),))

    result = trainer(mesh=mesh, rules=rules).fit(pets, progress="none")

    assert result.mesh == "4 cpu devices: data=2, fsdp=2"
    kernel = result.best.state.params["up/kernel"]
    assert {device.id for device in kernel.sharding.device_set} == {4, 5, 6, 7}
    again = trainer(mesh=mesh, rules=rules).fit(pets, resume=result.job, progress="none")
    assert again.history == result.history
