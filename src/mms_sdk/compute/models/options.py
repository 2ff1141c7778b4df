"""What the options of a family, and what is given to its network, must hold."""

from __future__ import annotations

from collections.abc import Iterable
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


def check_sizes(*, multiple: int = 1, may_be_empty: bool = False, **options: tuple[int, ...]) -> None:
    """Sees to it that options list sizes, such as the widths of layers.

    Args:
        multiple: What each is a multiple of.
        may_be_empty: Whether a list may have none.
        options: The lists by name.

    Raises:
        InvalidRequest: One is empty, or holds something else.
    """
    for name, sizes in options.items():
        fit = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes)
        if not fit or not (sizes or may_be_empty) or any(size % multiple for size in sizes):
            kind = "whole numbers from 1" if multiple == 1 else f"multiples of {multiple}"
            raise InvalidRequest(f"{name} are {'' if may_be_empty else 'one or more '}{kind}; got {name}={sizes!r}")


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


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Sees to it that an option is one of a few.

    Raises:
        InvalidRequest: It is not.
    """
    known = tuple(choices)
    if value not in known:
        raise InvalidRequest(f"{name} is one of {', '.join(map(str, known))}; got {name}={value!r}")


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


def check_picture(what: str, shape: tuple[int, ...], *, least: int = 1, multiple: int = 1) -> None:
    """Sees to it that rows are pictures of a size that a family takes.

    Raises:
        InvalidRequest: They are not.
    """
    rule = f"{what} takes pictures of shape (height, width, channels)"
    if len(shape) != 3:
        raise InvalidRequest(f"{rule}; got rows of shape {shape}")
    if min(shape[:2]) < least:
        raise InvalidRequest(
            f"{rule} with sides from {least} pixels; got {shape}; begin preprocess with mms.image.Resize({least})"
        )
    if any(side % multiple for side in shape[:2]):
        fitting = max(1, shape[0] // multiple) * multiple
        raise InvalidRequest(
            f"{rule} with sides in multiples of {multiple}; got {shape}; begin preprocess with "
            f"mms.image.Resize({fitting})"
        )


def check_ids(what: str, x: jax.Array) -> None:
    """Sees to it that a batch is one of token ids.

    Raises:
        InvalidRequest: It has another type than whole numbers.
    """
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise InvalidRequest(f"{what} takes token ids, int32; got {x.dtype}; make ids of the texts in preprocess first")
