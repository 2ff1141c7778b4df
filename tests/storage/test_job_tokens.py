"""A job's token is one for as long as its attempt runs, and what looks like one is none."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from mms_sdk.schema.access import Principal, allows
from mms_sdk.schema.job import Attempt, Ended, JobRequest, JobSpec, Reason, Resources
from mms_sdk.storage import job_tokens
from mms_sdk.storage.ids import now
from mms_sdk.storage.job_tokens import JobTokens, close_to_jobs, open_to_jobs, server_for
from mms_sdk.storage.owners import here, owner_of
from mms_sdk.storage.workspace import Workspace

URL = "http://127.0.0.1:8765"
OF_ANOTHER_MACHINE = f"7:7@{uuid.UUID(int=1).hex[:12]}.{uuid.UUID(int=2).hex[:12]}"


@pytest.fixture
def tokens(workspace: Workspace) -> JobTokens:
    open_to_jobs(workspace.root, URL)
    return JobTokens(workspace.root, workspace.catalog.attempts)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "ws")


def started(workspace: Workspace) -> Attempt:
    attempts = workspace.catalog.attempts
    spec = JobSpec(bundle="0" * 64, entrypoint="train.py", resources=Resources(cpus=1))
    if not attempts.waiting("local", limit=1):
        attempts.submit(JobRequest(kind="script", name="train", spec=spec))
    taken = attempts.take(engine="local", owner=owner_of(os.getpid()), fits=lambda *_: {"cpus": 1})
    assert taken is not None
    return taken[1]


def token_of(workspace: Workspace, attempt: Attempt) -> str:
    server = server_for(workspace.root, attempt.job, attempt.number)
    assert server is not None
    assert server.url == URL
    return server.token


@pytest.mark.parametrize("reason", ["succeeded", "user", "cancelled", "lost", "preempted"])
def test_it_is_one_until_the_attempt_ends_however_it_does(
    workspace: Workspace, tokens: JobTokens, reason: Reason
) -> None:
    first = started(workspace)
    token = token_of(workspace, first)

    assert tokens.find(token) == Principal(name=f"job {first.job}", role="editor")
    assert allows("editor", job_tokens.ROLE)  # no higher than that of anybody who may submit

    workspace.catalog.attempts.end(first, Ended(reason=reason, at=now()))
    assert tokens.find(token) is None
    if reason == "preempted":  # the next attempt has another one
        again = started(workspace)
        assert (again.job, again.number) == (first.job, 2)
        assert tokens.find(token_of(workspace, again)) is not None
        assert tokens.find(token) is None


def test_what_was_changed_anywhere_is_none(workspace: Workspace, tokens: JobTokens) -> None:
    token = token_of(workspace, started(workspace))
    other = workspace.catalog.attempts.submit(
        JobRequest(kind="script", name="other", spec=JobSpec(bundle="0" * 64, entrypoint="train.py"))
    )
    for at, letter in enumerate(token):
        assert tokens.find(token[:at] + ("x" if letter != "x" else "y") + token[at + 1 :]) is None
    head, number, signature = token.split(".")
    for wrong in (
        "",
        head,
        f"{head}.{number}.",
        f"{head}.2.{signature}",
        f"{head}.01.{signature}",
        f"mms_job_{other.id}.{number}.{signature}",
        f"{head}.{number}.{signature}0",
        f"{token}\n",
        f"{head}.{'9' * 300}.{signature}",
        f"{head}.{number}.{'é' * 64}",
        f"{head}.\N{ARABIC-INDIC DIGIT ONE}.{signature}",
    ):
        assert tokens.find(wrong) is None


def test_with_another_key_those_of_before_are_none(workspace: Workspace, tokens: JobTokens) -> None:
    attempt = started(workspace)
    token, key = token_of(workspace, attempt), workspace.root / job_tokens.KEY
    assert key.stat().st_mode & 0o777 == 0o600

    open_to_jobs(workspace.root, URL)  # a server that is started again goes on with it
    assert tokens.find(token) is not None
    key.unlink()
    assert tokens.find(token) is None
    assert server_for(workspace.root, attempt.job, 1) is None
    key.write_bytes(b"")  # a full disk
    assert tokens.find(token) is None
    open_to_jobs(workspace.root, URL)
    assert tokens.find(token) is None
    assert tokens.find(token_of(workspace, attempt)) is not None


def test_it_is_told_only_of_a_server_that_runs_and_can_be_reached(workspace: Workspace, tokens: JobTokens) -> None:
    told = workspace.root / job_tokens.SERVER

    def is_told(url: str, owner: str) -> bool:
        told.write_text(f'{{"url": "{url}", "owner": "{owner}"}}')
        return server_for(workspace.root, "0" * 26, 1) is not None

    assert is_told(URL, owner_of(os.getpid()))
    assert not is_told(URL, f"1:1{here()}")  # it was killed
    assert not is_told(URL, OF_ANOTHER_MACHINE)
    assert not is_told("http://localhost:1", OF_ANOTHER_MACHINE)
    assert not is_told("http://[::1]:1", OF_ANOTHER_MACHINE)
    assert is_told("https://mms.example.org", OF_ANOTHER_MACHINE)
    close_to_jobs(workspace.root)  # which is another's
    assert told.exists()
    for garbage in ("", "[]", "{}", '"x"', "\0", '{"url": 5}'):
        told.write_text(garbage)
        assert server_for(workspace.root, "0" * 26, 1) is None
        close_to_jobs(workspace.root)
    open_to_jobs(workspace.root, URL)
    close_to_jobs(workspace.root)
    assert not told.exists()
    assert server_for(workspace.root, "0" * 26, 1) is None


def test_what_looks_after_a_job_makes_one_without_the_schemas() -> None:
    loaded = "import sys, mms_sdk.storage.job_tokens; print({'pydantic', 'sqlalchemy'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert said.stdout == "set()\n"
