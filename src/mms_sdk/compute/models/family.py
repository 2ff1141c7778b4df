"""What every family for pictures and clips has beside its network: division over a mesh, preprocessing, imports."""

from __future__ import annotations

from typing import Any, ClassVar, TypeAlias

from mms_sdk.compute.data.preprocess.image import Normalize, Resize
from mms_sdk.compute.models.layouts import Layout
from mms_sdk.compute.sharding.rules import PartitionRules, Spec
from mms_sdk.types import Array

Partition: TypeAlias = tuple[tuple[str, Spec], ...]
"""Ordered pairs of a pattern over parameter paths and one axis name, or None, a dimension."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

CONVOLUTIONS: Partition = (
    # One channel in, or a picture's: nothing to divide there.
    (r"(stem|depthwise|^features/stages/0|^features/stages/0/0)/(conv1?/)?kernel$", (None, None, None, "fsdp")),
    (r"^features/.*conv\d?/kernel$", (None, None, "fsdp", "tensor")),
)
"""Kernels (height, width, in, out) of convolutional networks: channels in over `fsdp`, channels out over `tensor`."""

ATTENTION: Partition = (
    (r"/(query|key|value|expand)/kernel$", ("fsdp", "tensor")),
    (r"/(query|key|value|expand)/bias$", ("tensor",)),
    (r"/(out|project)/kernel$", ("tensor", "fsdp")),
)
"""Transformer blocks: heads and hidden units over `tensor`, so that each pair of layers needs one sum (Shoeybi et al.
2019, Megatron-LM, §3)."""


class Family:
    """The part that families share; each is a frozen dataclass of its own options beside.

    Parameters of the backbone lie under `features/`, those of the classifier under `head/`.
    """

    partition: ClassVar[Partition] = CONVOLUTIONS
    classifier: ClassVar[str] = "head"
    """Path of the layer whose last axis is the classes."""

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """Names that other libraries give its weights."""
        return ()

    @property
    def size(self) -> int:
        """Pixels a side of the pictures it was published for."""
        return 224

    @property
    def preprocess(self) -> tuple[Any, ...]:
        """Steps that bring RGB pictures to what published weights were trained on."""
        return Resize(self.size), Normalize(IMAGENET_MEAN, IMAGENET_STD)

    @property
    def rules(self) -> PartitionRules:
        """How its parameters are divided over `fsdp` and `tensor`, where a mesh has these and they divide."""
        return PartitionRules(self.partition)

    def adapted(self, path: str, value: Array, shape: tuple[int, ...]) -> Array | None:
        """An imported array brought to another shape by a published rule; None where there is no such rule."""
        return None
