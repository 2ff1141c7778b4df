"""The OpenAPI document: that of the app, and valid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate

from asgi_calls import Service
from mms_sdk.schema.access import ROLES

KEPT = Path(__file__).parents[2] / "docs" / "openapi.json"


@pytest.fixture(scope="module")
def told(service: Service) -> Any:
    return service.ask("GET", "/openapi.json", role="viewer").json()


def operations(told: Any) -> list[tuple[str, str, Any]]:
    return [(method.upper(), path, each) for path, methods in told["paths"].items() for method, each in methods.items()]


def test_the_document_that_is_kept_is_that_of_the_app(told: Any) -> None:
    assert json.loads(KEPT.read_text(encoding="utf-8")) == told, "write it anew: scripts/openapi"


def test_it_is_valid(told: Any) -> None:
    validate(told)


def test_it_names_each_route_that_the_guard_knows_with_its_role(service: Service, told: Any) -> None:
    known = {(method, rule.template, rule.role) for rule in service.app._rules for method in rule.methods}
    named = {(method, path, each["x-mms-role"]) for method, path, each in operations(told)}

    assert named == known - {("GET", "/openapi.json", "viewer")}
    assert {role for *_, role in named} == {"open", *ROLES}


def test_what_is_refused_is_a_problem_and_what_is_open_needs_no_token(service: Service, told: Any) -> None:
    for _, _, each in operations(told):
        (schema,) = each["responses"]["default"]["content"].values()
        assert schema["schema"]["$ref"].endswith("/Problem")
        assert (each.get("security") == []) == (each["x-mms-role"] == "open")
    refused = service.ask("GET", "/v1/jobs/nothing", role="viewer").json()
    assert set(told["components"]["schemas"]["Problem"]["required"]) == refused.keys()
