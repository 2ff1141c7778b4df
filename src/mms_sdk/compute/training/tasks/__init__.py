"""What a model is trained for, one task a file."""

from mms_sdk.compute.training.tasks.base import Sums, Task
from mms_sdk.compute.training.tasks.classification import Classification
from mms_sdk.compute.training.tasks.custom import Custom
from mms_sdk.compute.training.tasks.embedding import Embedding
from mms_sdk.compute.training.tasks.forecasting import Forecasting
from mms_sdk.compute.training.tasks.language_modelling import LanguageModelling
from mms_sdk.compute.training.tasks.multi_label import MultiLabel
from mms_sdk.compute.training.tasks.reconstruction import Reconstruction
from mms_sdk.compute.training.tasks.regression import Regression

__all__ = [
    "Classification",
    "Custom",
    "Embedding",
    "Forecasting",
    "LanguageModelling",
    "MultiLabel",
    "Reconstruction",
    "Regression",
    "Sums",
    "Task",
]
