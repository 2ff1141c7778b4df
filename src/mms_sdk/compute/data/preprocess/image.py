"""Preprocessing steps for pictures; `mms.image`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mms_sdk.compute.data.kinds import image as pictures
from mms_sdk.compute.data.preprocess.pipeline import register
from mms_sdk.errors import InvalidRequest
from mms_sdk.types import Array

if TYPE_CHECKING:
    import jax


@register
@dataclass(frozen=True)
class Resize:
    """Resizes pictures, on the host, with an antialiased bilinear filter; the aspect ratio is not kept.

    Attributes:
        height: Pixels.
        width: Pixels; the height if it is left out.
    """

    name: ClassVar[str] = "image.resize"
    height: int
    width: int | None = None

    def __post_init__(self) -> None:
        if self.height < 1 or (self.width is not None and self.width < 1):
            raise InvalidRequest(f"a picture has at least one pixel a side; got Resize({self.height}, {self.width})")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width or self.height

    def shape(self, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """(height, width, channels)."""
        return None if shape is None else (*self.size, shape[-1])

    def on_row(self, row: Array) -> Array:
        """uint8 of shape (*size, channels)."""
        return pictures.resize(row, self.size)


class _Fixed:
    """A device step that has nothing to learn and keeps the shape."""

    def fit(self, _batches: Iterable[Array]) -> Any:
        """The step itself."""
        return self

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The same shape."""
        return shape


@register
@dataclass(frozen=True)
class Normalize(_Fixed):
    """Subtracts a mean and divides by a standard deviation, channel by channel.

    Attributes:
        mean: One value a channel, for inputs in [0, 1]; measured on the training rows if left out.
        std: Likewise.
    """

    name: ClassVar[str] = "image.normalize"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def fit(self, batches: Iterable[Array]) -> Normalize:
        """With mean and standard deviation of all pixels of the training rows, where they are not given."""
        if self.mean is not None and self.std is not None:
            return self
        count, total, squares = 0, np.zeros(1), np.zeros(1)
        for batch in batches:
            pixels = batch.reshape(-1, batch.shape[-1]).astype(np.float64)
            count += len(pixels)
            total = total + pixels.sum(0)
            squares = squares + (pixels**2).sum(0)
        if not count:
            raise InvalidRequest(
                "Normalize() is measured on the training rows, by one step of a pipeline; none reached this one; give "
                "it mean= and std="
            )
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 1e-12))
        # A constant channel would be divided by nothing; its values are all zero anyway.
        std = np.where(std < 1e-4, 1.0, std)
        return replace(self, mean=self.mean or tuple(mean.tolist()), std=self.std or tuple(std.tolist()))

    def on_batch(self, batch: jax.Array, key: jax.Array | None) -> jax.Array:
        """Standardised batch of the same shape."""
        if self.mean is None or self.std is None:
            raise InvalidRequest("Normalize() knows its mean and std once it is fitted; call fit() first, or give them")
        mean, std = (np.asarray(value, np.float32)[None, None, None] for value in (self.mean, self.std))
        return (batch - mean) / std


@register
@dataclass(frozen=True)
class RandomFlip(_Fixed):
    """Mirrors half of the pictures left to right, in training only."""

    name: ClassVar[str] = "image.random-flip"

    def on_batch(self, batch: jax.Array, key: jax.Array | None) -> jax.Array:
        """Batch of the same shape."""
        import jax
        import jax.numpy as jnp

        if key is None:
            return batch
        chosen = jax.random.bernoulli(key, 0.5, (len(batch), 1, 1, 1))
        return jnp.where(chosen, batch[:, :, ::-1], batch)


@register
@dataclass(frozen=True)
class RandomShift(_Fixed):
    """Moves each picture by a random number of whole pixels, in training only; what comes in at the edge is its edge.

    Attributes:
        pixels: Farthest move in each direction.
    """

    name: ClassVar[str] = "image.random-shift"
    pixels: int = 1

    def on_batch(self, batch: jax.Array, key: jax.Array | None) -> jax.Array:
        """Batch of the same shape."""
        import jax
        import jax.numpy as jnp

        if key is None or self.pixels == 0:
            return batch
        reach = self.pixels
        padded = jnp.pad(batch, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
        offsets = jax.random.randint(key, (len(batch), 2), 0, 2 * reach + 1)
        size = batch.shape[1:]
        return jax.vmap(lambda one, at: jax.lax.dynamic_slice(one, (at[0], at[1], 0), size))(padded, offsets)


@register
@dataclass(frozen=True)
class RandomRotate(_Fixed):
    """Turns each picture by a random angle with bilinear sampling, in training only; corners repeat the edge.

    Attributes:
        degrees: Largest angle in each direction.
    """

    name: ClassVar[str] = "image.random-rotate"
    degrees: float = 10.0

    def on_batch(self, batch: jax.Array, key: jax.Array | None) -> jax.Array:
        """Batch of the same shape."""
        import jax
        import jax.numpy as jnp

        if key is None or self.degrees == 0:
            return batch
        height, width = batch.shape[1:3]
        limit = np.float32(np.deg2rad(self.degrees))
        angles = jax.random.uniform(key, (len(batch),), minval=-limit, maxval=limit)
        y, x = jnp.meshgrid(jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2, indexing="ij")

        def turn(one: jax.Array, angle: jax.Array) -> jax.Array:
            sine, cosine = jnp.sin(angle), jnp.cos(angle)
            where = [cosine * y + sine * x + (height - 1) / 2, cosine * x - sine * y + (width - 1) / 2]
            sample: Any = jax.vmap(
                lambda channel: jax.scipy.ndimage.map_coordinates(channel, where, order=1, mode="nearest"),
                in_axes=-1,
                out_axes=-1,
            )
            return sample(one)  # type: ignore[no-any-return]

        turned: jax.Array = jax.vmap(turn)(batch, angles)
        return turned


__all__ = ["Normalize", "RandomFlip", "RandomRotate", "RandomShift", "Resize"]
