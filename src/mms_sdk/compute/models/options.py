"""What the options of a family, and what is given to its network, must hold."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mms_sdk.errors import InvalidRequest


def check_at_least(least: int, **options: int | None) -> None:
    """Sees to it that options are whole numbers from `least` on; None is left out.

    Raises:
        InvalidRequest: One is not.
    """
    for name, value in options.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise InvalidRequest(f"{name} is a whole number from {least}; got {name}={value!r}")


def check_odd(**options: int) -> None:
    """Sees to it that options are odd numbers.

    Raises:
        InvalidRequest: One is not.
    """
    for name, value in options.items():
        if value % 2 == 0:
            raise InvalidRequest(f"{name} is odd, with as much before as behind its middle; got {name}={value}")


def check_share(**options: float) -> None:
    """Sees to it that options are shares in [0, 1).

    Raises:
        InvalidRequest: One is not.
    """
    for name, value in options.items():
        if not 0 <= value < 1:
            raise InvalidRequest(f"{name} is a share in [0, 1); got {name}={value!r}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Sees to it that an option is one of a few.

    Raises:
        InvalidRequest: It is not.
    """
    if value not in choices:
        raise InvalidRequest(f"{name} is one of {', '.join(choices)}; got {name}={value!r}")


def check_shape(what: str, axes: tuple[str, ...], input_shape: tuple[int, ...]) -> None:
    """Sees to it that a row has as many dimensions as a family takes, and something along each.

    Raises:
        InvalidRequest: It has not.
    """
    if len(input_shape) != len(axes) or min(input_shape) < 1:
        raise InvalidRequest(
            f"{what} takes rows of shape ({', '.join(axes)}{',' * (len(axes) == 1)}); got {tuple(input_shape)}; change "
            f"the preprocessing or take another family"
        )


def check_ids(what: str, x: jax.Array) -> None:
    """Sees to it that a batch is one of token ids.

    Raises:
        InvalidRequest: It has another type than whole numbers.
    """
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise InvalidRequest(f"{what} takes token ids, int32; got {x.dtype}; make ids of the texts in preprocess first")
