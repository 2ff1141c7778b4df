"""Massive Model as a Service: the front of a large-model platform, from a notebook cell.

`import mms_sdk as mms` loads next to nothing; each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mms_sdk import errors
    from mms_sdk.client import manifests
    from mms_sdk.client.backups import Backups
    from mms_sdk.client.dataset import Dataset
    from mms_sdk.client.deployments import Deployment, Prediction
    from mms_sdk.client.evaluations import Evaluation
    from mms_sdk.client.jobs import Job
    from mms_sdk.client.models import ModelVersion
    from mms_sdk.client.remote import RemoteFunction, remote
    from mms_sdk.client.studies import Study, Trial
    from mms_sdk.client.workspace import BulkResult, WorkspaceClient, connect
    from mms_sdk.compute import models, sharding
    from mms_sdk.compute.artifacts import artifacts
    from mms_sdk.compute.data.follow import Batches
    from mms_sdk.compute.data.kafka import Kafka
    from mms_sdk.compute.data.preprocess import audio, image, series, table, text
    from mms_sdk.compute.data.streams import Record, Stream
    from mms_sdk.compute.planning.plan import Plan
    from mms_sdk.compute.references import inputs, outputs
    from mms_sdk.compute.sharding.rules import PartitionRules
    from mms_sdk.compute.training import loggers
    from mms_sdk.compute.training.callbacks import Begun, Callback
    from mms_sdk.compute.training.check import Check
    from mms_sdk.compute.training.loop import Step
    from mms_sdk.compute.training.lora import LoRA
    from mms_sdk.compute.training.policies import Checkpoints, EarlyStopping, Limits
    from mms_sdk.compute.training.profile import Profile
    from mms_sdk.compute.training.schedules import warmup_cosine
    from mms_sdk.compute.training.tasks import (
        Classification,
        Custom,
        Embedding,
        Forecasting,
        LanguageModelling,
        MultiLabel,
        Reconstruction,
        Regression,
    )
    from mms_sdk.compute.training.trainer import Result, TrainedCheckpoint, Trainer
    from mms_sdk.compute.tuning import trial
    from mms_sdk.schema.cleaning import Clip as clip
    from mms_sdk.schema.cleaning import Convert as convert
    from mms_sdk.schema.cleaning import DropConstant as drop_constant
    from mms_sdk.schema.cleaning import DropDuplicates as drop_duplicates
    from mms_sdk.schema.cleaning import DropMissing as drop_missing
    from mms_sdk.schema.cleaning import DropNearDuplicates as drop_near_duplicates
    from mms_sdk.schema.cleaning import DropOddSizes as drop_odd_sizes
    from mms_sdk.schema.cleaning import DropOutOfRange as drop_out_of_range
    from mms_sdk.schema.cleaning import DropUnreadable as drop_unreadable
    from mms_sdk.schema.cleaning import Impute as impute
    from mms_sdk.schema.cleaning import KeepWhere as keep_where
    from mms_sdk.schema.dataset import Column
    from mms_sdk.schema.job import On, Resources, Retry
    from mms_sdk.schema.sources import (
        CSV,
        HTTP,
        JSONL,
        SQL,
        TFDS,
        Arrow,
        AudioFolder,
        Files,
        HuggingFace,
        Icechunk,
        ImageFolder,
        Parquet,
        Union,
        VideoFolder,
        WebDataset,
        Zarr,
    )
    from mms_sdk.schema.specs import Split
    from mms_sdk.schema.tuning import ASHA, Choice, Hyperband, Integer, LogUniform, Uniform
    from mms_sdk.storage.writing import Writing

__version__ = "0.1.0.dev0"

_HOME = {
    "ASHA": "schema.tuning",
    "Arrow": "schema.sources",
    "AudioFolder": "schema.sources",
    "Backups": "client.backups",
    "Batches": "compute.data.follow",
    "Begun": "compute.training.callbacks",
    "BulkResult": "client.workspace",
    "CSV": "schema.sources",
    "Callback": "compute.training.callbacks",
    "Check": "compute.training.check",
    "Checkpoints": "compute.training.policies",
    "Choice": "schema.tuning",
    "Classification": "compute.training.tasks",
    "Column": "schema.dataset",
    "Custom": "compute.training.tasks",
    "Dataset": "client.dataset",
    "Deployment": "client.deployments",
    "EarlyStopping": "compute.training.policies",
    "Embedding": "compute.training.tasks",
    "Evaluation": "client.evaluations",
    "Files": "schema.sources",
    "Forecasting": "compute.training.tasks",
    "HTTP": "schema.sources",
    "HuggingFace": "schema.sources",
    "Hyperband": "schema.tuning",
    "Icechunk": "schema.sources",
    "ImageFolder": "schema.sources",
    "Integer": "schema.tuning",
    "JSONL": "schema.sources",
    "Job": "client.jobs",
    "Kafka": "compute.data.kafka",
    "LanguageModelling": "compute.training.tasks",
    "Limits": "compute.training.policies",
    "LoRA": "compute.training.lora",
    "LogUniform": "schema.tuning",
    "ModelVersion": "client.models",
    "MultiLabel": "compute.training.tasks",
    "On": "schema.job",
    "Parquet": "schema.sources",
    "PartitionRules": "compute.sharding.rules",
    "Plan": "compute.planning.plan",
    "Prediction": "client.deployments",
    "Profile": "compute.training.profile",
    "Reconstruction": "compute.training.tasks",
    "Record": "compute.data.streams",
    "Regression": "compute.training.tasks",
    "RemoteFunction": "client.remote",
    "Resources": "schema.job",
    "Result": "compute.training.trainer",
    "Retry": "schema.job",
    "SQL": "schema.sources",
    "Split": "schema.specs",
    "Step": "compute.training.loop",
    "Stream": "compute.data.streams",
    "Study": "client.studies",
    "TFDS": "schema.sources",
    "TrainedCheckpoint": "compute.training.trainer",
    "Trainer": "compute.training.trainer",
    "Trial": "client.studies",
    "Uniform": "schema.tuning",
    "Union": "schema.sources",
    "VideoFolder": "schema.sources",
    "WebDataset": "schema.sources",
    "WorkspaceClient": "client.workspace",
    "Writing": "storage.writing",
    "Zarr": "schema.sources",
    "artifacts": "compute.artifacts",
    "clip": "schema.cleaning:Clip",
    "connect": "client.workspace",
    "convert": "schema.cleaning:Convert",
    "drop_constant": "schema.cleaning:DropConstant",
    "drop_duplicates": "schema.cleaning:DropDuplicates",
    "drop_missing": "schema.cleaning:DropMissing",
    "drop_near_duplicates": "schema.cleaning:DropNearDuplicates",
    "drop_odd_sizes": "schema.cleaning:DropOddSizes",
    "drop_out_of_range": "schema.cleaning:DropOutOfRange",
    "drop_unreadable": "schema.cleaning:DropUnreadable",
    "impute": "schema.cleaning:Impute",
    "inputs": "compute.references",
    "keep_where": "schema.cleaning:KeepWhere",
    "outputs": "compute.references",
    "remote": "client.remote",
    "warmup_cosine": "compute.training.schedules",
}
_MODULES = {
    "audio": "compute.data.preprocess.audio",
    "errors": "errors",
    "image": "compute.data.preprocess.image",
    "loggers": "compute.training.loggers",
    "manifests": "client.manifests",
    "models": "compute.models",
    "series": "compute.data.preprocess.series",
    "sharding": "compute.sharding",
    "table": "compute.data.preprocess.table",
    "text": "compute.data.preprocess.text",
    "trial": "compute.tuning.trial",
}

__all__ = [
    "ASHA",
    "CSV",
    "HTTP",
    "JSONL",
    "SQL",
    "TFDS",
    "Arrow",
    "AudioFolder",
    "Backups",
    "Batches",
    "Begun",
    "BulkResult",
    "Callback",
    "Check",
    "Checkpoints",
    "Choice",
    "Classification",
    "Column",
    "Custom",
    "Dataset",
    "Deployment",
    "EarlyStopping",
    "Embedding",
    "Evaluation",
    "Files",
    "Forecasting",
    "HuggingFace",
    "Hyperband",
    "Icechunk",
    "ImageFolder",
    "Integer",
    "Job",
    "Kafka",
    "LanguageModelling",
    "Limits",
    "LoRA",
    "LogUniform",
    "ModelVersion",
    "MultiLabel",
    "On",
    "Parquet",
    "PartitionRules",
    "Plan",
    "Prediction",
    "Profile",
    "Reconstruction",
    "Record",
    "Regression",
    "RemoteFunction",
    "Resources",
    "Result",
    "Retry",
    "Split",
    "Step",
    "Stream",
    "Study",
    "TrainedCheckpoint",
    "Trainer",
    "Trial",
    "Uniform",
    "Union",
    "VideoFolder",
    "WebDataset",
    "WorkspaceClient",
    "Writing",
    "Zarr",
    "artifacts",
    "audio",
    "clip",
    "connect",
    "convert",
    "drop_constant",
    "drop_duplicates",
    "drop_missing",
    "drop_near_duplicates",
    "drop_odd_sizes",
    "drop_out_of_range",
    "drop_unreadable",
    "errors",
    "image",
    "impute",
    "inputs",
    "keep_where",
    "loggers",
    "manifests",
    "models",
    "outputs",
    "remote",
    "series",
    "sharding",
    "table",
    "text",
    "trial",
    "warmup_cosine",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value: Any = importlib.import_module(f"mms_sdk.{_MODULES[name]}")
    elif name in _HOME:
        module, _, attribute = _HOME[name].partition(":")
        value = getattr(importlib.import_module(f"mms_sdk.{module}"), attribute or name)
    else:
        raise AttributeError(f"module 'mms_sdk' has no name {name!r}; it has {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
