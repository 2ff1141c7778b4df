"""An OpenAPI document of one deployment, made from its signature: what exactly its routes take and answer."""

from __future__ import annotations

from typing import Any

from mms_sdk.schema.dataset import Column
from mms_sdk.service.deployments import Served
from mms_sdk.service.oip import metadata

_B64 = {
    "type": "object",
    "properties": {"b64": {"type": "string", "contentEncoding": "base64"}},
    "required": ["b64"],
    "additionalProperties": False,
}
_FILES = {"image": "image/*", "audio": "audio/*", "text": "text/plain"}
_REFUSED = {
    "400": "Not the JSON, header or parameter it should be, or more rows than the largest batch.",
    "401": "No token.",
    "403": "The token's role is too small.",
    "404": "The deployment is gone.",
    "413": "The body is too large.",
    "415": "Another content type.",
    "422": "No input of this model.",
    "503": "Too much to do, or the deployment is being switched over; with Retry-After.",
    "504": "Not ready within the deadline.",
}
_PARAMETERS = [
    {
        "name": "X-MMS-Deadline-Ms",
        "in": "header",
        "description": "Milliseconds after which the answer is of no use.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 9_999_999},
    },
    {
        "name": "X-MMS-Priority",
        "in": "header",
        "schema": {"type": "string", "enum": ["high", "normal", "low"], "default": "normal"},
    },
]


def document(served: Served) -> dict[str, Any]:
    """The document (OpenAPI 3.1) of a deployment."""
    v1, v2 = f"/v1/models/{served.name}", f"/v2/models/{served.name}"
    top = {"name": "top", "in": "query", "schema": {"type": "integer", "minimum": 0, "default": 0}}
    label = {"name": "label", "in": "query", "schema": {"type": "string", "enum": list(served.predictor.card.labels)}}
    ranks = served.predictor.card.ranks
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"{served.name}: {served.model}",
            "version": str(served.version),
            "description": f"Version {served.version} of the model {served.model!r}, as deployed.",
        },
        "security": [{"token": []}],
        "paths": {
            f"{v1}:predict": {
                "post": _operation(
                    "predict", "Predicts.", _inputs(served), "Predictions", [*_PARAMETERS, *([top] if ranks else [])]
                )
            },
            f"{v1}:explain": {
                "post": _operation(
                    "explain",
                    "Says which parts of one input its score rests on.",
                    _inputs(served),
                    "Explanation",
                    [_PARAMETERS[0], *([label] if ranks else [])],
                )
            },
            f"{v2}/infer": {
                "post": _operation(
                    "infer",
                    "Infers by the Open Inference Protocol v2.",
                    {"application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}}},
                    "InferAnswer",
                    _PARAMETERS,
                )
            },
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(served),
        },
    }


def _operation(
    name: str, summary: str, content: dict[str, Any], answer: str, parameters: list[dict[str, Any]]
) -> dict[str, Any]:
    answered = {"application/json": {"schema": {"$ref": f"#/components/schemas/{answer}"}}}
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        "operationId": name,
        "summary": summary,
        "parameters": parameters,
        "requestBody": {"required": True, "content": content},
        "responses": {
            "200": {"description": "The answer.", "content": answered},
            **{status: {"description": text, "content": problem} for status, text in _REFUSED.items()},
        },
    }


def _inputs(served: Served) -> dict[str, Any]:
    content: dict[str, Any] = {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {
                    "instances": {
                        "type": "array",
                        "items": {"$ref": "#/components/schemas/Instance"},
                        "minItems": 1,
                        "maxItems": served.batcher.max_batch_rows,
                    }
                },
                "required": ["instances"],
                "additionalProperties": False,
            }
        }
    }
    if file := _FILES.get(served.predictor.kind.name):
        content[file] = {}
        content["multipart/form-data"] = {"schema": {"type": "object", "additionalProperties": True}}
    return content


def _schemas(served: Served) -> dict[str, Any]:
    card = served.predictor.card
    told = metadata(served)
    ranked = {
        "type": "object",
        "properties": {"label": {"enum": list(card.labels)}, "score": {"type": "number"}},
        "required": ["label", "score"],
    }
    output = _nested({"type": "number"}, card.signature.outputs[0].shape)
    one = {"ranked": {"type": "array", "items": ranked}} if card.ranks else {"values": output}
    names = {"deployment": {"const": served.name}, "model": {"const": served.model}, "version": {"type": "integer"}}
    return {
        "Instance": _instance(served),
        "Predictions": _object(
            {**names, "predictions": {"type": "array", "items": _object(one)}},
        ),
        "Explanation": {
            **_object(
                {
                    **names,
                    "method": {"const": "occlusion"},
                    "baseline": {"type": "string"},
                    "parts": {"type": "integer"},
                    "output": {"type": "integer"},
                    "score": {"type": "number"},
                    "saliency": {"type": "array"},
                }
            ),
        },
        "InferRequest": {
            "type": "object",
            "properties": {
                "id": {"type": "string"},
                "inputs": {"type": "array", "items": _tensor(told["inputs"][0]), "minItems": 1, "maxItems": 1},
                "outputs": {"type": "array", "items": {"type": "object"}, "maxItems": 1},
                "parameters": {"type": "object"},
            },
            "required": ["inputs"],
        },
        "InferAnswer": _object(
            {
                "model_name": {"const": served.name},
                "model_version": {"type": "string"},
                "outputs": {"type": "array", "items": _tensor(told["outputs"][0])},
            }
        ),
        "Problem": _object(
            {
                "type": {"type": "string"},
                "title": {"type": "string"},
                "status": {"type": "integer"},
                "detail": {"type": "string"},
            }
        ),
    }


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _tensor(spec: dict[str, Any]) -> dict[str, Any]:
    lengths: list[dict[str, Any]] = [{"type": "integer", "minimum": 1}, *({"const": n} for n in spec["shape"][1:])]
    return {
        "type": "object",
        "properties": {
            "name": {"const": spec["name"]},
            "datatype": {"const": spec["datatype"]},
            "shape": {"type": "array", "prefixItems": lengths, "minItems": len(lengths), "maxItems": len(lengths)},
            "data": {"type": "array"},
        },
        "required": ["name", "datatype", "shape"],
    }


def _instance(served: Served) -> dict[str, Any]:
    kind, card = served.predictor.kind.name, served.predictor.card
    if kind == "audio":
        return _B64
    if kind == "text":
        return {"type": "string"}
    if kind == "table":
        return {
            **_object({column.name: _cell(column) for column in served.predictor.columns}),
            "additionalProperties": False,
        }
    if kind == "image":
        pixel = {"type": "integer", "minimum": 0, "maximum": 255}
        sizes: tuple[int | None, ...] = card.signature.inputs[0].shape
        if card.host:  # they make other sizes fit
            sizes = (None, None, sizes[-1])
        return {"oneOf": [_B64, _nested(pixel, sizes)]}
    return {"type": "array", "description": f"Nested lists of numbers of the shape {card.signature.inputs[0].shape}."}


def _cell(column: Column) -> dict[str, Any]:
    kind = "string" if column.labels is not None or column.kind in ("timestamp", "text", "category") else "number"
    return {"type": [kind, "boolean", "null"] if kind == "number" else [kind, "number", "null"]}


def _nested(item: dict[str, Any], lengths: tuple[int | None, ...]) -> dict[str, Any]:
    for length in reversed(lengths):
        item = {"type": "array", "items": item}
        if length is not None:
            item |= {"minItems": length, "maxItems": length}
    return item
