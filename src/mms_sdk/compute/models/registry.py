"""Model families by name, for the command line and for jobs."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from mms_sdk.compute.data.preprocess.image import Normalize
from mms_sdk.compute.models.autoencoder import Autoencoder
from mms_sdk.compute.models.conformer import Conformer
from mms_sdk.compute.models.convnet import ConvNet
from mms_sdk.compute.models.convnet1d import ConvNet1D
from mms_sdk.compute.models.convnext import ConvNeXt
from mms_sdk.compute.models.decoder import Decoder
from mms_sdk.compute.models.efficientnet_lite import EfficientNetLite
from mms_sdk.compute.models.encoder import Encoder
from mms_sdk.compute.models.factorised_vit import FactorisedViT
from mms_sdk.compute.models.fttransformer import FTTransformer
from mms_sdk.compute.models.mlp import MLP
from mms_sdk.compute.models.patchtst import PatchTST
from mms_sdk.compute.models.resnet import ResNet
from mms_sdk.compute.models.tablemlp import TableMLP
from mms_sdk.compute.models.tcn import TCN
from mms_sdk.compute.models.vgg import VGG
from mms_sdk.compute.models.vit import ViT
from mms_sdk.errors import InvalidRequest

FAMILIES: dict[str, type[Any]] = {
    "autoencoder": Autoencoder,
    "conformer": Conformer,
    "convnet": ConvNet,
    "convnet1d": ConvNet1D,
    "convnext": ConvNeXt,
    "decoder": Decoder,
    "efficientnet-lite": EfficientNetLite,
    "encoder": Encoder,
    "factorised-vit": FactorisedViT,
    "ft-transformer": FTTransformer,
    "mlp": MLP,
    "patchtst": PatchTST,
    "resnet": ResNet,
    "table-mlp": TableMLP,
    "tcn": TCN,
    "vgg": VGG,
    "vit": ViT,
}


def by_name(name: str, **options: Any) -> Any:
    """A model family by its name.

    Args:
        name: e.g. `convnet`, `resnet` or `encoder`.
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


def preprocess(family: Any) -> tuple[Any, ...]:
    """The steps in front of a family, if nothing else is said.

    Those of a published architecture bring RGB pictures to what its published weights were trained on; others
    standardise what they get.
    """
    return family.preprocess if hasattr(family, "preprocess") else (Normalize(),)
