"""Random streams beside Flax's own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from mms_sdk.compute.models.streams import random_streams


def drawn(rngs: nnx.Rngs) -> Any:
    x = jnp.ones((3, 40))
    dropout = nnx.Dropout(0.5, rngs=rngs)
    return [rngs.params(), rngs(), dropout(x), dropout(x), rngs.split(3).default.key[...], rngs.fork().params(), rngs()]


@pytest.mark.parametrize("run", [lambda f: f, jax.jit])
@pytest.mark.parametrize("seed", [0, 7])
def test_the_numbers_are_those_of_flax(run: Any, seed: int) -> None:
    def keyless(kind: Any) -> Any:
        return [jax.random.key_data(x) if x.dtype == jax.random.key(0).dtype else x for x in drawn(kind(seed))]

    ours, theirs = run(lambda: keyless(random_streams))(), run(lambda: keyless(nnx.Rngs))()

    assert all(jnp.array_equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_drawing_a_key_does_not_ask_jax_for_shardings_of_traced_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax.core.Tracer, "sharding", property(lambda _: pytest.fail("the whole trace is gone through")))

    def module(key: jax.Array) -> jax.Array:
        rngs = random_streams(key)
        return nnx.Dropout(0.5, rngs=rngs)(nnx.Linear(3, 4, rngs=rngs)(jnp.ones((2, 3))))

    assert jax.eval_shape(module, jax.random.key(0)).shape == (2, 4)
