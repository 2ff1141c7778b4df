"""Equal blocks one after another: a list or stacked, each computed once or twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from mms_sdk.compute.sharding.rules import PartitionRules, Spec


def make_blocks(make: Callable[[nnx.Rngs], Any], count: int, *, stacked: bool = False, rngs: nnx.Rngs) -> Any:
    """Equal blocks with values of their own.

    A list has parameters such as `blocks/0/attention/query/kernel`. Stacked blocks have one array for all of them,
    `blocks/attention/query/kernel`, with the block as its first dimension; the program then holds one block whatever
    their number, and compiles in the time of one.

    Args:
        make: A block from random streams.
        count: How many.
        stacked: Whether they are stacked.
        rngs: Random streams.
    """
    if stacked:
        every: Any = nnx.vmap(make)
        return every(rngs.split(count))
    return nnx.List([make(rngs) for _ in range(count)])


def through(blocks: Any, x: jax.Array, keep: jax.Array | None = None, *, remat: bool = False) -> jax.Array:
    """What the last block makes of x, where each is called as `block(x, keep)`.

    Args:
        blocks: Of `make_blocks`.
        x: (batch, length, width).
        keep: bool, (batch, length), or None: the same for all.
        remat: Whether the inner values of a block are computed again for the gradient instead of kept, which takes the
            memory of one block and a third more time (Chen et al. 2016, §4).
    """
    run = nnx.remat(_run) if remat else _run
    if isinstance(blocks, nnx.List):
        for block in blocks:
            x = run(block, x, keep)
        return x
    scan: Any = nnx.scan
    over = scan(lambda x, block: run(block, x, keep), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    out: jax.Array = over(x, blocks)
    return out


def transformer_rules(*, stacked: bool = False) -> PartitionRules:
    """Megatron's division of attention and feed-forward layers (Shoeybi et al. 2019, §3), and `fsdp` over the rest.

    The first map of a pair is divided over `tensor` by its outputs and the second by its inputs, so that one sum over
    `tensor` follows each pair. Tokens are divided by their ids, and so is an untied head by its outputs.
    """
    into: tuple[tuple[str, Spec], ...] = (
        (r"(query|key|value|up|gate)/kernel$", ("fsdp", "tensor")),
        (r"(query|key|value|up|gate)/bias$", ("tensor",)),
        (r"(out|down)/kernel$", ("tensor", "fsdp")),
        (r"feed_forward/(up|gate)$", ("expert", "fsdp", "tensor")),
        (r"feed_forward/down$", ("expert", "tensor", "fsdp")),
    )
    ahead: Spec = (None,) if stacked else ()
    return PartitionRules(
        (
            *((f"/blocks/(?:.*/)?{pattern}", (*ahead, *spec)) for pattern, spec in into),
            (r"/token/embedding$", ("tensor", "fsdp")),
        )
    )


def _run(block: Any, x: jax.Array, keep: jax.Array | None) -> jax.Array:
    out: jax.Array = block(x, keep)
    return out
