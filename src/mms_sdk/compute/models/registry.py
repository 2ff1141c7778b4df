"""Model families by name, for the command line and for jobs."""

from __future__ import annotations

from typing import Any

from mms_sdk.compute.models.conformer import Conformer
from mms_sdk.compute.models.convnet import ConvNet
from mms_sdk.compute.models.convnet1d import ConvNet1D
from mms_sdk.compute.models.decoder import Decoder
from mms_sdk.compute.models.encoder import Encoder
from mms_sdk.compute.models.fttransformer import FTTransformer
from mms_sdk.compute.models.mlp import MLP
from mms_sdk.compute.models.patchtst import PatchTST
from mms_sdk.compute.models.tablemlp import TableMLP
from mms_sdk.compute.models.tcn import TCN
from mms_sdk.errors import InvalidRequest

FAMILIES: dict[str, type[Any]] = {
    "conformer": Conformer,
    "convnet": ConvNet,
    "convnet1d": ConvNet1D,
    "decoder": Decoder,
    "encoder": Encoder,
    "ft-transformer": FTTransformer,
    "mlp": MLP,
    "patchtst": PatchTST,
    "table-mlp": TableMLP,
    "tcn": TCN,
}


def by_name(name: str, **options: Any) -> Any:
    """A model family by its name.

    Args:
        name: e.g. `convnet` or `encoder`.
        options: The family's fields, e.g. `num_classes`.

    Raises:
        InvalidRequest: There is no such family.
    """
    if name not in FAMILIES:
        raise InvalidRequest(f"a model family is one of {sorted(FAMILIES)}; got {name!r}")
    return FAMILIES[name](**options)
