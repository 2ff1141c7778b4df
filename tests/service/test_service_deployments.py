"""Deployments over REST: warm before they answer, switched over without a gap, gone when they are removed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import tiny_model
from asgi_calls import Lifespan, Service, check_problem
from mms_sdk.compute.inference.predictor import Predictor
from mms_sdk.schema.names import ModelRef
from mms_sdk.service.app import create_app
from mms_sdk.service.deployments import Deployments
from mms_sdk.settings import ServerSettings
from mms_sdk.storage.workspace import Workspace
from tiny_model import LABELS, Tiny


@pytest.fixture
def at(empty: Workspace, service: Service, tiny: Tiny) -> Iterator[Service]:
    """An app with nothing deployed and `tiny` in two versions."""
    for _ in range(2):
        tiny_model.register(tiny, empty)
    app = create_app(empty)
    lifespan = Lifespan(app)
    service.runner.run(lifespan.begin())
    yield replace(service, app=app, workspace=empty, tokens={"admin": empty.catalog.tokens.issue("boss", "admin")})
    service.runner.run(lifespan.end())


def put(at: Service, name: str = "pets", model: str = "tiny@1", max_batch: int = 2) -> Any:
    answer = at.ask("PUT", f"/v1/deployments/{name}", json={"model": model, "max_batch": max_batch})
    assert answer.status == 200, answer
    return answer.json()


def test_a_deployment_is_ready_when_it_is_answered_and_says_what_it_is(at: Service) -> None:
    told = put(at, max_batch=5)

    assert told == at.ask("GET", "/v1/deployments/pets").json()
    assert [told] == at.ask("GET", "/v1/deployments").json()
    assert (told["name"], told["model"], told["version"], told["state"]) == ("pets", "tiny", 1, "ready")
    assert told["labels"] == list(LABELS)
    assert told["signature"]["inputs"] == [{"name": "image", "dtype": "uint8", "shape": [8, 6, 3]}]
    assert told["buckets"] == [1, 2, 3, 4, 5]
    assert (told["requests"], told["rows"], told["compiles_after_ready"]) == (0, 0, 0)


def test_the_largest_batch_is_the_one_asked_for(at: Service) -> None:
    put(at, max_batch=5)
    pictures = tiny_model.pictures_of(6).tolist()

    assert at.ask("POST", "/v1/models/pets:predict", json={"instances": pictures[:5]}).status == 200
    check_problem(at.ask("POST", "/v1/models/pets:predict", json={"instances": pictures}), 400, "at most 5")


def test_a_model_can_be_named_by_number_alias_or_neither(at: Service) -> None:
    at.ask("PUT", "/v1/models/tiny/aliases/champion", json={"version": 1})

    assert put(at, model="tiny@champion")["version"] == 1
    assert put(at, model="tiny@2")["version"] == 2
    assert put(at, model="tiny@1")["version"] == 1
    assert put(at, model="tiny")["version"] == 2
    check_problem(at.ask("PUT", "/v1/deployments/x", json={"model": "tiny@3"}), 404, "[2, 1]", "champion")
    check_problem(at.ask("PUT", "/v1/deployments/x", json={"model": "other"}), 404, "['tiny']")


def test_deployments_share_the_thread_of_the_device_which_ends_with_the_app(
    empty: Workspace, service: Service, tiny: Tiny
) -> None:
    tiny_model.register(tiny, empty)
    app = create_app(empty)
    lifespan = Lifespan(app)
    service.runner.run(lifespan.begin())
    at = replace(service, app=app, tokens={"admin": empty.catalog.tokens.issue("boss", "admin")})
    before = set(threading.enumerate())
    for name in ("one", "other", "one"):
        put(at, name, max_batch=1)
    threads = [thread for thread in set(threading.enumerate()) - before if thread.name == "mms-device-0"]
    assert len(threads) == 1

    service.runner.run(lifespan.end())

    assert not threads[0].is_alive()


def test_a_deployment_that_was_removed_is_gone(at: Service) -> None:
    put(at)

    assert at.ask("DELETE", "/v1/deployments/pets").status == 204

    check_problem(at.ask("POST", "/v1/models/pets:predict", json={"instances": []}), 404)
    check_problem(at.ask("DELETE", "/v1/deployments/pets"), 404)
    assert at.ask("GET", "/v1/deployments").json() == []


def test_no_request_is_lost_while_a_deployment_is_switched_over_again_and_again(at: Service, tiny: Tiny) -> None:
    put(at)
    pictures = tiny_model.pictures_of(1)
    expected = tiny.scores(pictures)[0]
    answers: list[Any] = []

    async def ask_on(stop: asyncio.Event) -> None:
        while not stop.is_set():
            answers.append(await at.asking("POST", "/v1/models/pets:predict", json={"instances": pictures.tolist()}))

    async def switch() -> None:
        stop = asyncio.Event()
        asking = [asyncio.ensure_future(ask_on(stop)) for _ in range(8)]
        for turn in range(6):
            body = {"model": f"tiny@{turn % 2 + 1}", "max_batch": 1}
            assert (await at.asking("PUT", "/v1/deployments/pets", json=body)).status == 200
        stop.set()
        await asyncio.gather(*asking)

    at.runner.run(switch())

    assert {answer.status for answer in answers} == {200}
    assert {answer.json()["version"] for answer in answers} == {1, 2}
    for answer in answers:
        ranked = {each["label"]: each["score"] for each in answer.json()["predictions"][0]["ranked"]}
        np.testing.assert_allclose([ranked[label] for label in LABELS], expected, atol=1e-5)
    assert len(answers) > 50


def test_a_request_read_while_another_version_took_over_is_answered_by_that_one(
    at: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(at, model="tiny@1")
    old = at.app._app._deployments.get("pets")
    right = old.predictor.prepare

    def slow(item: Any) -> Any:  # the switch happens between finding the deployment and queueing the rows
        if at.app._app._deployments.get("pets") is old:
            at.app._app._deployments.put("pets", ModelRef(name="tiny", version=2), max_batch=1)
        return right(item)

    monkeypatch.setattr(old.predictor, "prepare", slow)

    answer = at.ask("POST", "/v1/models/pets:predict", json={"instances": tiny_model.pictures_of(1).tolist()})

    assert answer.status == 200
    assert answer.json()["version"] == 2


def test_what_is_damaged_is_not_served_and_what_was_served_before_still_is(at: Service) -> None:
    put(at, model="tiny@1")
    folder = at.workspace.artifact_location(at.workspace.catalog.models.list("tiny")[0]["artifact"])
    program = folder / "forward.stablehlo"
    data = bytearray(program.read_bytes())
    data[len(data) // 2] ^= 1
    program.chmod(0o600)
    program.write_bytes(data)

    check_problem(at.ask("PUT", "/v1/deployments/pets", json={"model": "tiny@2"}), 500, "damaged", "forward.stablehlo")

    told = at.ask("POST", "/v1/models/pets:predict", json={"instances": tiny_model.pictures_of(1).tolist()})
    assert told.json()["version"] == 1


class TestKept:
    """Deployments of a server outlive it."""

    @pytest.fixture(autouse=True)
    def _few_programs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(Deployments.put.__kwdefaults__, "max_batch", 1)

    def _serve(self, workspace: Workspace, service: Service) -> tuple[Service, Lifespan]:
        app = create_app(workspace, deployments=Deployments(workspace, ServerSettings(), keep=True))
        lifespan = Lifespan(app)
        service.runner.run(lifespan.begin())
        return replace(service, app=app, tokens={"admin": workspace.catalog.tokens.issue("boss", "admin")}), lifespan

    def test_what_a_server_served_the_next_one_serves(self, empty: Workspace, service: Service, tiny: Tiny) -> None:
        tiny_model.register(tiny, empty)
        first, lifespan = self._serve(empty, service)
        put(first, "kept")
        put(first, "dropped")
        first.ask("DELETE", "/v1/deployments/dropped")
        service.runner.run(lifespan.end())

        second, lifespan = self._serve(empty, service)

        assert [each["name"] for each in second.ask("GET", "/v1/deployments").json()] == ["kept"]
        service.runner.run(lifespan.end())

    def test_one_damaged_version_does_not_keep_a_server_from_serving_the_others(
        self, empty: Workspace, service: Service, tiny: Tiny, caplog: pytest.LogCaptureFixture
    ) -> None:
        for model in ("bad", "good"):
            tiny_model.register(tiny, empty, model)
            empty.catalog.deployments.keep(model, model=model, version=1, max_batch=2)
        folder = empty.artifact_location(empty.catalog.models.list("bad")[0]["artifact"])
        (folder / "model.json").unlink()

        at, lifespan = self._serve(empty, service)

        (good,) = at.ask("GET", "/v1/deployments").json()
        assert (good["name"], good["buckets"]) == ("good", [1, 2])
        check_problem(at.ask("GET", "/v2/models/bad/ready"), 404)
        assert "model.json" in caplog.text
        assert [name for name, *_ in empty.catalog.deployments.list()] == ["bad", "good"]
        service.runner.run(lifespan.end())


def test_an_app_that_ends_answers_what_is_queued_first(
    empty: Workspace, service: Service, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model.register(tiny, empty)
    app = create_app(empty)
    lifespan = Lifespan(app)
    service.runner.run(lifespan.begin())
    at = replace(service, app=app, tokens={"admin": empty.catalog.tokens.issue("boss", "admin")})
    put(at)
    batcher = app._app._deployments.get("pets").batcher
    right, go = batcher._scores, threading.Event()
    monkeypatch.setattr(batcher, "_scores", lambda rows: go.wait(5) and right(rows))

    async def end_while_asked() -> list[Any]:
        body = {"instances": tiny_model.pictures_of(1).tolist()}
        asked = [asyncio.ensure_future(at.asking("POST", "/v1/models/pets:predict", json=body)) for _ in range(10)]
        await asyncio.sleep(0.2)
        threading.Timer(0.1, go.set).start()
        await lifespan.end()
        return await asyncio.gather(*asked)

    assert {answer.status for answer in service.runner.run(end_while_asked())} == {200}


def test_two_deployments_at_once_each_get_a_predictor_of_their_own(at: Service) -> None:
    async def both() -> list[Any]:
        bodies = {f"pets-{n}": {"model": f"tiny@{n}", "max_batch": 1} for n in (1, 2)}
        return await asyncio.gather(
            *(at.asking("PUT", f"/v1/deployments/{name}", json=body) for name, body in bodies.items())
        )

    assert [answer.status for answer in at.runner.run(both())] == [200, 200]
    served = [at.app._app._deployments.get(f"pets-{n}") for n in (1, 2)]
    assert [each.version for each in served] == [1, 2]
    assert isinstance(served[0].predictor, Predictor)
    assert served[0].predictor is not served[1].predictor
