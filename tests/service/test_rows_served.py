"""`:predict` and the Open Inference Protocol for models that take no pictures: texts, and rows of a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import mms_sdk as mms
import small_kinds
from mms_sdk.errors import InvalidInput, InvalidRequest, UnsupportedMediaType

JSON = {"content-type": "application/json"}
ROW = {"size": 1.5, "legs": 4, "colour": "blue", "seen": "2023-12-01T10:00:00Z"}


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A workspace with a model of texts and one of rows of a table, deployed."""
    root = tmp_path_factory.mktemp("rows") / "workspace"
    results = {
        kind: small_kinds.trainer(kind, epochs=1).fit(small_kinds.make(root, kind), progress="none")
        for kind in ("text", "table")
    }
    with mms.connect(workspace=root) as ws:
        for kind, result in results.items():
            ws.models.register(kind, result)
            ws.deployments.create(kind, model=kind, max_batch=2)
        yield ws


def post(ws: Any, kind: str, body: bytes, content_type: str, path: str = "/v1/models/{}:predict") -> Any:
    return ws._api.send_bytes("POST", path.format(kind), body, dict[str, Any], headers={"content-type": content_type})


def same(one: Any, other: Any) -> bool:
    """Whether two predictions are, up to what batches of another size make of the last bits."""
    scores = [dict(each.top(3)) for each in (one, other)]
    return all(scores[0][label] == pytest.approx(scores[1][label], abs=1e-5) for label in small_kinds.LABELS)


def test_a_text_is_answered_alike_as_json_and_as_it_is(ws: Any) -> None:
    text = "the honey and a flower 🐝"
    deployed = ws.deployments.get("text")

    one, other = deployed.predict_many([text, "purr purr"])

    assert same(deployed.predict(text), one)
    assert not same(one, other)
    raw = post(ws, "text", text.encode(), "text/plain; charset=utf-8")["predictions"][0]
    assert [each["label"] for each in raw["ranked"]] == [label for label, _ in one.top(3)]
    assert sum(score for _, score in one.top(3)) == pytest.approx(1, abs=1e-6)


def test_a_row_of_a_table_is_answered_by_its_columns(ws: Any) -> None:
    deployed = ws.deployments.get("table")

    one, other = deployed.predict_many([ROW, {**ROW, "legs": 6, "colour": None}])

    assert {label for label, _ in one.top(3)} == set(small_kinds.LABELS)
    assert same(deployed.predict(ROW), one)
    assert not same(one, other)
    assert deployed.predict({**ROW, "colour": "green"}) == deployed.predict({**ROW, "colour": None})


def test_what_is_no_row_is_refused_and_says_why(ws: Any) -> None:
    table, text = ws.deployments.get("table"), ws.deployments.get("text")
    with pytest.raises(InvalidInput, match=r"without \['seen'\]"):
        table.predict({name: value for name, value in ROW.items() if name != "seen"})
    with pytest.raises(InvalidInput, match=r"a row has a value, .* for each of"):
        table.predict([1, 2, 3])
    with pytest.raises(InvalidInput, match="a text is a string"):
        text.predict(3)
    with pytest.raises(InvalidInput, match="it is sent as JSON"):
        table.predict({**ROW, "size": object()})
    with pytest.raises(InvalidInput, match="at least one instance"):
        text.predict_many([])
    with pytest.raises(InvalidRequest, match="at most 2 rows"):
        text.predict_many(["a"] * 3)
    with pytest.raises(UnsupportedMediaType, match="text/plain or several in multipart/form-data; got 'image/png'"):
        post(ws, "text", b"x", "image/png")
    with pytest.raises(UnsupportedMediaType, match="takes application/json; got 'text/plain'"):
        post(ws, "table", b"x", "text/plain")
    with pytest.raises(InvalidInput, match="a text is UTF-8"):
        post(ws, "text", b"\xff", "text/plain")


def test_tensors_have_the_type_and_name_that_the_model_says(ws: Any) -> None:
    told = ws._api.get("/v2/models/text", dict[str, Any])["inputs"]
    assert told == [{"name": "text", "datatype": "INT32", "shape": [-1, 48]}]
    ids = mms.text.Bytes(48).on_row(b"honey")
    body = b'{"inputs": [{"name": "text", "shape": [1, 48], "datatype": "INT32", "data": %s}]}'
    whole = str(ids.tolist()).encode()

    found = post(ws, "text", body % whole, "application/json", "/v2/models/{}/infer")["outputs"][0]["data"]

    best = ws.deployments.get("text").predict("honey").label
    assert best == small_kinds.LABELS[int(np.argmax(found))]
    for wrong in (b"[0.5" + b", 0" * 47 + b"]", b"[3000000000" + b", 0" * 47 + b"]"):
        with pytest.raises(InvalidInput, match="an instance holds whole numbers of 32 bits"):
            post(ws, "text", body % wrong, "application/json", "/v2/models/{}/infer")
    with pytest.raises(InvalidInput, match="has datatype INT32; got 'UINT8'"):
        post(ws, "text", (body % whole).replace(b"INT32", b"UINT8"), "application/json", "/v2/models/{}/infer")
