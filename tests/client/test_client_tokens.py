"""Tokens from Python and the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from over_http import serving

import mms_sdk as mms
from mms_sdk.cli import main
from mms_sdk.errors import Conflict, Forbidden, InvalidName, InvalidRequest, NotFound, RateLimited, Unauthenticated
from mms_sdk.service.app import create_app
from mms_sdk.storage.workspace import Workspace


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, mms.WorkspaceClient]]:
    """A server's address, and its workspace asked with the token of an admin."""
    workspace = Workspace(tmp_path / "workspace")
    with (
        serving(create_app(workspace)) as url,
        mms.connect(url, token=workspace.catalog.tokens.issue("boss", "admin")) as ws,
    ):
        yield url, ws
    workspace.close()


def test_a_token_is_made_used_rotated_and_revoked(served: tuple[str, mms.WorkspaceClient]) -> None:
    url, ws = served
    made = ws.tokens.create("ci", role="viewer", lifetime_s=3600)
    with mms.connect(url, token=made.text) as asked:
        assert asked.jobs.counts() == {}
        with pytest.raises(Forbidden, match="'admin'"):
            asked.tokens.list()

        rotated = ws.tokens.rotate("ci")
        with pytest.raises(Unauthenticated):
            asked.jobs.counts()
    with mms.connect(url, token=rotated.text) as asked:
        assert asked.jobs.counts() == {}
        ws.tokens.revoke("ci")
        with pytest.raises(Unauthenticated):
            asked.jobs.counts()

    told = ws.tokens.list()
    assert [(token.name, token.role) for token in told] == [("boss", "admin"), ("ci", "viewer")]
    assert ws.tokens.get("ci").revoked_at
    assert "revoked" in repr(told)
    with pytest.raises(Conflict, match="last one"):
        ws.tokens.revoke("boss")
    with pytest.raises(NotFound, match="no token 'nobody'"):
        ws.tokens.rotate("nobody")


def test_a_new_token_shows_itself_without_its_text(served: tuple[str, mms.WorkspaceClient]) -> None:
    _, ws = served
    made = ws.tokens.create("robot", lifetime_s=None)

    for shown in (repr(made), str(made), made._repr_html_()):
        assert made.text not in shown
        assert "robot" in shown
        assert "for ever" in shown


def test_who_asks_too_much_is_told_how_long_to_wait(served: tuple[str, mms.WorkspaceClient]) -> None:
    url, ws = served
    made = ws.tokens.create("slow", role="viewer", requests_per_s=0.1, burst=1)

    with mms.connect(url, token=made.text) as asked:
        asked.jobs.counts()
        with pytest.raises(RateLimited, match=r"0\.1 requests a second"):
            asked.jobs.counts()


def test_what_no_token_can_be_is_refused(served: tuple[str, mms.WorkspaceClient]) -> None:
    _, ws = served
    with pytest.raises(InvalidName, match="a token name"):
        ws.tokens.create("../x")
    for options in ({"role": "owner"}, {"lifetime_s": -1}, {"burst": 3}, {"requests_per_s": float("inf")}):
        with pytest.raises(InvalidRequest):
            ws.tokens.create("x", **options)  # type: ignore[arg-type]


def test_tokens_on_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ["--workspace", str(tmp_path / "workspace")]

    assert main(["tokens", "create", "ci", "--role", "viewer", "--expires", "30d", "--rate", "5", *at, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["role"], made["limits"]["requests_per_s"], made["text"][:4]) == ("viewer", 5, "mms_")
    assert main(["tokens", "rotate", "ci", "--overlap", "10min", *at]) == 0
    rotated = capsys.readouterr().out
    assert "mms_" in rotated
    assert made["text"] not in rotated
    assert main(["tokens", *at]) == 0
    assert "mms_" not in (listed := capsys.readouterr().out)
    assert "viewer" in listed
    assert main(["tokens", "revoke", "ci", *at]) == 0
    assert "revoked_at" in capsys.readouterr().out
    for words in (["tokens", "create"], ["tokens", "list", "x"], ["tokens", "rotate", "ci", "--rate", "3"]):
        assert main([*words, *at]) != 0
    assert main(["tokens", "rotate", "ci", "--expires", "never", *at]) != 0
    assert "for a time" in capsys.readouterr().err


def test_the_audit_log_is_read_and_verified(
    served: tuple[str, mms.WorkspaceClient], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, ws = served
    ws.tokens.create("ci", lifetime_s=60)
    ws.tokens.revoke("ci")
    at = ["--workspace", str(tmp_path / "workspace")]

    assert [(each.who, each.method) for each in ws.audit.entries()] == [("boss", "POST"), ("boss", "DELETE")]
    assert [each.number for each in ws.audit.entries(since=1)] == [2]
    assert list(ws.audit.entries(since=datetime.now(UTC))) == []
    head = ws.audit.verify()
    assert ws.audit.verify(str(head)) == head
    with pytest.raises(InvalidRequest, match="NUMBER:SHA256"):
        ws.audit.verify("x")
    with pytest.raises(InvalidRequest, match="zone"):
        list(ws.audit.entries(since=datetime(2025, 1, 1)))
    assert main(["audit", "verify", "--head", str(head), *at]) == 0
    assert f"2 lines, none changed; the end of the log is {head}" in capsys.readouterr().out
    assert main(["audit", "show", "--since", "1h", *at]) == 0
    assert "boss from 127.0.0.1: DELETE /v1/tokens/ci → 200" in capsys.readouterr().out
    path = next((tmp_path / "workspace" / "audit").glob("*.jsonl"))
    path.write_bytes(path.read_bytes().replace(b"boss", b"ross", 1))
    assert main(["audit", "verify", *at]) != 0
    assert "was changed" in capsys.readouterr().err
