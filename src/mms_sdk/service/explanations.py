"""`:explain`: which parts of one input its score rests on."""

from __future__ import annotations

import asyncio
import base64
import time
from typing import Any
from urllib.parse import parse_qs

import numpy as np

from mms_sdk.compute.inference import occlusion
from mms_sdk.errors import InvalidInput, InvalidRequest
from mms_sdk.service.deployments import Served
from mms_sdk.types import Array


async def explained(served: Served, rows: Array, *, query: bytes, deadline_s: float) -> dict[str, Any]:
    """Explains a score of one input.

    It is computed in small batches that the device takes only while no prediction waits, so a prediction waits for one
    of them at most.

    Args:
        served: The deployment.
        rows: Prepared, exactly one.
        query: Of the request; `label=` names a class, `output=` the number of an output; the highest score without.
        deadline_s: Seconds from now within which the answer is of use.

    Raises:
        InvalidInput: There are several rows.
        InvalidRequest: There is no such class or output.
        Overloaded, DeadlineExceeded: There is too much to do.
    """
    if len(rows) != 1:
        raise InvalidInput(f"an explanation is of one input; got {len(rows)}; ask for each")
    until = time.monotonic() + deadline_s
    card, picture = served.predictor.card, served.predictor.kind.name == "image"
    whole = (await _scores(served, rows, until))[0]
    at = _output(served, query, whole)
    parts = await asyncio.to_thread(occlusion.cut, rows[0], picture=picture)
    saliency = parts.saliency(whole[at], (await _scores(served, parts.hidden, until))[:, at])
    answer: dict[str, Any] = {
        "deployment": served.name,
        "model": served.model,
        "version": served.version,
        "method": "occlusion",
        "baseline": parts.baseline,
        "parts": len(parts.hidden),
        "output": at,
        "score": float(whole[at]),
        "saliency": np.ascontiguousarray(saliency),
    }
    if card.ranks:
        answer["label"] = card.labels[at]
    if picture:
        png = await asyncio.to_thread(occlusion.as_png, rows[0], saliency)
        answer["png"] = base64.b64encode(png).decode()
    return answer


async def _scores(served: Served, rows: Array, until: float) -> Array:
    # One small batch after another: at no time does more than one of an explanation stand in the queue.
    step = served.explainer.max_batch_rows
    found = [
        await served.explainer.submit(rows[at : at + step], deadline_s=max(0.0, until - time.monotonic()))
        for at in range(0, len(rows), step)
    ]
    return np.concatenate(found).reshape(len(rows), -1)


def _output(served: Served, query: bytes, scores: Array) -> int:
    labels = served.predictor.card.labels if served.predictor.card.ranks else ()
    asked = parse_qs(query.decode("latin-1"), keep_blank_values=True)
    if label := asked.get("label", [""])[-1]:
        if label not in labels:
            raise InvalidRequest(f"label is a class of the model: {list(labels)[:50]}; got {label[:60]!r}")
        return labels.index(label)
    if output := asked.get("output", [""])[-1]:
        if not (output.isascii() and output.isdigit() and len(output) < 10 and int(output) < len(scores)):
            raise InvalidRequest(f"output is the number of one, 0 to {len(scores) - 1}; got {output[:40]!r}")
        return int(output)
    return int(scores.argmax())
