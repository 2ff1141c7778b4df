"""`:explain` and the document of a deployment, against what the trained module says when it is asked by hand."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from typing import Any

import numpy as np
import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate
from PIL import Image

import tiny_model
from asgi_calls import Service, check_problem
from tiny_model import LABELS, Tiny

EXPLAIN = "/v1/models/tiny:explain"
PREDICT = "/v1/models/tiny:predict"


@pytest.mark.parametrize("label", [None, *LABELS])
def test_saliency_is_what_the_score_falls_by_when_a_pixel_is_hidden(
    service: Service, tiny: Tiny, label: str | None
) -> None:
    picture = tiny_model.pictures_of(1, seed=21)[0]
    score = tiny.scores(picture[None])[0]
    at = int(score.argmax()) if label is None else LABELS.index(label)
    query = "" if label is None else f"?label={label}"

    answer = service.ask("POST", EXPLAIN + query, json={"instances": [picture.tolist()]}, role="predict")

    assert answer.status == 200, answer
    told = answer.json()
    assert (told["method"], told["label"], told["output"], told["parts"]) == ("occlusion", LABELS[at], at, 8 * 6)
    assert told["score"] == pytest.approx(score[at], abs=1e-5)
    expected = np.empty((8, 6))
    for y in range(8):
        for x in range(6):
            hidden = picture.copy()
            hidden[y, x] = np.rint(picture.mean((0, 1)))
            expected[y, x] = score[at] - tiny.scores(hidden[None])[0, at]
    np.testing.assert_allclose(told["saliency"], expected, atol=2e-5)
    shown = Image.open(io.BytesIO(base64.b64decode(told["png"])))
    assert (shown.size, shown.mode) == ((6, 8), "RGB")
    red, _, blue = np.asarray(shown, int)[np.unravel_index(np.abs(expected).argmax(), (8, 6))]
    assert (red > blue) == (expected.flat[np.abs(expected).argmax()] > 0)


@pytest.mark.parametrize(
    ("query", "rows", "status", "word"),
    [
        ("?label=dog", 1, 400, "'dog'"),
        ("?output=3", 1, 400, "0 to 2"),
        ("?output=-1", 1, 400, "0 to 2"),
        ("?output=²", 1, 400, "0 to 2"),
        ("", 2, 422, "one input; got 2"),
        ("", 0, 422, "at least one"),
    ],
)
def test_what_cannot_be_explained_is_refused(service: Service, query: str, rows: int, status: int, word: str) -> None:
    body = {"instances": tiny_model.pictures_of(max(rows, 1))[:rows].tolist()}

    check_problem(service.ask("POST", EXPLAIN + query.replace("²", "%C2%B2"), json=body), status, word)


def test_explanations_wait_for_predictions_and_not_the_other_way_round(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = service.app._app._deployments.get("tiny")
    right, log = served.predictor.scores, []
    busy, go = threading.Event(), threading.Event()

    def noting(what: str) -> Any:
        def scores(rows: Any) -> Any:
            log.append(what)
            busy.set()
            assert go.wait(60)
            return right(rows)

        return scores

    monkeypatch.setattr(served.batcher, "_scores", noting("predict"))
    monkeypatch.setattr(served.explainer, "_scores", noting("explain"))
    body = {"instances": tiny_model.pictures_of(1).tolist()}

    async def both() -> list[int]:
        explaining = asyncio.ensure_future(service.asking("POST", EXPLAIN, json=body))
        await asyncio.to_thread(busy.wait, 60)
        predicting = [asyncio.ensure_future(service.asking("POST", PREDICT, json=body)) for _ in range(3)]
        while served.batcher.queued_rows() < 3:
            await asyncio.sleep(0.001)
        go.set()
        return [(await each).status for each in (*predicting, explaining)]

    assert service.runner.run(both()) == [200] * 4
    assert log[:2] == ["explain", "predict"]  # one small batch that had begun, and then the prediction
    assert log[2:] == ["explain"] * 6  # 48 parts by 8


def test_too_many_explanations_are_refused_while_predictions_are_answered(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = service.app._app._deployments.get("tiny")
    monkeypatch.setattr(served.explainer, "_max_queue_rows", 0)
    body = {"instances": tiny_model.pictures_of(1).tolist()}

    check_problem(service.ask("POST", EXPLAIN, json=body), 503, "rows waiting")
    assert service.ask("POST", PREDICT, json=body).status == 200


def test_the_document_of_a_deployment_is_openapi_and_says_what_its_routes_take(service: Service) -> None:
    document = service.ask("GET", "/v1/models/tiny/openapi.json", role="predict").json()

    validate(document)
    schemas = document["components"]["schemas"]
    paths = document["paths"]
    assert set(paths) == {PREDICT, EXPLAIN, "/v2/models/tiny/infer"}
    asked = paths[PREDICT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    asked = json.loads(json.dumps(asked).replace("#/components/schemas/", "#/$defs/")) | {"$defs": schemas}
    picture = tiny_model.pictures_of(1)[0]
    good = [
        {"instances": [picture.tolist()] * 8},
        {"instances": [{"b64": "AAAA"}]},
    ]
    bad = [
        {"instances": []},
        {"instances": [picture.tolist()] * 9},
        {"instances": [picture[:7].tolist()]},
        {"instances": [(picture - 300.0).tolist()]},
        {"instances": [{"b65": "x"}]},
        {},
    ]
    assert all(OAS31Validator(asked).is_valid(each) for each in good)
    assert not any(OAS31Validator(asked).is_valid(each) for each in bad)
    for path, schema in ((PREDICT, "Predictions"), (EXPLAIN, "Explanation")):
        answer = service.ask("POST", path, json=good[0] if path == PREDICT else {"instances": [picture.tolist()]})
        told = answer.json()
        OAS31Validator(schemas[schema]).validate(told)
    assert schemas["Predictions"]["properties"]["predictions"]["items"]["properties"]["ranked"]["items"]["properties"][
        "label"
    ]["enum"] == list(LABELS)
