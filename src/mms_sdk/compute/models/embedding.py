"""Tables of vectors by number."""

from __future__ import annotations

from flax import nnx


def embedding(count: int, width: int, *, rngs: nnx.Rngs) -> nnx.Embed:
    """A table whose vectors come out in the precision that it has when it is asked.

    `nnx.Embed` keeps that of its initial values, so that a model trained in bfloat16 would compute in float32.

    Args:
        count: How many vectors. A number from there on gives NaN.
        width: Features of each.
        rngs: Random streams.
    """
    table = nnx.Embed(count, width, rngs=rngs)
    vars(table)["dtype"] = None
    return table
