"""Model families, one a file, and the registry by name; `mms.models`."""

from mms_sdk.compute.models.convnet import ConvNet
from mms_sdk.compute.models.mlp import MLP
from mms_sdk.compute.models.moe import MoE, Routing
from mms_sdk.compute.models.registry import by_name

__all__ = ["MLP", "ConvNet", "MoE", "Routing", "by_name"]
