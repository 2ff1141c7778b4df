"""Triton's own Python clients, unchanged, against the service on a loopback port."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest

import tiny_model
from asgi_calls import Service
from tiny_model import LABELS, Tiny

http = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")


@pytest.fixture(scope="module")
def client(port: int) -> Iterator[Any]:
    with closing(http.InferenceServerClient(f"127.0.0.1:{port}")) as client:
        yield client


def bearer(service: Service, role: str = "predict") -> dict[str, str]:
    """Headers of their own for each call: the client writes into those it is given."""
    return {"Authorization": f"Bearer {service.tokens[role]}"}


def given(pictures: Any, *, binary: bool = True) -> Any:
    tensor = http.InferInput("image", list(pictures.shape), "UINT8")
    tensor.set_data_from_numpy(pictures, binary_data=binary)
    return tensor


def test_what_the_server_and_the_model_are(service: Service, client: Any) -> None:
    may = bearer(service)

    assert client.is_server_live(headers=may)
    assert client.is_server_ready(headers=may)
    assert not client.is_server_live()
    assert client.is_model_ready("tiny", headers=may)
    assert client.is_model_ready("tiny", "1", headers=may)
    assert not client.is_model_ready("tiny", "2", headers=may)
    assert not client.is_model_ready("other", headers=may)
    server = client.get_server_metadata(headers=may)
    assert server["name"] == "mms"
    assert {"binary_tensor_data", "model_repository", "statistics"} <= set(server["extensions"])
    told = client.get_model_metadata("tiny", "1", headers=may)
    assert told == client.get_model_metadata("tiny", headers=may)
    assert told["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 8, 6, 3]}]
    config = client.get_model_config("tiny", headers=may)
    assert config["max_batch_size"] == 8
    assert config["input"] == [{"name": "image", "data_type": "TYPE_UINT8", "dims": [8, 6, 3]}]
    assert config["output"] == [{"name": "scores", "data_type": "TYPE_FP32", "dims": [3]}]
    assert config["dynamic_batching"]["preferred_batch_size"] == [1, 2, 3, 4, 6, 8]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_scores_in_each_form(
    service: Service, tiny: Tiny, client: Any, binary_in: bool, binary_out: bool | None
) -> None:
    pictures = tiny_model.pictures_of(5)
    wanted = None if binary_out is None else [http.InferRequestedOutput("scores", binary_data=binary_out)]

    answer = client.infer(
        "tiny",
        [given(pictures, binary=binary_in)],
        model_version="1",
        outputs=wanted,
        headers=bearer(service),
        request_id="7",
        priority=3,
        timeout=20_000_000,
    )

    np.testing.assert_allclose(answer.as_numpy("scores"), tiny.scores(pictures), atol=1e-5)
    told = answer.get_response()
    assert (told["id"], told["model_name"], told["model_version"]) == ("7", "tiny", "1")
    assert answer.as_numpy("other") is None


@pytest.mark.parametrize("binary", [True, False])
def test_the_best_classes_by_the_classification_extension(
    service: Service, tiny: Tiny, client: Any, binary: bool
) -> None:
    pictures = tiny_model.pictures_of(4)
    wanted = http.InferRequestedOutput("scores", binary_data=binary, class_count=2)

    answer = client.infer("tiny", [given(pictures)], outputs=[wanted], headers=bearer(service))

    found = answer.as_numpy("scores")
    assert found.shape == (4, 2)
    for row, scores in zip(found, tiny.scores(pictures), strict=True):
        for text, at in zip(row, np.argsort(-scores), strict=False):
            score, position, label = (text.decode() if isinstance(text, bytes) else text).split(":")
            assert (int(position), label) == (at, LABELS[at])
            assert float(score) == pytest.approx(scores[at], abs=1e-5)


def test_requests_in_flight_at_once(service: Service, tiny: Tiny, client: Any) -> None:
    pictures = tiny_model.pictures_of(6)
    flying = [client.async_infer("tiny", [given(one[None])], headers=bearer(service)) for one in pictures]

    found = np.concatenate([each.get_result().as_numpy("scores") for each in flying])

    np.testing.assert_allclose(found, tiny.scores(pictures), atol=1e-5)


def test_errors_say_why(service: Service, client: Any) -> None:
    pictures = tiny_model.pictures_of(9)
    floats = http.InferInput("image", [1, 8, 6, 3], "FP32")
    floats.set_data_from_numpy(np.zeros((1, 8, 6, 3), np.float32))
    outputs = [http.InferRequestedOutput("scores"), http.InferRequestedOutput("logits")]
    for tensor, options, why in [
        (floats, {}, "has datatype UINT8; got 'FP32'"),
        (given(pictures), {}, "at most 8 rows"),
        (given(pictures[:1]), {"outputs": outputs}, r"one output, 'scores'; asked for \['scores', 'logits'\]"),
        (given(pictures[:1]), {"model_version": "2"}, "serves version 1 of 'tiny'; asked for '2'"),
        (given(pictures[:1]), {"priority": 4}, "priority is 1 for high, 2, normal, 3 low or 0; got 4"),
        (given(pictures[:1]), {"priority": 1}, "role editor"),
        (given(pictures[:1]), {"timeout": -5}, "timeout is a whole number of microseconds"),
        (given(pictures[:1]), {"request_compression_algorithm": "gzip"}, "Content-Encoding 'gzip'"),
    ]:
        with pytest.raises(http.InferenceServerException, match=why):
            client.infer("tiny", [tensor], headers=bearer(service), **options)
    with pytest.raises(http.InferenceServerException, match="nothing is deployed as 'other'"):
        client.infer("other", [given(pictures[:1])], headers=bearer(service))


def test_statistics_count_what_was_asked(service: Service, client: Any) -> None:
    may = bearer(service, "viewer")
    (before,) = client.get_inference_statistics("tiny", headers=may)["model_stats"]
    pictures = tiny_model.pictures_of(3)
    for _ in range(4):
        client.infer("tiny", [given(pictures)], headers=bearer(service))

    (after,) = client.get_inference_statistics("tiny", "1", headers=may)["model_stats"]

    assert after["inference_count"] - before["inference_count"] == 12
    assert after["execution_count"] - before["execution_count"] == 4
    success = [stats["inference_stats"]["success"]["count"] for stats in (before, after)]
    assert success[1] - success[0] == 4
    sizes = {each["batch_size"]: each["compute_infer"]["count"] for each in after["batch_stats"]}
    assert sizes[3] >= 4
    assert sum(sizes.values()) == after["execution_count"]
    assert after["mms"]["compiles_after_ready"] == after["mms"]["queued_rows"] == 0
    assert "tiny" in [each["name"] for each in client.get_inference_statistics(headers=may)["model_stats"]]
    with pytest.raises(http.InferenceServerException, match="takes the role 'viewer'"):
        client.get_inference_statistics(headers=bearer(service))


def test_the_repository_is_listed_loaded_from_and_unloaded(service: Service, tiny: Tiny, client: Any) -> None:
    admin, predict, viewer = (bearer(service, role) for role in ("admin", "predict", "viewer"))
    tiny_model.register(tiny, service.workspace, "spare")
    made = service.ask("PUT", "/v1/deployments/spare", json={"model": "spare@1", "max_batch": 1})
    assert made.status == 200

    def states(**options: Any) -> dict[str, tuple[str, str]]:
        index = client.get_model_repository_index(headers=viewer, **options)
        return {each["name"]: (each["version"], each["state"]) for each in index}

    assert states() == {"tiny": ("1", "READY"), "spare": ("1", "READY")}
    tiny_model.register(tiny, service.workspace, "spare")
    client.load_model("spare", headers=admin)
    assert states()["spare"] == ("2", "READY")
    assert client.is_model_ready("spare", "2", headers=predict)
    client.unload_model("spare", headers=admin)
    assert states()["spare"] == ("2", "UNAVAILABLE")
    assert not client.is_model_ready("spare", headers=predict)
    ready = service.ask("POST", "/v2/repository/index", body=b'{"ready": true}', role="viewer").json()
    assert [each["name"] for each in ready] == ["tiny"]
    for call, who, why in [
        (client.load_model, predict, "takes the role 'editor'"),
        (client.unload_model, viewer, "takes the role 'editor'"),
        (client.unload_model, admin, "nothing is deployed as 'spare'"),
    ]:
        with pytest.raises(http.InferenceServerException, match=why):
            call("spare", headers=who)
    with pytest.raises(http.InferenceServerException, match=r"no model|nothing"):
        client.load_model("nobody", headers=admin)
    with pytest.raises(http.InferenceServerException, match="cannot be overridden"):
        client.load_model("tiny", headers=admin, config='{"max_batch_size": 9}')
    assert states()["tiny"] == ("1", "READY")


def test_the_asyncio_client(service: Service, tiny: Tiny, port: int) -> None:
    aio = pytest.importorskip("tritonclient.http.aio", reason="needs tritonclient[http] with aiohttp")
    pictures = tiny_model.pictures_of(5)

    async def ask() -> Any:
        async with aio.InferenceServerClient(f"127.0.0.1:{port}") as client:
            assert await client.is_model_ready("tiny", headers=bearer(service))
            asked = [client.infer("tiny", [given(one[None])], headers=bearer(service)) for one in pictures]
            answers = await asyncio.gather(*asked)
            with pytest.raises(http.InferenceServerException, match="at most 8 rows"):
                await client.infer("tiny", [given(tiny_model.pictures_of(9))], headers=bearer(service))
            return np.concatenate([answer.as_numpy("scores") for answer in answers])

    np.testing.assert_allclose(asyncio.run(ask()), tiny.scores(pictures), atol=1e-5)
