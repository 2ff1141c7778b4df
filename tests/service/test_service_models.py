"""Model versions over REST: whole, numbered once, never changed; and aliases."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import tiny_model
from asgi_calls import Answer, Service, check_problem
from mms_sdk.storage import manifest
from mms_sdk.storage.workspace import Workspace
from tiny_model import Tiny


def stage(workspace: Workspace, tiny: Tiny) -> tuple[str, Path]:
    staged, folder = workspace.stage()
    shutil.copytree(tiny.artifact, folder, dirs_exist_ok=True)
    return staged, folder


def register(at: Service, staged: str, model: str = "pets") -> Answer:
    return at.ask("POST", f"/v1/models/{model}/versions", json={"staged": staged})


def test_a_registered_version_is_found_in_every_way_it_can_be_asked_for(at: Service, tiny: Tiny) -> None:
    made = register(at, stage(at.workspace, tiny)[0])

    assert made.status == 201
    told = made.json()
    assert (told["model"], told["version"], told["aliases"]) == ("pets", 1, [])
    assert told["card"]["lineage"]["dataset"] == "pets@1"
    for path in ("/v1/models/pets/versions/1", "/v1/models/pets/versions/newest"):
        assert at.ask("GET", path).json() == told
    assert at.ask("GET", "/v1/models").json() == [told]
    assert at.ask("GET", "/v1/models/pets/versions").json() == [told]


def test_a_staged_artefact_becomes_one_version_however_often_it_is_registered_at_once(at: Service, tiny: Tiny) -> None:
    staged, _ = stage(at.workspace, tiny)

    async def all_at_once() -> list[Answer]:
        asked = [at.asking("POST", "/v1/models/pets/versions", json={"staged": staged}) for _ in range(6)]
        return await asyncio.gather(*asked)

    answers = at.runner.run(all_at_once())

    assert sorted(answer.status for answer in answers)[0] == 201
    for answer in answers:
        if answer.status != 201:
            assert answer.status in (404, 409), answer
            check_problem(answer, answer.status)
    assert len(at.ask("GET", "/v1/models").json()) == 1


def test_versions_registered_at_once_are_numbered_without_gaps_or_repeats(at: Service, tiny: Tiny) -> None:
    staged = [stage(at.workspace, tiny)[0] for _ in range(6)]

    async def all_at_once() -> list[Answer]:
        asked = [at.asking("POST", "/v1/models/pets/versions", json={"staged": each}) for each in staged]
        return await asyncio.gather(*asked)

    answers = at.runner.run(all_at_once())

    assert {answer.status for answer in answers} == {201}
    assert sorted(answer.json()["version"] for answer in answers) == [1, 2, 3, 4, 5, 6]
    assert {answer.json()["artifact"] for answer in answers} == set(staged)


@pytest.mark.parametrize("name", ["forward.stablehlo", "model.json", "weights"])
def test_a_staged_artefact_that_is_damaged_is_no_version_and_the_file_is_named(
    at: Service, tiny: Tiny, name: str
) -> None:
    staged, folder = stage(at.workspace, tiny)
    files = [path for path in (folder, *folder.rglob("*")) if path.is_file() and name in path.as_posix()]
    path = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)

    check_problem(register(at, staged), 500, "damaged", path.name)

    assert at.ask("GET", "/v1/models").json() == []
    assert register(at, stage(at.workspace, tiny)[0]).json()["version"] == 1


def test_an_artefact_without_a_manifest_or_with_another_file_is_no_version(at: Service, tiny: Tiny) -> None:
    staged, folder = stage(at.workspace, tiny)
    (folder / "MANIFEST.json").unlink()
    check_problem(register(at, staged), 500, "MANIFEST.json")

    staged, folder = stage(at.workspace, tiny)
    (folder / "extra.py").write_text("print('run me')")
    check_problem(register(at, staged), 500, "extra.py")
    assert at.ask("GET", "/v1/models").json() == []


@pytest.mark.parametrize(
    "change",
    [
        {"artifact_version": 2},
        {"labels": ["ant", "bee"]},
        {"host": [{"step": "os.system", "command": "true"}]},
        {"host": [{"step": "image.resize", "height": "x", "code": 1}]},
        {"signature": None},
        {"unknown": 1},
        {"metrics": {"val/loss": None}},
    ],
)
def test_a_card_that_does_not_fit_is_refused_even_if_it_is_sealed(
    at: Service, tiny: Tiny, change: dict[str, Any]
) -> None:
    staged, folder = stage(at.workspace, tiny)
    card = json.loads((folder / "model.json").read_bytes()) | change
    (folder / "model.json").write_text(json.dumps(card))
    (folder / "MANIFEST.json").unlink()
    manifest.seal(folder)

    check_problem(register(at, staged), 500)
    assert at.ask("GET", "/v1/models").json() == []


class TestAliases:
    @pytest.fixture(autouse=True)
    def _two_versions(self, at: Service, tiny: Tiny) -> None:
        for _ in range(2):
            tiny_model.register(tiny, at.workspace, "pets")

    def test_an_alias_moves_and_a_version_has_as_many_as_it_is_given(self, at: Service) -> None:
        for alias, version in (("champion", 1), ("candidate", 2), ("champion", 2)):
            told = at.ask("PUT", f"/v1/models/pets/aliases/{alias}", json={"version": version})
            assert told.status == 200
            assert told.json()["version"] == version

        two, one = at.ask("GET", "/v1/models/pets/versions").json()
        assert (two["aliases"], one["aliases"]) == (["candidate", "champion"], [])
        assert at.ask("GET", "/v1/models/pets/versions/champion").json() == two

    @pytest.mark.parametrize("alias", ["1", "007", "3rd", "newest", "99999999999"])
    def test_an_alias_that_could_be_taken_for_a_version_is_refused(self, at: Service, alias: str) -> None:
        check_problem(at.ask("PUT", f"/v1/models/pets/aliases/{alias}", json={"version": 1}), 400)

    def test_an_alias_of_a_version_that_is_not_there_is_refused_and_stays_as_it_was(self, at: Service) -> None:
        at.ask("PUT", "/v1/models/pets/aliases/champion", json={"version": 1})

        check_problem(at.ask("PUT", "/v1/models/pets/aliases/champion", json={"version": 3}), 404, "[2, 1]")
        check_problem(at.ask("PUT", "/v1/models/other/aliases/champion", json={"version": 1}), 404)

        assert at.ask("GET", "/v1/models/pets/versions/champion").json()["version"] == 1

    def test_what_is_asked_for_and_not_there_is_said_with_what_is(self, at: Service) -> None:
        check_problem(at.ask("GET", "/v1/models/pets/versions/3"), 404, "[2, 1]")
        check_problem(at.ask("GET", "/v1/models/pets/versions/best"), 404, "'best'")
        check_problem(at.ask("GET", "/v1/models/other/versions/1"), 404, "['pets']")
