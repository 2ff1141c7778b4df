"""Model families by name, for the command line and for jobs."""

from __future__ import annotations

from typing import Any

from mms_sdk.compute.models.convnet import ConvNet
from mms_sdk.compute.models.mlp import MLP
from mms_sdk.errors import InvalidRequest

FAMILIES: dict[str, type[Any]] = {"convnet": ConvNet, "mlp": MLP}


def by_name(name: str, **options: Any) -> Any:
    """A model family by its name.

    Args:
        name: `convnet` or `mlp`.
        options: The family's fields, e.g. `num_classes`.

    Raises:
        InvalidRequest: There is no such family.
    """
    if name not in FAMILIES:
        raise InvalidRequest(f"a model family is one of {sorted(FAMILIES)}; got {name!r}")
    return FAMILIES[name](**options)
