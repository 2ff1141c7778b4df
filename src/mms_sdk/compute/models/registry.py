"""Model families by name, for the command line and for jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from mms_sdk.compute.data.preprocess.image import Normalize
from mms_sdk.compute.models.autoencoder import Autoencoder
from mms_sdk.compute.models.convnet import ConvNet
from mms_sdk.compute.models.convnext import ConvNeXt
from mms_sdk.compute.models.efficientnet_lite import EfficientNetLite
from mms_sdk.compute.models.factorised_vit import FactorisedViT
from mms_sdk.compute.models.mlp import MLP
from mms_sdk.compute.models.resnet import ResNet
from mms_sdk.compute.models.vgg import VGG
from mms_sdk.compute.models.vit import ViT
from mms_sdk.compute.sharding.rules import PartitionRules
from mms_sdk.errors import InvalidRequest

FAMILIES: dict[str, type[Any]] = {
    "autoencoder": Autoencoder,
    "convnet": ConvNet,
    "convnext": ConvNeXt,
    "efficientnet-lite": EfficientNetLite,
    "factorised-vit": FactorisedViT,
    "mlp": MLP,
    "resnet": ResNet,
    "vgg": VGG,
    "vit": ViT,
}


def by_name(name: str, **options: Any) -> Any:
    """A model family by its name.

    Args:
        name: e.g. `convnet` or `resnet`.
        options: The family's fields, e.g. `num_classes`.

    Raises:
        InvalidRequest: There is no such family, or it has no such option.
    """
    if name not in FAMILIES:
        raise InvalidRequest(f"a model family is one of {sorted(FAMILIES)}; got {name!r}")
    family = FAMILIES[name]
    known = [field.name for field in fields(family)]
    if unknown := sorted(set(options) - set(known)):
        raise InvalidRequest(f"options of {name} are {known}; got {unknown}")
    try:
        return family(**options)
    except TypeError as error:  # one without a default was left out
        raise InvalidRequest(f"options of {name} are {known}; {error}") from error


def rules(family: Any, mesh: Mapping[str, int]) -> PartitionRules:
    """How a family's parameters are divided over a mesh, if nothing else is said.

    Args:
        family: e.g. `mms.models.ViT(num_classes=10)`.
        mesh: Devices along each axis, as the trainer takes it; a dimension whose axis it lacks stays whole. What no
            rule names is divided over `fsdp` where a dimension divides.
    """
    whole = getattr(family, "rules", PartitionRules())
    return PartitionRules(tuple((pattern, tuple(_on(mesh, entry) for entry in spec)) for pattern, spec in whole.rules))


def preprocess(family: Any) -> tuple[Any, ...]:
    """The steps in front of a family, if nothing else is said.

    Those of a published architecture bring RGB pictures to what its published weights were trained on; others
    standardise what they get.
    """
    return family.preprocess if hasattr(family, "preprocess") else (Normalize(),)


def _on(mesh: Mapping[str, int], entry: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
    if isinstance(entry, tuple):
        return tuple(axis for axis in entry if axis in mesh) or None
    return entry if entry in mesh else None
