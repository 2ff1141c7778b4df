"""Jobs over REST: one recorded end each, with the reason, however the work went."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

import pytest

from asgi_calls import Service, check_problem
from mms_sdk.compute.engines.log import give_up_middle
from mms_sdk.errors import Damaged, StorageFull, Unavailable
from mms_sdk.schema.job import Job, Progress
from mms_sdk.service.jobs import JobRunner, Tell, interrupt_jobs
from mms_sdk.storage.workspace import Workspace


@pytest.fixture
def jobs(empty: Workspace) -> Iterator[JobRunner]:
    jobs = JobRunner(empty)
    yield jobs
    jobs.close()


def ended(workspace: Workspace, job: Job) -> Job:
    for _ in range(1000):
        if (found := workspace.catalog.jobs.get(job.id)).ended:
            return found
        time.sleep(0.01)
    raise AssertionError(found)


def test_what_the_work_returns_is_the_jobs_result(jobs: JobRunner, empty: Workspace) -> None:
    job = jobs.submit("ingest", "pets", {"a": 1}, lambda job, tell: {"rows": 5, "id": job.id})

    found = ended(empty, job)

    assert (found.state, found.result, found.spec, found.error) == (
        "succeeded",
        {"rows": 5, "id": job.id},
        {"a": 1},
        None,
    )
    assert found.ended_at is not None


@pytest.mark.parametrize(
    ("error", "kind", "detail"),
    [
        (StorageFull("no space"), "urn:mms:storage-full", "no space"),
        (Damaged("a flipped bit"), "urn:mms:damaged", "a flipped bit"),
        (ZeroDivisionError("by nought"), "urn:mms:internal-error", "ZeroDivisionError: by nought"),
        (MemoryError(), "urn:mms:internal-error", "MemoryError: "),
        (KeyboardInterrupt(), "urn:mms:internal-error", "KeyboardInterrupt: "),
        (SystemExit(3), "urn:mms:internal-error", "SystemExit: 3"),
    ],
)
def test_whatever_the_work_raises_is_the_jobs_recorded_end(
    jobs: JobRunner, empty: Workspace, error: BaseException, kind: str, detail: str
) -> None:
    def work(*_: Any) -> Any:
        raise error

    found = ended(empty, jobs.submit("ingest", "pets", {}, work))

    assert found.state == "failed"
    assert found.error is not None
    assert (found.error["type"], found.error["detail"]) == (kind, detail)
    assert ended(empty, jobs.submit("ingest", "pets", {}, lambda *_: {})).state == "succeeded"


def test_a_result_that_cannot_be_recorded_is_a_failure_and_not_a_job_that_runs_for_ever(
    jobs: JobRunner, empty: Workspace
) -> None:
    found = ended(empty, jobs.submit("ingest", "pets", {}, lambda *_: {"what": object()}))

    assert found.state == "failed"
    assert found.error is not None
    assert "JSON" in found.error["detail"]


def test_a_number_that_json_has_not_got_is_shown_and_breaks_no_answer(at: Service) -> None:
    recorded = at.workspace.catalog.jobs
    job = recorded.start("train", "pets", {"learning_rate": float("inf")})
    recorded.finish(job.id, "succeeded", result={"metrics": {"val/loss": float("nan"), "val/accuracy": 0.5}})

    one = at.ask("GET", f"/v1/jobs/{job.id}")
    page = at.ask("GET", "/v1/jobs")

    assert one.status == page.status == 200, (one, page)
    for body in (one.body, page.body):
        assert b"NaN" not in body
        assert b"Infinity" not in body
    assert one.json()["result"]["metrics"] == {"val/loss": None, "val/accuracy": 0.5}


def test_progress_is_seen_while_the_job_runs_and_not_after_it(at: Service, empty: Workspace) -> None:
    told, go = threading.Event(), threading.Event()
    runner = JobRunner(empty)

    def work(_: Job, tell: Any) -> dict[str, Any]:
        tell(Progress(done=3, total=10, what="pictures"))
        told.set()
        go.wait(10)
        return {}

    job = runner.submit("ingest", "pets", {}, work)
    told.wait(10)
    running = at.ask("GET", f"/v1/jobs/{job.id}").json()
    go.set()
    found = ended(empty, job)
    empty.catalog.jobs.progress(job.id, Progress(done=9, total=10, what="late"))
    runner.close()

    assert (running["state"], running["progress"]) == ("running", {"done": 3, "total": 10, "what": "pictures"})
    assert found.state == "succeeded"
    assert empty.catalog.jobs.get(job.id).progress.done == 3


def test_a_job_ends_once(jobs: JobRunner, empty: Workspace) -> None:
    job = ended(empty, jobs.submit("ingest", "pets", {}, lambda *_: {"rows": 1}))

    assert not empty.catalog.jobs.finish(job.id, "failed", error={"detail": "late"})
    assert empty.catalog.jobs.get(job.id) == job


def test_closing_waits_for_what_runs_and_takes_nothing_more(jobs: JobRunner, empty: Workspace) -> None:
    made = [jobs.submit("ingest", "pets", {}, lambda *_: time.sleep(0.1) or {}) for _ in range(5)]

    jobs.close()

    assert {empty.catalog.jobs.get(job.id).state for job in made} == {"succeeded"}
    with pytest.raises(Unavailable, match="shutting down"):
        jobs.submit("ingest", "pets", {}, lambda *_: {})
    assert len(empty.catalog.jobs.list()) == 5


def test_an_interrupt_ends_what_runs_where_it_next_tells_its_progress(
    jobs: JobRunner, empty: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mms_sdk.service.jobs._runners", WeakSet([jobs]))  # those of other tests go on
    begun = threading.Event()

    def work(_: Job, tell: Tell) -> dict[str, object]:
        for done in range(10_000):
            begun.set()
            try:
                tell(Progress(done=done, total=10_000, what="steps"))
            except Exception:  # noqa: BLE001 (work that handles its errors does not handle this)
                return {}
            time.sleep(0.001)
        return {}

    job = jobs.submit("ingest", "pets", {}, work)
    assert begun.wait(10)
    interrupt_jobs()

    found = ended(empty, job)
    assert (found.state, found.error) == ("cancelled", {"title": "cancelled", "detail": "stopped by the person"})


def test_jobs_come_newest_first_page_by_page_each_once(at: Service) -> None:
    made = [at.workspace.catalog.jobs.start("ingest", f"d{number}", {}).id for number in range(25)]
    seen: list[str] = []
    before = ""
    for _ in range(10):
        page = at.ask("GET", "/v1/jobs?limit=7" + (f"&before={before}" if before else "")).json()
        seen += [job["id"] for job in page["jobs"]]
        if page["next"] is None:
            break
        before = page["next"]

    assert seen == sorted(made, reverse=True)
    for job in made:
        at.workspace.catalog.jobs.finish(job, "cancelled")


def test_only_files_that_jobs_make_can_be_fetched_and_nothing_beside_them(at: Service) -> None:
    job = at.workspace.catalog.jobs.start("ingest", "pets", {})
    at.workspace.catalog.jobs.finish(job.id, "succeeded")
    folder = at.workspace.job_folder(job.id)
    (folder / "rejects.jsonl").write_bytes(b'{"source": "a"}\n')
    (folder / "secret.txt").write_text("secret")
    (folder.parent / "rejects.jsonl").write_text("of another")

    got = at.ask("GET", f"/v1/jobs/{job.id}/artifacts/rejects.jsonl")

    assert (got.status, got.body) == (200, b'{"source": "a"}\n')
    assert got.headers["content-type"] == "application/octet-stream"
    assert got.headers["content-disposition"].startswith("attachment")
    check_problem(at.ask("GET", f"/v1/jobs/{job.id}/artifacts/predictions.parquet"), 404, "no file")
    check_problem(at.ask("GET", f"/v1/jobs/{job.id}/artifacts/secret.txt"), 404)
    for name in ("..%2frejects.jsonl", "%2e%2e/rejects.jsonl", "rejects.jsonl%00", "/etc/passwd"):
        answer = at.ask("GET", f"/v1/jobs/{job.id}/artifacts/{name}")
        assert answer.status in (400, 404)


@pytest.mark.parametrize(
    "asked", ["bytes=0-3", "bytes=-3", "bytes=99-", "bytes=x-y", "bytes=5-1", "lines=1", "bytes=" + "0-1," * 50]
)
def test_a_range_is_not_served_and_a_broken_one_breaks_nothing(at: Service, asked: str) -> None:
    job = at.workspace.catalog.jobs.start("ingest", "pets", {})
    at.workspace.catalog.jobs.finish(job.id, "succeeded")
    (at.workspace.job_folder(job.id) / "rejects.jsonl").write_bytes(b"0123456789")

    got = at.ask("GET", f"/v1/jobs/{job.id}/artifacts/rejects.jsonl", headers=[("range", asked)])

    assert (got.status, got.body) == (200, b"0123456789")


def test_of_a_log_whose_middle_was_given_up_the_rest_is_fetched_and_how_much_is_missing(
    at: Service,
) -> None:
    job = at.workspace.catalog.jobs.start("trial", "pets", {})
    at.workspace.catalog.jobs.finish(job.id, "succeeded")
    log = at.workspace.job_folder(job.id) / "log.txt"
    written = "".join(f"{number:07d} \N{SNOWMAN}\n" for number in range(400_000)).encode()  # a sign of three bytes
    log.write_bytes(written)
    where = f"/v1/jobs/{job.id}/artifacts"
    assert at.ask("GET", f"{where}/log.txt").body == written

    give_up_middle(log, 2**20)

    got = at.ask("GET", f"{where}/log.txt")
    assert got.status == 200
    assert got.headers["content-disposition"] == 'attachment; filename="log.txt"'
    before, told, after = re.split(r"\n--- ([0-9,]+) bytes left out ---\n", got.body.decode())  # all signs are whole
    assert before.encode() == written[: len(before.encode())]
    assert after.encode() == written[-len(after.encode()) :]
    lost = len(written) - len(before.encode()) - len(after.encode())
    assert 0 <= lost - int(told.replace(",", "")) <= 4  # besides the halves of two signs
    (listed,) = at.ask("GET", where).json()
    assert listed["bytes"] == len(written) - int(told.replace(",", ""))
    assert log.stat().st_size == len(written)


def test_metrics_count_requests_by_the_class_of_their_status(service: Service) -> None:
    def counted() -> dict[str, float]:
        lines = service.ask("GET", "/metrics").body.decode().splitlines()
        found = [line for line in lines if line.startswith("mms_requests_total{")]
        return {line.split('"')[1]: float(line.rpartition(" ")[2]) for line in found}

    before = counted()
    for _ in range(5):
        service.ask("GET", "/healthz")
    for _ in range(3):
        service.ask("GET", "/nowhere")
    after = counted()

    assert after["2xx"] - before["2xx"] == 6  # the first reading counts once it was answered
    assert after["4xx"] - before["4xx"] == 3
    assert after["5xx"] == before["5xx"]
