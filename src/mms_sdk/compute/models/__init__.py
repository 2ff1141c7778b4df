"""Model families, one a file, the registry by name, and imported weights; `mms.models`."""

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
from mms_sdk.compute.models.moe import MoE
from mms_sdk.compute.models.patchtst import PatchTST
from mms_sdk.compute.models.registry import by_name, preprocess
from mms_sdk.compute.models.resnet import ResNet
from mms_sdk.compute.models.tablemlp import TableMLP
from mms_sdk.compute.models.tcn import TCN
from mms_sdk.compute.models.vgg import VGG
from mms_sdk.compute.models.vit import ViT
from mms_sdk.compute.models.weights import Loaded, Report, Weights, load

__all__ = [
    "MLP",
    "TCN",
    "VGG",
    "Autoencoder",
    "Conformer",
    "ConvNeXt",
    "ConvNet",
    "ConvNet1D",
    "Decoder",
    "EfficientNetLite",
    "Encoder",
    "FTTransformer",
    "FactorisedViT",
    "Loaded",
    "MoE",
    "PatchTST",
    "Report",
    "ResNet",
    "TableMLP",
    "ViT",
    "Weights",
    "by_name",
    "load",
    "preprocess",
]
