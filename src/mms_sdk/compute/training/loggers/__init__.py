"""Callbacks that take what a run logs elsewhere; `mms.loggers`.

None of them ends a run that trains: what it cannot write is a warning, said again at the end.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mms_sdk.compute.training.loggers.csv_file import CSV
    from mms_sdk.compute.training.loggers.mlflow import MLflow
    from mms_sdk.compute.training.loggers.tensorboard import TensorBoard
    from mms_sdk.compute.training.loggers.wandb import WandB

_HOME = {"CSV": "csv_file", "MLflow": "mlflow", "TensorBoard": "tensorboard", "WandB": "wandb"}

__all__ = ["CSV", "MLflow", "TensorBoard", "WandB"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mms_sdk.loggers' has no name {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"mms_sdk.compute.training.loggers.{_HOME[name]}"), name)
