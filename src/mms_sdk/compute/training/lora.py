"""Low-rank adaptation: large matrices stay as they are, and a small product is learnt beside each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING

from mms_sdk.errors import InvalidRequest

if TYPE_CHECKING:
    import jax

    from mms_sdk.compute.models.functional import Arrays

PREFIX = "lora/"


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """W + (alpha / rank) · A·B in place of W, where only A and B are learnt (Hu et al. 2021, section 4.1).

    Works on any model: the product is added to the parameter before the model sees it, and a version holds the sum.
    A parameter of more than two dimensions is taken as the matrix that is nearest to a square.

    Attributes:
        rank: Columns of A and rows of B.
        alpha: Strength of the product; alpha / rank multiplies it.
        match: Parameters to adapt, a regular expression searched for in their paths; never those of one dimension.
        train: Parameters to learn in full besides, e.g. a new head.
    """

    rank: int = 8
    alpha: float = 16.0
    match: str = "kernel"
    train: str = "head/"

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise InvalidRequest(f"the rank of a LoRA is a whole number from 1; got rank={self.rank!r}")
        compiled("LoRA.match", self.match)
        compiled("LoRA.train", self.train)

    def adapted(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, int]]:
        """Rows and columns of each parameter that is adapted, by path.

        Raises:
            InvalidRequest: None is.
        """
        found = {
            path: _matrix(shape)
            for path, shape in shapes.items()
            if re.search(self.match, path) and not re.search(self.train, path) and len(shape) > 1
        }
        if not found:
            raise InvalidRequest(
                f"a LoRA adapts at least one parameter of two dimensions or more; match={self.match!r} finds none "
                f"beside train={self.train!r} among {sorted(shapes)[:8]}; change match"
            )
        return found

    def init(self, params: Arrays, key: jax.Array) -> Arrays:
        """A, normal with variance 1 / rows, and B, zero, of each adapted parameter, so that at first W is W."""
        import jax
        import jax.numpy as jnp

        made: Arrays = {}
        adapted = self.adapted({path: value.shape for path, value in params.items()})
        for number, (path, (rows, columns)) in enumerate(sorted(adapted.items())):
            scale = rows**-0.5
            made[f"{PREFIX}{path}/a"] = jax.random.normal(jax.random.fold_in(key, number), (rows, self.rank)) * scale
            made[f"{PREFIX}{path}/b"] = jnp.zeros((self.rank, columns))
        return made

    def merged(self, params: Arrays) -> Arrays:
        """Parameters as the model takes them: the products added, and gone as parameters of their own."""
        own = {path: value for path, value in params.items() if not path.startswith(PREFIX)}
        for path, value in own.items():
            a = params.get(f"{PREFIX}{path}/a")
            if a is not None:
                product = (self.alpha / self.rank) * (a @ params[f"{PREFIX}{path}/b"])
                own[path] = value + product.reshape(value.shape).astype(value.dtype)
        return own

    def trains(self, path: str) -> bool:
        """Whether a parameter is learnt."""
        return path.startswith(PREFIX) or re.search(self.train, path) is not None


def compiled(what: str, pattern: str) -> re.Pattern[str]:
    """A regular expression.

    Raises:
        InvalidRequest: It is none.
    """
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        raise InvalidRequest(f"{what} is a regular expression over parameter paths; got {pattern!r}: {error}") from None


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    size = prod(shape)
    rows = min(accumulate(shape[:-1], int.__mul__), key=lambda rows: rows + size // max(1, rows))
    return rows, size // max(1, rows)
