"""What every family for pictures and clips has beside its network: division over a mesh, preprocessing, imports."""

from __future__ import annotations

from typing import Any, ClassVar, TypeAlias

from mms_sdk.compute.data.preprocess.image import Normalize, Resize
from mms_sdk.compute.models.layouts import Layout
from mms_sdk.compute.sharding.rules import PartitionRules, Spec
from mms_sdk.errors import InvalidRequest
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


def check_options(family: str, **counts: float) -> None:
    """Options that are whole numbers from 1.

    Raises:
        InvalidRequest: One is not.
    """
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidRequest(f"{name} of {family} is a whole number from 1; got {name}={value!r}")


def check_share(family: str, **shares: float) -> None:
    """Options that are shares: from 0 to less than 1.

    Raises:
        InvalidRequest: One is not.
    """
    for name, value in shares.items():
        if not 0 <= value < 1:
            raise InvalidRequest(f"{name} of {family} is a share from 0 to less than 1; got {name}={value!r}")


def check_choice(family: str, name: str, value: Any, choices: Any) -> None:
    """An option that is one of a few.

    Raises:
        InvalidRequest: It is none of them.
    """
    if value not in choices:
        raise InvalidRequest(f"{name} of {family} is one of {list(choices)}; got {name}={value!r}")


def check_picture(family: str, shape: tuple[int, ...], *, least: int = 1, multiple: int = 1) -> None:
    """That rows are pictures of a size the network can take.

    Raises:
        InvalidRequest: They are not.
    """
    rule = f"{family} takes pictures of shape (height, width, channels)"
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
