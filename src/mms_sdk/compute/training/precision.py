"""Precision: in what numbers a step computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mms_sdk.errors import InvalidRequest

NAMES = ("fp32", "bf16", "fp16")
PrecisionName = Literal["fp32", "bf16", "fp16"]
GROW_EVERY_STEPS = 2000
"""Steps without an overflow after which the loss scale doubles, as in Micikevicius et al. 2018, section 3.2."""

_FIRST_SCALE = 2.0**15


@dataclass(frozen=True)
class Precision:
    """In what numbers the model computes. Parameters, optimiser, loss and metrics are float32 in any case.

    Attributes:
        name: `fp32`; `bf16`; or `fp16`, whose loss is scaled so that gradients do not vanish, by a factor that halves
            with each overflow, which costs a step, and doubles after 2,000 steps without one.
    """

    name: PrecisionName = "fp32"

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise InvalidRequest(f"a precision is one of {', '.join(NAMES)}; got {self.name!r}")

    @property
    def first_scale(self) -> float:
        """What the loss is multiplied by at first; 1 where nothing is scaled."""
        return _FIRST_SCALE if self.name == "fp16" else 1.0

    def cast(self, tree: Any) -> Any:
        """The floats of a tree as the model computes with them."""
        import jax
        import jax.numpy as jnp

        if self.name == "fp32":
            return tree
        dtype = jnp.bfloat16 if self.name == "bf16" else jnp.float16
        return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)
