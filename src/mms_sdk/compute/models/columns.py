"""Rows of tables as networks take them: numbers with learned values for what is missing, and embedded categories."""

from __future__ import annotations

from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mms_sdk.compute.models.embedding import embedding
from mms_sdk.errors import InvalidRequest

_EXACT = 2**24


def check_categories(categories: tuple[int, ...]) -> None:
    """Sees to it that sizes of categories are such.

    Raises:
        InvalidRequest: One is none, or too large for its codes to be exact in float32.
    """
    if any(isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= _EXACT for size in categories):
        raise InvalidRequest(
            f"a category has 1 to {_EXACT:,} codes, which float32 holds exactly; got categories={categories}"
        )


def check_row(what: str, categories: tuple[int, ...], input_shape: tuple[int, ...]) -> int:
    """How many numbers stand before the categories in a row.

    Raises:
        InvalidRequest: The row is shorter than its categories, or no vector.
    """
    if len(input_shape) != 1 or input_shape[0] < max(1, len(categories)):
        raise InvalidRequest(
            f"{what} takes rows of shape (numbers + categories,), the {len(categories)} category codes last; got "
            f"{tuple(input_shape)}; set categories to the number of codes of each"
        )
    return input_shape[0] - len(categories)


class Columns(nnx.Module):
    """A row's numbers and its categories.

    Args:
        numbers: How many numbers there are.
        categories: Codes of each category, of which 0 stands for what was not known in training.
        width: Features of an embedded category.
        rngs: Random streams.
    """

    def __init__(self, numbers: int, categories: tuple[int, ...], width: int, *, rngs: nnx.Rngs) -> None:
        self.numbers, self.categories = numbers, categories
        if numbers:
            self.missing = nnx.Param(jnp.zeros(numbers))
        if categories:  # one table for all: one lookup, whatever their number
            self.table = embedding(sum(categories), width, rngs=rngs)

    def numeric(self, x: jax.Array) -> jax.Array:
        """The numbers, (batch, numbers), with the learned value of its column where one is NaN."""
        x = x[:, : self.numbers]
        return jnp.where(jnp.isnan(x), self.missing[...][None], x)

    def embedded(self, x: jax.Array) -> jax.Array:
        """The categories, (batch, categories, width). A code that a category does not have gives NaN."""
        codes, sizes = x[:, self.numbers :], np.asarray(self.categories)
        offsets = np.cumsum(sizes) - sizes
        known = (codes >= 0) & (codes < sizes[None])
        # Behind the table, where a lookup gives NaN; the next category's row would be silently wrong.
        return self.table(jnp.where(known, codes.astype(jnp.int32) + offsets[None], sizes.sum()))

    def flat(self, x: jax.Array) -> jax.Array:
        """Numbers and embedded categories one after the other, (batch, numbers + categories × width)."""
        parts = [self.numeric(x)] if self.numbers else []
        if self.categories:
            embedded = self.embedded(x)
            parts.append(embedded.reshape(x.shape[0], prod(embedded.shape[1:])))
        return jnp.concatenate(parts, axis=1)
