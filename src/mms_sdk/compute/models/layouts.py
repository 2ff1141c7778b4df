"""How other libraries name and lay out the weights of an architecture, seen from our paths.

A layout answers one question: which tensor of a file belongs at `features/stem/conv/kernel`? Asked for every array of a
model it gives a mapping without gaps; what it never names is left over, and told.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from mms_sdk.types import Array

Tensors: TypeAlias = dict[str, Array]
"""Arrays of a file by their names there."""

_KERNEL_AXES = {2: (1, 0), 4: (2, 3, 1, 0), 5: (2, 3, 4, 1, 0)}


def _from_torch(kernel: Array) -> Array:
    # Linear (out, in); convolutions (out, in, height, width) or (out, in, depth, height, width).
    return kernel.transpose(_KERNEL_AXES[kernel.ndim]) if kernel.ndim in _KERNEL_AXES else kernel


def _as_it_is(kernel: Array) -> Array:
    return kernel


@dataclass(frozen=True, kw_only=True)
class Convention:
    """How a library names the arrays of one layer.

    Attributes:
        leaves: Our name of an array → what follows the layer's name there.
        kernel: Brings a kernel's axes into our order: (in, out), or (height, width, in, out).
        bookkeeping: Names of tensors that are no weights, as a regular expression.
    """

    leaves: Mapping[str, str]
    kernel: Callable[[Array], Array]
    bookkeeping: str = r"(?!)"


TORCH = Convention(
    leaves={
        "kernel": ".weight",
        "scale": ".weight",
        "bias": ".bias",
        "mean": ".running_mean",
        "var": ".running_var",
    },
    kernel=_from_torch,
    bookkeeping=r".*\.num_batches_tracked",
)
KERAS = Convention(leaves={"kernel": "/vars/0", "bias": "/vars/1"}, kernel=_as_it_is, bookkeeping=r"optimizer/.*")
FLAX = Convention(leaves={}, kernel=_as_it_is)


def _nothing(tensors: Tensors) -> Tensors:
    return tensors


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The names of one library for one architecture.

    Attributes:
        name: Of the library, for messages.
        module: Our path of a layer, or of an array that stands alone, → its name there.
        convention: Names of the arrays of a layer.
        prepare: Changes the file's tensors first, e.g. takes fused ones apart.
    """

    name: str
    module: Callable[[str], str]
    convention: Convention = TORCH
    prepare: Callable[[Tensors], Tensors] = _nothing

    def source(self, path: str) -> str:
        """Name in the file of the array at one of our paths."""
        module, _, leaf = path.rpartition("/")
        leaves = self.convention.leaves
        return self.module(module) + leaves[leaf] if leaf in leaves else self.module(path)

    def converted(self, path: str, value: Array) -> Array:
        """The file's array with our order of axes."""
        return self.convention.kernel(value) if path.endswith("/kernel") else value

    def is_bookkeeping(self, name: str) -> bool:
        """Whether a tensor of the file is no weight."""
        return re.fullmatch(self.convention.bookkeeping, name) is not None


OURS = Layout(name="MMS", module=str, convention=FLAX)
"""Our own paths: checkpoints, artefacts, and safetensors written with them."""

SAME_NAMES = Layout(name="PyTorch modules named as ours", module=lambda path: path.replace("/", "."))
"""A PyTorch module built with our names: `features.stem.conv.weight`."""
