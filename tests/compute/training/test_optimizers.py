"""Optimisers of every make: groups of parameters, factored moments, others' transformations; whole and divided."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
import pytest
from test_program import batches_of, make_program, run

from mms_sdk.compute.sharding.mesh import make_mesh
from mms_sdk.compute.training.lora import LoRA
from mms_sdk.compute.training.step_options import StepOptions


def by_path(params: Any) -> Any:
    return {path: "head" if path.startswith("head/") else "rest" for path in params}


OPTIMIZERS = {
    "groups": lambda: optax.multi_transform({"head": optax.adam(1e-2), "rest": optax.sgd(1e-2, momentum=0.9)}, by_path),
    "masked": lambda: optax.masked(optax.adamw(1e-2), lambda params: {path: "kernel" in path for path in params}),
    "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=4),
    "sm3": lambda: optax.sm3(1e-2),
    "muon": lambda: optax.contrib.muon(1e-2),
    "adamw": lambda: optax.adamw(1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("axes", [None, pytest.param({"data": 2, "fsdp": 4}, marks=pytest.mark.slow)])
def test_any_optimiser_trains_as_plain_optax_does(name: str, axes: dict[str, int] | None) -> None:
    optimizer = OPTIMIZERS[name]()
    program = make_program(optimizer=optimizer, mesh=None if axes is None else make_mesh(axes))
    params = dict(program.init().params)
    opt, loss = optimizer.init(params), []

    def mean_loss(params: Any, pictures: Any, labels: Any, weight: Any) -> Any:
        outputs, _ = program.model.apply(params, {}, pictures.astype(np.float32) / np.float32(255), None)
        return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()

    for batch in batches_of(3):
        value, grads = jax.value_and_grad(mean_loss)(params, *batch)
        updates, opt = optimizer.update(grads, opt, params)
        params = optax.apply_updates(params, updates)
        loss.append(float(value))

    state, losses = run(program, batches_of(3))

    assert losses == pytest.approx(loss, rel=1e-4)
    for path, value in params.items():
        np.testing.assert_allclose(state.params[path], value, rtol=1e-3, atol=1e-5, err_msg=path)


def test_partition_rules_of_the_model_are_not_those_of_what_a_low_rank_adaptation_adds() -> None:
    from mms_sdk.compute.sharding.rules import PartitionRules

    rules = PartitionRules((("layers/0/kernel", (None, "fsdp")),))
    program = make_program(
        mesh=make_mesh({"data": 2, "fsdp": 4}), rules=rules, options=StepOptions(lora=LoRA(rank=2, match="layers"))
    )

    state, _ = run(program, batches_of(2))

    assert {shard.data.shape for shard in state.params["layers/0/kernel"].addressable_shards} == {(12, 4)}
    assert state.params["lora/layers/0/kernel/b"].shape == (2, 16)
