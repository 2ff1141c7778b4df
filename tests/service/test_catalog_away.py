from __future__ import annotations

import asyncio
from pathlib import Path

from asgi_calls import Lifespan, Service, check_problem
from mms_sdk.service.app import create_app
from mms_sdk.storage.workspace import Workspace
from postgres_server import PostgresServer


def test_while_the_catalogs_server_is_away_answers_are_503_and_when_it_is_back_they_are_as_before(
    postgres: PostgresServer, runner: asyncio.Runner, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path / "ws", catalog=postgres.make_database())
    app = create_app(workspace)
    lifespan = Lifespan(app)
    runner.run(lifespan.begin())
    tokens = {name: workspace.catalog.tokens.issue(name, "admin") for name in ("admin", "other")}
    service = Service(app=app, workspace=workspace, tokens=tokens, runner=runner)
    before = service.ask("GET", "/v1/jobs")

    postgres.stop()
    try:
        known, unknown = service.ask("GET", "/v1/jobs"), service.ask("GET", "/v1/jobs", role="other")
    finally:
        postgres.start()
    after = service.ask("GET", "/v1/jobs", role="other")

    for answer in (known, unknown):
        check_problem(answer, 503, "did not answer", "MMS_CATALOG")
        assert answer.headers["retry-after"]
        assert postgres.password not in answer.body.decode()
    assert (before.status, after.status) == (200, 200)
    assert before.json() == after.json() == {"jobs": [], "next": None, "costs": {}}
    runner.run(lifespan.end())
    workspace.close()
