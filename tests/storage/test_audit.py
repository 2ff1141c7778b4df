"""The audit log: whole, or the line is named that makes it not so."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mms_sdk.errors import Damaged, StorageFull
from mms_sdk.storage import audit as audit_module
from mms_sdk.storage.audit import AuditLog
from mms_sdk.storage.workspace import Workspace

TOLD: dict[str, Any] = {
    "who": "ada",
    "token": "1",
    "client": "127.0.0.1",
    "method": "PUT",
    "route": "/v1/deployments/{name}",
    "names": {"name": "api"},
    "status": 200,
    "request": "r",
}


def written(log: AuditLog, told: dict[str, Any]) -> None:
    """Writes a line as a change's is."""
    log.note(log.append(told))


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    made = Workspace(tmp_path / "workspace")
    yield made
    made.close()


@pytest.fixture
def log(workspace: Workspace) -> AuditLog:
    """A log of ten lines."""
    for status in range(200, 210):
        written(workspace.audit, {**TOLD, "status": status})
    return workspace.audit


def file_of(log: AuditLog) -> Path:
    (path,) = log._paths()
    return path


def test_lines_are_there_in_their_order_and_nobody_else_reads_them(log: AuditLog) -> None:
    assert [(entry.number, entry.status) for entry in log.entries()] == [(n + 1, 200 + n) for n in range(10)]
    assert [entry.number for entry in log.entries(since=7)] == [8, 9, 10]
    assert log.verify().number == 10
    for path in (file_of(log).parent, *file_of(log).parent.iterdir()):
        assert path.stat().st_mode & 0o077 == 0
    assert str(next(log.entries())).endswith("ada from 127.0.0.1: PUT /v1/deployments/api → 200")


def test_a_log_that_nothing_was_written_to_yet_has_no_lines(workspace: Workspace) -> None:
    assert list(workspace.audit.entries()) == []
    assert workspace.audit.verify().number == 0


def changed(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1].replace(b'"ada"', b'"eve"'), *lines[2:]]


HARMS: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "a line changed": changed,
    "the last line changed": lambda lines: [*lines[:-1], lines[-1].replace(b'"ada"', b'"eve"')],
    "a line taken out": lambda lines: lines[:4] + lines[5:],
    "the first line taken out": lambda lines: lines[1:],
    "two lines in another order": lambda lines: [*lines[:4], lines[5], lines[4], *lines[6:]],
    "a line put in": lambda lines: [*lines[:4], lines[3], *lines[4:]],
    "the end cut off": lambda lines: lines[:-1],
    "everything gone": lambda lines: [],
    "the last line half": lambda lines: [*lines[:-1], lines[-1][:20]],
    "no line at all": lambda lines: [*lines[:3], b"x\n", *lines[3:]],
    "a space more": lambda lines: [lines[0].replace(b"{", b"{ ", 1), *lines[1:]],
}


@pytest.mark.parametrize("harm", HARMS)
def test_what_was_done_to_a_log_is_found(log: AuditLog, harm: str) -> None:
    path = file_of(log)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(HARMS[harm](lines)))

    with pytest.raises(Damaged, match="audit log"):
        log.verify()


def test_a_log_that_is_gone_altogether_is_missed(log: AuditLog) -> None:
    file_of(log).unlink()

    with pytest.raises(Damaged, match="had 10 lines and ends at 0"):
        log.verify()


def test_a_log_written_anew_with_its_catalog_is_found_by_an_end_that_was_kept(
    log: AuditLog, workspace: Workspace, tmp_path: Path
) -> None:
    kept = log.verify()
    other = Workspace(tmp_path / "other")
    for _ in range(12):
        written(other.audit, {**TOLD, "who": "eve"})

    assert other.audit.verify().number == 12
    with pytest.raises(Damaged, match="line 10 is not the one it was"):
        other.audit.verify(head=kept)
    assert log.verify(head=kept) == kept
    written(log, TOLD)
    assert log.verify(head=kept).number == 11
    other.close()


def test_the_chain_goes_on_from_file_to_file(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "FILE_BYTES", 1000)
    log = workspace.audit
    for _ in range(20):
        written(log, TOLD)

    assert len(log._paths()) > 4
    assert log.verify().number == 20
    assert [entry.number for entry in log.entries(since=13)] == list(range(14, 21))
    log._paths()[2].unlink()
    with pytest.raises(Damaged, match="stands behind"):
        log.verify()


def test_half_a_line_of_a_power_cut_is_dropped_and_the_log_goes_on(log: AuditLog) -> None:
    with file_of(log).open("ab") as file:
        file.write(b'{"number": 11, "at"')
    assert log.verify().number == 10

    written(log, TOLD)

    assert log.verify().number == 11


def test_of_a_full_disk_nothing_of_a_line_stays(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write

    def short(handle: int, line: bytes) -> int:
        return write(handle, line[:10])

    with monkeypatch.context() as patch:
        patch.setattr(audit_module.os, "write", short)
        with pytest.raises(StorageFull, match="no space left"):
            written(log, TOLD)
    assert log.verify().number == 10
    written(log, TOLD)
    assert log.verify().number == 11


def _append(folder: str, times: int) -> None:
    workspace = Workspace(Path(folder))
    for _ in range(times):
        written(workspace.audit, TOLD)
    workspace.close()


def test_several_processes_write_one_chain(workspace: Workspace) -> None:
    written(workspace.audit, TOLD)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_append, args=(str(workspace.root), 15)) for _ in range(2)]
    for process in processes:
        process.start()
    for _ in range(15):
        written(workspace.audit, TOLD)
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0, 0]
    assert workspace.audit.verify().number == 46
