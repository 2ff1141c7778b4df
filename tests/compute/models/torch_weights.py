"""Weights of a reference in PyTorch brought into our modules, leaf by leaf, with nothing left over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mms_sdk.compute.models.functional import Arrays, Functional, functional


def compiled(family: Any, shape: tuple[int, ...]) -> Functional:
    taken = functional(family, shape)
    return Functional(jax.jit(taken.init), jax.jit(taken.apply))


def evaluated(module: Any, *inputs: Any) -> np.ndarray:
    """What a module gives outside training."""
    module.eval()
    return np.asarray(nnx.jit(lambda module, *inputs: module(*inputs))(module, *inputs))


def shapes(family: Any, shape: tuple[int, ...]) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Shapes of what is trained and of the rest, by path."""
    params, rest = jax.eval_shape(functional(family, shape).init, jax.random.key(0))
    return {path: tuple(value.shape) for path, value in params.items()}, {
        path: tuple(value.shape) for path, value in rest.items()
    }


def taken(paths: Mapping[str, tuple[int, ...]], names: Mapping[str, str], source: Mapping[str, Any]) -> Arrays:
    """The parameters at `paths`, from tensors by name; kernels turned round."""
    assert set(names) == set(paths), set(names) ^ set(paths)
    out = {}
    for path, shape in paths.items():
        array = np.asarray(source[names[path]])
        array = array.T if path.endswith("kernel") else array
        assert array.shape == shape, (path, array.shape, shape)
        out[path] = jnp.asarray(array)
    return out


def arrays(module: Any) -> dict[str, np.ndarray]:
    """A torch module's state as NumPy arrays."""
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


def shaken(module: Any) -> Any:
    """The torch module in evaluation mode, with no zeros, ones or tiny values left that would hide a mistake."""
    import torch

    for value in module.state_dict().values():
        if value.dtype.is_floating_point:
            value.add_(torch.rand_like(value) * 0.3)
    return module.eval()
