"""The Open Inference Protocol v2 and the extensions of Triton that its clients use: tensors in, tensors out.

Binary tensors, classification, model configuration, repository, schedule policy (priority and timeout) and statistics,
as `docs/protocol` of the Triton inference server writes them.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import msgspec
import numpy as np
import orjson

from mms_sdk.compute.inference.batcher import PRIORITIES, Priority
from mms_sdk.errors import InvalidInput, InvalidRequest
from mms_sdk.schema.deployment import Deployment
from mms_sdk.service.deployments import Served
from mms_sdk.service.instances import as_numbers, as_pixels, decode_json
from mms_sdk.types import Array

HEADER_LENGTH = "inference-header-content-length"
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
)
_DATATYPES = {"uint8": "UINT8", "int32": "INT32", "float32": "FP32"}
_JSON = {"content-type": "application/json"}
_OUTPUT = "scores"


class InferTensor(msgspec.Struct):
    """An input tensor of the Open Inference Protocol v2."""

    name: str
    shape: list[Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]]
    datatype: str
    data: list[Any] | None = None
    parameters: dict[str, Any] = {}


class InferOutput(msgspec.Struct):
    """An output asked for."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct):
    """The JSON of an inference request of the Open Inference Protocol v2."""

    inputs: list[InferTensor]
    id: str | None = None
    outputs: list[InferOutput] | None = None
    parameters: dict[str, Any] = {}


class IndexRequest(msgspec.Struct, forbid_unknown_fields=True):
    """What of the repository is to be listed."""

    ready: bool = False


class LoadRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Parameters of loading and unloading: `version`, a number or an alias, and none of Triton's own."""

    parameters: dict[str, Any] = {}


def read_infer(served: Served, headers: Mapping[str, str], body: bytes) -> tuple[InferRequest, Array]:
    """An inference request and its rows for the device.

    Raises:
        InvalidRequest: It is no such JSON, or asks what there is not.
        InvalidInput: The tensor is not what the model takes.
    """
    split = _header_length(headers.get(HEADER_LENGTH), body)
    asked: InferRequest = decode_json(body[:split], InferRequest)
    if asked.outputs is not None and [output.name for output in asked.outputs] != [_OUTPUT]:
        raise InvalidInput(f"this model has one output, 'scores'; asked for {[each.name for each in asked.outputs]}")
    return asked, _tensor(served, asked, memoryview(body)[split:])


def when(asked: InferRequest) -> tuple[float | None, Priority | None]:
    """Seconds within which an answer is of use, and its priority, by the schedule policy extension; None as usual.

    Raises:
        InvalidRequest: They are none.
    """
    if not asked.parameters:
        return None, None
    timeout, priority = asked.parameters.get("timeout"), asked.parameters.get("priority", 0)
    if timeout is not None and (type(timeout) is not int or not 0 < timeout < 10**10):
        raise InvalidRequest(f"timeout is a whole number of microseconds, at least 1; got {str(timeout)[:40]}")
    if type(priority) is not int or not 0 <= priority <= len(PRIORITIES):
        raise InvalidRequest(f"priority is 1 for {', 2, '.join(PRIORITIES[:2])}, 3 low or 0; got {str(priority)[:40]}")
    return timeout and timeout / 1e6, PRIORITIES[priority - 1] if priority else None


def infer_answer(served: Served, asked: InferRequest, scores: Array) -> tuple[bytes, dict[str, str]]:
    """Scores as the answer of an inference request, with the headers that tell its form."""
    wanted = asked.outputs[0].parameters if asked.outputs else {}
    binary = bool(wanted.get("binary_data", asked.parameters.get("binary_data_output")))
    output: dict[str, Any] = {"name": _OUTPUT, "datatype": "FP32", "shape": list(scores.shape)}
    if count := wanted.get("classification"):
        texts = _classes(served, scores, count)
        output |= {"datatype": "BYTES", "shape": [len(texts), len(texts[0])]}
        data: Any = [text for row in texts for text in row]
    else:
        data = scores.ravel()
    answer: dict[str, Any] = {
        "model_name": served.name,
        "model_version": str(served.version),
        "outputs": [output],
    }
    if asked.id is not None:
        answer["id"] = asked.id
    if not binary:
        output["data"] = data
        return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), _JSON
    raw = _length_prefixed(data) if count else np.ascontiguousarray(data, "<f4").tobytes()
    output["parameters"] = {"binary_data_size": len(raw)}
    head = orjson.dumps(answer)
    return head + raw, {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(head))}


def metadata(served: Served) -> dict[str, Any]:
    """What goes in and what comes out."""
    card = served.predictor.card
    return {
        "name": served.name,
        "versions": [str(served.version)],
        "platform": "mms_stablehlo",
        "inputs": [
            {"name": each.name, "datatype": _DATATYPES[each.dtype], "shape": [-1, *each.shape]}
            for each in card.signature.inputs
        ],
        "outputs": [{"name": _OUTPUT, "datatype": "FP32", "shape": [-1, *card.signature.outputs[0].shape]}],
    }


def config(served: Served) -> dict[str, Any]:
    """The same as a model configuration of Triton, with the batch sizes that there are programs for."""
    card = served.predictor.card
    return {
        "name": served.name,
        "platform": "mms_stablehlo",
        "backend": "mms",
        "max_batch_size": served.batcher.max_batch_rows,
        "input": [
            {"name": each.name, "data_type": f"TYPE_{_DATATYPES[each.dtype]}", "dims": list(each.shape)}
            for each in card.signature.inputs
        ],
        "output": [{"name": _OUTPUT, "data_type": "TYPE_FP32", "dims": list(card.signature.outputs[0].shape)}],
        "dynamic_batching": {
            "preferred_batch_size": list(served.batcher.sizes),
            "max_queue_delay_microseconds": 0,
            "priority_levels": len(PRIORITIES),
            "default_priority_level": PRIORITIES.index("normal") + 1,
        },
    }


def statistics(all_served: Iterable[Served]) -> dict[str, Any]:
    """How many requests there were and what they took; `mms` has what Triton has no word for."""
    return {"model_stats": [_statistics(served) for served in all_served]}


def index(deployed: Iterable[Deployment], newest: Mapping[str, int], *, ready: bool) -> list[dict[str, str]]:
    """The repository: what is deployed, and models that could be."""
    found = [{"name": each.name, "version": str(each.version), "state": "READY", "reason": ""} for each in deployed]
    names = {each["name"] for each in found}
    if not ready:
        found += [
            {"name": name, "version": str(version), "state": "UNAVAILABLE", "reason": "not deployed; load it"}
            for name, version in newest.items()
            if name not in names
        ]
    return sorted(found, key=lambda each: each["name"])


def version_asked(body: bytes) -> str | None:
    """The version of a request to load a model; None for the newest.

    Raises:
        InvalidRequest: It is no such request, or asks for something else.
    """
    parameters: dict[str, Any] = decode_json(body or b"{}", LoadRequest).parameters
    version = parameters.get("version")
    if set(parameters) - {"version", "unload_dependents"} or not isinstance(version, str | int | None):
        raise InvalidRequest(
            f"the one parameter of loading is version, a number or an alias; got {sorted(parameters)}; a model's "
            f"configuration is that of its version and cannot be overridden"
        )
    return None if version is None else str(version)


def _statistics(served: Served) -> dict[str, Any]:
    counts = served.batcher.counts
    compute = {"count": counts.batches, "ns": round(counts.compute_s * 1e9)}
    none = {"count": 0, "ns": 0}
    return {
        "name": served.name,
        "version": str(served.version),
        "inference_count": counts.rows,
        "execution_count": counts.batches,
        "inference_stats": {
            "success": {"count": counts.requests, "ns": round((counts.queue_s + counts.compute_s) * 1e9)},
            "fail": {"count": counts.failed + counts.refused + counts.late + counts.left, "ns": 0},
            "queue": {"count": counts.taken, "ns": round(counts.queue_s * 1e9)},
            "compute_input": none,
            "compute_infer": compute,
            "compute_output": none,
            "cache_hit": none,
            "cache_miss": none,
        },
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": none,
                "compute_infer": {"count": batches, "ns": round(seconds * 1e9)},
                "compute_output": none,
            }
            for size, (batches, seconds) in sorted(counts.by_rows.copy().items())
        ],
        "mms": {
            "compiles_after_ready": served.predictor.compiles_after_ready,
            "buckets": list(served.predictor.buckets),
            "queued_rows": served.batcher.queued_rows(),
            "refused": counts.refused,
            "late": counts.late,
            "left": counts.left,
            "failed": counts.failed,
        },
    }


def _tensor(served: Served, asked: InferRequest, binary: memoryview) -> Array:
    shape, dtype = served.predictor.input_shape, served.predictor.input_dtype
    name, datatype = served.predictor.card.signature.inputs[0].name, _DATATYPES[dtype.name]
    if len(asked.inputs) != 1 or asked.inputs[0].name != name:
        raise InvalidInput(f"this model has one input, {name!r}; got {[tensor.name for tensor in asked.inputs]}")
    tensor = asked.inputs[0]
    if tensor.datatype != datatype:
        raise InvalidInput(f"input {name!r} has datatype {datatype}; got {tensor.datatype!r}")
    if tuple(tensor.shape[1:]) != shape or tensor.shape[0] < 1:
        raise InvalidInput(f"input {name!r} has shape {[-1, *shape]} with at least one row; got {tensor.shape}")
    count = math.prod(tensor.shape)
    size = tensor.parameters.get("binary_data_size")
    if size is not None or len(binary):
        if tensor.data is not None or size != len(binary) or size != count * dtype.itemsize:
            raise InvalidInput(
                f"a tensor of shape {tensor.shape} is {count * dtype.itemsize} bytes behind the JSON, declared as "
                f"binary_data_size, and no data in it; got {len(binary)} bytes, declared {size!r}"
            )
        return np.frombuffer(binary, dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(tensor.shape)
    try:
        flat = np.asarray(tensor.data).ravel()
    except ValueError as error:
        raise InvalidInput(f"data is a list of equal lengths; this one is not: {error}") from error
    if len(flat) != count:
        raise InvalidInput(f"a tensor of shape {tensor.shape} has {count} values; got {len(flat)}")
    return (as_pixels(flat) if dtype == np.uint8 else as_numbers(flat, dtype)).reshape(tensor.shape)


def _classes(served: Served, scores: Array, count: Any) -> list[list[str]]:
    if type(count) is not int or count < 1 or not served.predictor.card.ranks:
        raise InvalidRequest(
            f"classification is how many of the best classes come back, of a model that has classes; got "
            f"{str(count)[:40]} of {len(served.predictor.card.labels)} classes"
        )
    positions = {label: at for at, label in enumerate(served.predictor.card.labels)}
    return [
        [f"{score:f}:{positions[label]}:{label}" for label, score in ranked]
        for ranked in served.predictor.ranked(scores, count)
    ]


def _length_prefixed(texts: Iterable[str]) -> bytes:
    return b"".join(struct.pack("<I", len(raw)) + raw for raw in (text.encode() for text in texts))


def _header_length(given: str | None, body: bytes) -> int:
    if given is None:
        return len(body)
    if not re.fullmatch("[0-9]{1,15}", given) or int(given) > len(body):
        raise InvalidRequest(
            f"Inference-Header-Content-Length is at most the body's {len(body)} bytes; got {given[:40]!r}"
        )
    return int(given)
