"""Random streams of modules."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx


class _Count(nnx.RngCount):
    # Flax asks the old and the new value of `count[...]` for their shardings. Traced ones have none, and JAX goes
    # through all that was traced so far to say so, for each key that is drawn.
    def __setitem__(self, key: Any, value: Any) -> None:
        if key is ... and isinstance(value, jax.core.Tracer):
            self.set_value(value)
        else:
            super().__setitem__(key, value)


class _Stream(nnx.RngStream):
    def __init__(self, key: jax.Array | int, *, tag: str) -> None:
        super().__init__(key, tag=tag)
        self.count = _Count(self.count[...], tag=tag)


def random_streams(key: jax.Array | int) -> nnx.Rngs:
    """`nnx.Rngs(key)`, the same numbers, traced faster; what is forked from it is too."""
    rngs: Any = nnx.Rngs(key)
    rngs.default = _Stream(key, tag="default")
    made: nnx.Rngs = rngs
    return made
