"""Model families, one a file, and the registry by name; `mms.models`."""

from mms_sdk.compute.models.conformer import Conformer
from mms_sdk.compute.models.convnet import ConvNet
from mms_sdk.compute.models.convnet1d import ConvNet1D
from mms_sdk.compute.models.decoder import Decoder
from mms_sdk.compute.models.encoder import Encoder
from mms_sdk.compute.models.fttransformer import FTTransformer
from mms_sdk.compute.models.mlp import MLP
from mms_sdk.compute.models.patchtst import PatchTST
from mms_sdk.compute.models.registry import by_name
from mms_sdk.compute.models.tablemlp import TableMLP
from mms_sdk.compute.models.tcn import TCN

__all__ = [
    "MLP",
    "TCN",
    "Conformer",
    "ConvNet",
    "ConvNet1D",
    "Decoder",
    "Encoder",
    "FTTransformer",
    "PatchTST",
    "TableMLP",
    "by_name",
]
