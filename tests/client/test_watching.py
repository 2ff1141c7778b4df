"""Whoever watches hears everything once and in order, whatever becomes of connections, over both transports."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil
import pytest
import sqlalchemy as sa
from over_http import serving

import mms_sdk as mms
from mms_sdk.client.api import Api
from mms_sdk.client.messages import Message, messages
from mms_sdk.compute.engines.folder import attempt_folder
from mms_sdk.errors import InvalidRequest, JobNotFound, NotFound, TooLarge, Unauthenticated, Unavailable
from mms_sdk.schema.event import Event
from mms_sdk.schema.rank import Beat
from mms_sdk.service import artifacts, ranks, streams
from mms_sdk.service.app import create_app
from mms_sdk.service.streams import Streams
from mms_sdk.settings import ServerSettings
from mms_sdk.storage import events, metric_log, tables
from mms_sdk.storage.events import Events
from mms_sdk.storage.metric_log import MetricLog
from mms_sdk.storage.workspace import Workspace

Client = mms.WorkspaceClient
SMALL = mms.Resources(cpus=1, gpus=0)


@pytest.fixture
def workspace(folder: Path) -> Iterator[Workspace]:
    """The same workspace, to write to behind the back of who watches."""
    opened = Workspace(folder)
    yield opened
    opened.close()


@pytest.fixture
def any_job(workspace: Workspace) -> str:
    return workspace.catalog.jobs.start("ingest", "pets", {}).id


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(work()), name="watcher")
    thread.start()
    return thread, found


def newest(workspace: Workspace) -> int:
    since = 0
    while page := workspace.catalog.events.list(since=since):
        since = page[-1].number
    return since


# Events ------------------------------------------------------------------------------------------------------------


def test_a_jobs_events_are_told_from_its_place_in_the_queue_to_its_end(ws: Client) -> None:
    job = ws.jobs.submit("print(1)\n", resources=SMALL)

    followed = [(each.kind, each.attempt) for each in job.events(follow=True)]

    assert followed == [("queued", None), ("starting", 1), ("running", 1), ("ended", 1)]
    assert [(each.kind, each.attempt) for each in job.events()] == followed
    assert [each.number for each in ws.events() if each.job == job.id] == [each.number for each in job.events()]
    assert job.refresh().state == "succeeded"
    assert str(list(job.events())[-1]).endswith(f"job {job.id}, attempt 1: ended, state succeeded, reason succeeded")


def test_what_happens_while_somebody_listens_is_told_at_once_and_once(ws: Client, workspace: Workspace) -> None:
    since = newest(workspace)

    def listen() -> list[tuple[Event, float]]:
        told: list[tuple[Event, float]] = []
        for event in ws.events(since=since, follow=True):
            told.append((event, time.monotonic()))
            if len(told) == 6:
                break
        return told

    thread, told = in_thread(listen)
    began = []
    for _ in range(3):
        job = workspace.catalog.jobs.start("ingest", "pets", {})
        workspace.catalog.jobs.finish(job.id, "cancelled")
        began.append(time.monotonic())
        time.sleep(0.2)
    thread.join()

    assert [event.number for event, _ in told] == list(range(since + 1, since + 7))
    assert told[-1][1] - began[-1] < 5


def test_more_events_than_a_page_holds_are_all_told(ws: Client, workspace: Workspace, any_job: str) -> None:
    since = newest(workspace)
    with workspace.catalog.writing() as connection:
        for _ in range(1200):
            events.record(connection, any_job, "alarm")

    assert [each.number for each in ws.events(since=since)] == list(range(since + 1, since + 1201))


def test_of_a_job_that_was_gone_on_with_all_is_told_and_of_one_that_told_nothing_too(
    ws: Client, workspace: Workspace
) -> None:
    again, old = (workspace.catalog.jobs.start("tune", "pets", {}) for _ in range(2))
    workspace.catalog.jobs.finish(again.id, "lost")
    workspace.catalog.jobs.reopen(again.id)
    for job in (again, old):
        workspace.catalog.jobs.finish(job.id, "succeeded")
    with workspace.catalog.writing() as connection:  # as of a job that ended before there were events
        connection.execute(sa.delete(tables.events).where(tables.events.c.job == old.id))

    told = [each.kind for each in ws.jobs.get(again.id).events(follow=True)]

    assert told == ["running", "ended", "running", "ended"]
    assert list(ws.jobs.get(old.id).events(follow=True)) == []


def test_of_a_job_that_is_not_there_nothing_is_told(ws: Client, any_job: str) -> None:
    missing = mms.Job(ws._api, ws.jobs.get(any_job).record.model_copy(update={"id": "0" * 26}))
    for follow in (False, True):
        with pytest.raises(JobNotFound):
            list(missing.events(follow=follow))
    with pytest.raises(JobNotFound):
        missing.watch()


@pytest.mark.parametrize("path", ["/v1/events", "/v1/jobs/{}/stream"])
@pytest.mark.parametrize("seen", ["x", "-1", "1-2", "9" * 40, "1-1-1-../..-1"])
def test_what_nobody_can_have_seen_is_refused(ws: Client, any_job: str, path: str, seen: str) -> None:
    headers = {"accept": "text/event-stream", "last-event-id": seen}
    with pytest.raises(InvalidRequest, match="Last-Event-ID"):
        ws._api._ask("GET", path.format(any_job), headers=headers)


# A job's stream ----------------------------------------------------------------------------------------------------


def told(messages: list[Message]) -> list[tuple[str, Any]]:
    return [(each.event, json.loads(each.data)) for each in messages]


def test_a_stream_tells_states_prints_and_metrics_and_ends(ws: Client, workspace: Workspace) -> None:
    job = ws.jobs.submit("import time\nprint('été')\ntime.sleep(0.4)\nprint('b')\n", resources=SMALL)

    found = told(list(ws._api._messages(f"/v1/jobs/{job.id}/stream", {}, "")))

    kinds = [kind for kind, _ in found]
    assert kinds[0] == "job"
    assert kinds[-1] == "end"
    assert "".join(said["text"] for kind, said in found if kind == "log") == "été\nb\n"
    assert [said["kind"] for kind, said in found if kind == "event"] == ["queued", "starting", "running", "ended"]
    states = [said["state"] for kind, said in found if kind == "job"]
    assert states[-1] == found[-1][1]["state"] == "succeeded"
    order = ["queued", "starting", "running", "succeeded"]
    assert states == sorted(states, key=order.index)


def test_wherever_a_stream_is_cut_it_goes_on_behind_the_last_message(ws: Client, workspace: Workspace) -> None:
    job = workspace.catalog.jobs.start("train", "pets", {})
    log = workspace.job_folder(job.id) / "metrics.jsonl"
    rows = [{"step": step, "train/loss": 1 / step} for step in range(1, 50)]
    log.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows) + b'{"step": 50, "tr')
    path = f"/v1/jobs/{job.id}/stream"
    first = next(message for message in ws._api._messages(path, {}, "") if message.event == "metrics")
    with log.open("ab") as file:
        file.write(b'ain/loss": 7}\n')
    workspace.catalog.jobs.finish(job.id, "succeeded")

    after = told(list(ws._api._messages(path, {}, first.id)))

    assert json.loads(first.data)["rows"] == rows
    assert [said["rows"] for kind, said in after if kind == "metrics"] == [[{"step": 50, "train/loss": 7}]]
    assert [said["kind"] for kind, said in after if kind == "event"] == ["ended"]
    assert after[-1][0] == "end"


def test_metrics_of_a_script_are_those_of_the_training_in_it(ws: Client, workspace: Workspace) -> None:
    job = ws.jobs.submit("print(1)\n", resources=SMALL).wait(progress=False)
    assert job.metrics() == {}
    trained = workspace.catalog.jobs.start("train", "pets", {}, parent=job.id)
    (workspace.job_folder(trained.id) / "metrics.jsonl").write_bytes(b'{"step": 1, "train/loss": 2.0}\n')

    assert job.metrics()["train/loss"].value.tolist() == [2.0]
    found = told(list(ws._api._messages(f"/v1/jobs/{job.id}/stream", {}, "")))
    assert [said["job"] for kind, said in found if kind == "metrics"] == [trained.id]


def test_each_process_of_an_attempt_has_a_log_of_its_own(ws: Client, workspace: Workspace) -> None:
    job = ws.jobs.submit("print('first')\n", resources=SMALL).wait(progress=False)
    (attempt_folder(workspace.job_folder(job.id), 1) / "log.1.txt").write_text("second\n")

    assert (job.logs(), job.logs(rank=0), job.logs(rank=1), job.logs(attempt=1, rank=1)) == (
        "first\n",
        "first\n",
        "second\n",
        "second\n",
    )
    with pytest.raises(NotFound, match="no process of rank 2"):
        job.logs(rank=2)
    found = told(list(ws._api._messages(f"/v1/jobs/{job.id}/stream", {"rank": 1}, "")))
    assert [said["text"] for kind, said in found if kind == "log"] == ["second\n"]


def test_a_stream_tells_only_what_is_asked_for(ws: Client, workspace: Workspace) -> None:
    job = ws.jobs.submit("print(1)\n", resources=SMALL).wait(progress=False)
    (workspace.job_folder(job.id) / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 2}\n')
    for only in (["log"], ["event"], ["metrics"], ["log", "metrics"], ["log", "event", "metrics"]):
        found = {kind for kind, _ in told(list(ws._api._messages(f"/v1/jobs/{job.id}/stream", {"only": only}, "")))}
        assert found == {"job", "end", *only}
    with pytest.raises(InvalidRequest, match="only"):
        next(ws._api._messages(f"/v1/jobs/{job.id}/stream", {"only": ["secrets"]}, ""))


def test_a_process_that_only_a_later_attempt_has_is_told(ws: Client, workspace: Workspace) -> None:
    text = "import os\nif '/1/' in os.getcwd():\n    os.kill(os.getpid(), 9)\n"
    job = ws.jobs.submit(text, resources=SMALL, retry=mms.Retry(1, wait_s=0)).wait(progress=False)
    (attempt_folder(workspace.job_folder(job.id), 2) / "log.1.txt").write_text("here\n")

    found = told(list(ws._api._messages(f"/v1/jobs/{job.id}/stream", {"rank": 1, "only": "log"}, "")))

    assert [(said["attempt"], said["text"]) for kind, said in found if kind == "log"] == [(2, "here\n")]


def test_a_catalog_that_is_away_for_a_moment_ends_no_following(
    ws: Client, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mms_sdk.client.api._AGAIN_S", 0.05)
    asked: list[int] = []
    there = Events.list

    def away(self: Events, **asking: Any) -> list[Event]:
        asked.append(1)
        if 2 <= len(asked) <= 6:
            raise Unavailable("the catalog's database did not answer")
        return there(self, **asking)

    monkeypatch.setattr(Events, "list", away)
    job = workspace.catalog.jobs.start("ingest", "pets", {})
    following = ws.jobs.get(job.id).events(follow=True)
    assert next(following).kind == "running"
    workspace.catalog.jobs.finish(job.id, "succeeded")

    assert [each.kind for each in following] == ["ended"]
    assert len(asked) > 6


def test_a_long_log_comes_whole_to_a_slow_reader_and_is_not_read_ahead(ws: Client, workspace: Workspace) -> None:
    job = ws.jobs.submit("print('x' * 1_000_000)\n", resources=SMALL).wait(progress=False)
    log = attempt_folder(workspace.job_folder(job.id), 1) / "log.txt"
    log.write_bytes(b"0123456789abcde\n" * 2**20)  # 16 MiB
    size = 0
    for message in ws._api._messages(f"/v1/jobs/{job.id}/stream", {}, ""):
        if message.event == "log":
            size += len(json.loads(message.data)["text"])
            time.sleep(0.002)

    assert size == 2**24


# Metrics -----------------------------------------------------------------------------------------------------------


def test_metrics_are_the_same_in_json_and_in_bytes_whole_and_for_a_chart(ws: Client, workspace: Workspace) -> None:
    record = workspace.catalog.jobs.start("train", "pets", {})
    losses = [1.0, math.nan, -math.inf, *(float(step % 7) for step in range(500))]
    log = MetricLog(workspace.job_folder(record.id) / "metrics.jsonl")
    for step, loss in enumerate(losses):
        log.write({"step": step, "time": 1e9 + step, "train/loss": loss})
    log.close()
    job, path = ws.jobs.get(record.id), f"/v1/jobs/{record.id}/metrics"

    whole, few = job.metrics()["train/loss"], job.metrics(points=20)["train/loss"]
    told: Any = ws._api.get(path, dict, points=20)

    np.testing.assert_array_equal(whole.value, losses)
    assert whole.step.tolist() == list(range(503))
    assert len(few.value) <= 20
    assert told["series"]["train/loss"]["step"] == few.step.tolist()
    assert [float(value) for value in told["series"]["train/loss"]["value"][1:]] == few.value[1:].tolist()
    assert told["series"]["train/loss"]["value"][0] == "nan"
    rows: Any = ws._api.get(path, dict)
    assert [float(row["train/loss"]) for row in rows["rows"]][3:] == losses[3:]
    assert ws._api.get(path, dict, since=rows["offset"]) == {"job": record.id, "rows": [], "offset": rows["offset"]}


def test_a_log_longer_than_an_answer_is_read_whole(
    ws: Client, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric_log, "PIECE_BYTES", 1000)
    record = workspace.catalog.jobs.start("train", "pets", {})
    lines = [orjson.dumps({"step": step, "train/loss": step / 8}) for step in range(1000)]
    (workspace.job_folder(record.id) / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")

    assert ws.jobs.get(record.id).metrics()["train/loss"].value.tolist() == [step / 8 for step in range(1000)]


@pytest.mark.parametrize("query", [{"points": 1}, {"points": 10**6}, {"points": 5, "since": 9}, {"since": 3}])
def test_metrics_that_cannot_be_asked_for_are_refused(ws: Client, workspace: Workspace, query: dict[str, int]) -> None:
    record = workspace.catalog.jobs.start("train", "pets", {})
    (workspace.job_folder(record.id) / "metrics.jsonl").write_bytes(b'{"step": 1, "train/loss": 1}\n')
    with pytest.raises(InvalidRequest, match=r"points|since"):
        ws._api.get(f"/v1/jobs/{record.id}/metrics", dict, **query)


# Artifacts ---------------------------------------------------------------------------------------------------------

KEEPS = """
import os, subprocess, mms_sdk as mms
kept = mms.artifacts()
assert str(kept) == os.environ["MMS_ARTIFACTS"]
(kept / "figures" / "é deep").mkdir(parents=True)
(kept / "figures" / "é deep" / "a b#?:%.svg").write_text("<svg/>")
(kept / "weights.bin").write_bytes(bytes(range(256)) * 5000)
(kept / "log.txt").write_text("not the log")
subprocess.run("echo hello > $MMS_ARTIFACTS/said.txt", shell=True, check=True)
os.symlink("/etc/passwd", kept / "link")
os.symlink("/etc", kept / "folder")
os.mkfifo(kept / "pipe")
open(os.fsencode(kept) + b"/\\xff", "w").close()
print("said")
"""


def test_what_a_script_keeps_is_listed_and_downloaded(ws: Client, tmp_path: Path) -> None:
    job = ws.jobs.submit(KEEPS, resources=SMALL).wait(progress=False)

    found = {each.name: each.bytes for each in job.artifacts()}

    deep = "figures/é deep/a b#?:%.svg"
    assert found == {deep: 6, "weights.bin": 1_280_000, "log.txt": 5, "said.txt": 6}
    assert list(found) == sorted(found)
    assert job.download(deep, tmp_path / "a.svg").read_text() == "<svg/>"
    assert job.download("weights.bin", tmp_path / "w").read_bytes() == bytes(range(256)) * 5000
    assert job.download("log.txt", tmp_path / "log").read_text() == "said\n"  # MMS's own comes first
    assert "weights.bin" in repr(job.artifacts())
    assert job.artifacts(attempt=1) == job.artifacts()
    with pytest.raises(NotFound, match="no attempt 2"):
        job.artifacts(attempt=2)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "link",
            "folder/passwd",
            "folder",
            "pipe",
            "figures",
            "",
            ".",
            "nothing",
            "/etc/passwd",
            "said.txt/x",
            "a\0b",
        ),
        *("../attempt.json", "figures/../../attempt.json", "%2e%2e/attempt.json", "..\\attempt.json", "x" * 5000),
    ],
)
def test_what_is_no_file_that_was_kept_cannot_be_had(ws: Client, tmp_path: Path, name: str) -> None:
    key = {"key": f"keeps-{'embedded' if ws.embedded else 'http'}"}
    job = ws.jobs.submit(KEEPS, resources=SMALL, **key).wait(progress=False)
    with pytest.raises((NotFound, InvalidRequest)):
        job.download(name, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_of_an_attempt_whose_folder_became_a_link_nothing_is_listed(ws: Client, tmp_path: Path) -> None:
    text = "import os, mms_sdk as mms\nkept = mms.artifacts()\nkept.rmdir()\nos.symlink('/etc', kept)\n"
    job = ws.jobs.submit(text, resources=SMALL).wait(progress=False)

    assert [each.name for each in job.artifacts()] == ["log.txt"]
    with pytest.raises(NotFound):
        job.download("passwd", tmp_path / "x")


def test_a_list_of_artifacts_is_bounded(ws: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "_MOST", 3)
    text = "import mms_sdk as mms\nfor n in range(4):\n    (mms.artifacts() / str(n)).touch()\n"
    job = ws.jobs.submit(text, resources=SMALL).wait(progress=False)
    with pytest.raises(TooLarge, match="holds 3"):
        job.artifacts()


def test_a_script_that_runs_alone_keeps_its_files_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert mms.artifacts() == tmp_path / "artifacts"
    assert (tmp_path / "artifacts").is_dir()


# Alarms ------------------------------------------------------------------------------------------------------------


def beats(workspace: Workspace, job: str, *ago_s: float, step: int = 7) -> None:
    for rank, seconds in enumerate(ago_s):
        beat = Beat(rank=rank, step=step, phase="training", at=time.time() - seconds, step_s=1 + rank)
        (workspace.job_folder(job) / f"heartbeat.{rank}").write_text(beat.model_dump_json())


def test_a_training_that_hangs_is_told_once_for_each_step_it_hangs_at(ws: Client, workspace: Workspace) -> None:
    record = workspace.catalog.jobs.start("train", "pets", {})
    job = ws.jobs.get(record.id)
    beats(workspace, job.id, 5, 5)
    assert "alarm" not in job.facts()
    for step in (7, 7, 8):
        beats(workspace, job.id, 500, 1, step=step)
        assert job.facts()["alarm"].startswith("process 0 has taken no step for 500 s, which usually take 1 s")
    alarms = [each for each in job.events() if each.kind == "alarm"]
    workspace.catalog.jobs.finish(job.id, "cancelled")

    assert [each.detail["detail"][-4:] for each in alarms] == ["ep 7", "ep 8"]
    assert "alarm" not in job.refresh().facts()
    assert [(each.rank, each.step, each.ratio) for each in job.ranks()] == [(0, 8, 1 / 1.5), (1, 8, 2 / 1.5)]
    assert "to the median" in repr(job.ranks())


def test_whoever_follows_hears_of_what_hangs(ws: Client, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "LOOK_EVERY_S", 0.1)
    record = workspace.catalog.jobs.start("train", "pets", {})
    beats(workspace, record.id, 500)
    for following in (ws.jobs.get(record.id).events(follow=True), ws.events(since=newest(workspace), follow=True)):
        beats(workspace, record.id, 500, step=len(list(ws.jobs.get(record.id).events())))
        assert next(each for each in following if each.kind == "alarm").job == record.id
        following.close()  # type: ignore[attr-defined]
    workspace.catalog.jobs.finish(record.id, "cancelled")


def test_the_training_of_a_script_is_told_as_the_scripts(ws: Client, workspace: Workspace) -> None:
    job = ws.jobs.submit("import time\ntime.sleep(60)\n", resources=SMALL)
    next(each for each in job.events(follow=True) if each.kind == "running")
    trained = workspace.catalog.jobs.start("train", "pets", {}, parent=job.id)
    beats(workspace, trained.id, 500)

    assert [each.step for each in job.ranks()] == [7]
    assert "no step" in job.refresh().facts()["alarm"]
    assert [(each.kind, each.attempt) for each in job.events()][-1] == ("alarm", 1)
    workspace.catalog.jobs.finish(trained.id, "cancelled")
    job.cancel()
    assert [each.kind for each in job.events(follow=True)][-2:] == ["cancelling", "ended"]


def test_what_trains_nothing_has_no_ranks(ws: Client, workspace: Workspace) -> None:
    record = workspace.catalog.jobs.start("ingest", "pets", {})
    assert list(ws.jobs.get(record.id).ranks()) == []
    workspace.catalog.jobs.finish(record.id, "cancelled")


# Usage -------------------------------------------------------------------------------------------------------------


def test_what_a_job_used_is_told_and_listed(ws: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    job = ws.jobs.submit("import time\ntime.sleep(0.5)\n", resources=SMALL).wait(progress=False)
    passed = time.monotonic() - began
    free = ws.jobs.list(1)
    monkeypatch.setenv("MMS_PRICES", "cpu=36000")  # ten a second

    used = job.usage()

    assert used.cpu_s == used.seconds
    assert 0.5 <= used.seconds <= passed
    assert (used.gpu_s, used.cost) == (0, pytest.approx(10 * used.seconds))
    assert job.facts()["used"].endswith(f" s of cores, which cost {used.cost:.2f}")
    assert ws.jobs.list(1).rows[0]["cost"] == f"{used.cost:.2f}"
    assert "cost" not in free.rows[0]


# Connections -------------------------------------------------------------------------------------------------------


def test_a_server_that_drains_ends_streams_and_its_successor_goes_on_with_them(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "workspace")
    token = workspace.catalog.tokens.issue("tests", "admin")
    running = Streams()
    with serving(create_app(workspace, ServerSettings(), streams=running)) as url:
        port = url.rpartition(":")[2]
        api = Api(url, token)
        first = workspace.catalog.jobs.start("ingest", "pets", {})
        reading = api.follow("/v1/events")
        assert json.loads(next(reading).data)["job"] == first.id
        threading.Timer(0.2, running.drain).start()
        thread, rest = in_thread(lambda: [json.loads(next(reading).data)["number"]])
    with serving(create_app(workspace, ServerSettings()), port=int(port)):
        second = workspace.catalog.jobs.start("ingest", "pets", {})
        thread.join()
        assert rest == [2]
        assert workspace.catalog.events.list()[1].job == second.id
        reading.close()
        api.close()
    workspace.close()


def test_a_stream_is_asked_for_again_from_time_to_time_and_a_token_that_was_revoked_hears_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "LONGEST_S", 0.3)
    monkeypatch.setattr("mms_sdk.client.api._AGAIN_S", 0.01)
    workspace = Workspace(tmp_path / "workspace")
    token = workspace.catalog.tokens.issue("tests", "viewer")
    with serving(create_app(workspace, ServerSettings())) as url:
        api = Api(url, token)
        following = api.follow("/v1/events")
        for number in range(1, 5):
            workspace.catalog.jobs.start("ingest", "pets", {})
            assert next(following).id == str(number)
            time.sleep(0.35)
        workspace.catalog.tokens.issue("tests", "viewer")
        with pytest.raises(Unauthenticated):
            next(following)
        api.close()
    workspace.close()


def test_a_server_that_stays_away_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mms_sdk.client.api._AWAY_S", 0.5)
    monkeypatch.setattr("mms_sdk.client.api._AGAIN_S", 0.05)
    api = Api("http://127.0.0.1:9", "token")
    began = time.monotonic()
    with pytest.raises(Unavailable, match="does not answer"):
        list(api.follow("/v1/events"))
    assert 0.5 < time.monotonic() - began < 10
    api.close()


def test_closing_an_embedded_workspace_ends_who_follows_it(tmp_path: Path) -> None:
    ws = mms.connect(workspace=tmp_path / "workspace")
    thread, told = in_thread(lambda: list(ws.events(follow=True)))
    time.sleep(0.5)
    began = time.monotonic()
    ws.close()
    thread.join()
    assert told == []
    assert time.monotonic() - began < 5


def test_there_are_at_most_so_many_streams(ws: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_MOST", 0)
    with pytest.raises(Unavailable, match="at most 0 streams"):
        next(ws._api._messages("/v1/events", {}, ""))


def test_silence_is_broken_by_a_comment(ws: Client, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT_S", 0.1)
    headers = {"accept": "text/event-stream", "last-event-id": str(newest(workspace))}
    with ws._api._http.stream("GET", "/v1/events", headers=headers) as answer:
        pieces = answer.iter_bytes()
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert [next(pieces), next(pieces)] == [b": nothing new\n\n"] * 2
        pieces.close()


def test_who_listens_while_nothing_happens_costs_next_to_nothing(tmp_path: Path) -> None:
    with mms.connect(workspace=tmp_path / "workspace") as ws:
        listening = threading.Thread(target=lambda: list(ws.events(follow=True)), daemon=True)
        listening.start()
        time.sleep(3)  # the pauses have become long by then
        before = psutil.Process().cpu_times()
        time.sleep(3)
        after = psutil.Process().cpu_times()
    assert (after.user + after.system - before.user - before.system) / 3 < 0.05


# Messages ----------------------------------------------------------------------------------------------------------


def test_messages_are_read_however_they_are_cut() -> None:
    text = ': hello\n\nid: 1\nevent: log\ndata: {"text": "é\u2028\x85"}\n\n'
    text += "id: 2\ndata: x: y\n\n: again\n\ndata:z\n\nid: 3\n"
    whole = [Message("1", "log", '{"text": "é\u2028\x85"}'), Message("2", "", "x: y"), Message("2", "", "z")]
    for size in (1, 2, 3, 7, 1000):
        data = text.encode()
        assert list(messages(data[at : at + size] for at in range(0, len(data), size))) == whole
