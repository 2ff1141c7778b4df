"""What the Ray engine makes of the queue and of the cluster that it is told of: nothing here is Ray."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from mms_sdk import cli
from mms_sdk.compute.engines.folder import CANCEL, CLAIM, ENDED, GIVEN, WORKER, attempt_folder, create, read
from mms_sdk.compute.engines.ray import engine as ray_engine
from mms_sdk.compute.engines.ray import private
from mms_sdk.compute.engines.ray.cluster import Node
from mms_sdk.compute.engines.ray.engine import RayEngine
from mms_sdk.compute.engines.ray.room import fitting, suiting
from mms_sdk.errors import InvalidRequest, MissingExtra, Unavailable
from mms_sdk.schema.job import Resources
from mms_sdk.storage.ids import now
from mms_sdk.storage.workspace import Workspace
from mms_sdk.testing.engines import Jobs

GB = 10**9
SMALL, LARGE = Node(cpus=4, gpus=0, memory=16 * GB), Node(cpus=16, gpus=8, memory=64 * GB)


class ToldCluster:
    """A cluster of which the test says what there is."""

    def __init__(self, *nodes: Node) -> None:
        self.there = list(nodes)
        self.actors: dict[str, str] = {}  # and what each says
        self.started: list[tuple[str, str]] = []
        self.away = False

    def nodes(self) -> list[Node]:
        self.reach()
        return self.there

    def start(self, actor: str, folder: str, variables: Mapping[str, str]) -> None:
        self.reach()
        self.started.append((actor, folder))
        self.actors[actor] = ""

    def says(self, actor: str) -> str | None:
        self.reach()
        return self.actors.get(actor)

    def stop(self, actor: str) -> None:
        self.reach()

    def reach(self) -> None:
        if self.away:
            raise Unavailable("it is away")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> ToldCluster:
    monkeypatch.setattr(ray_engine, "_LOOK_S", 0.0)
    return ToldCluster(SMALL, SMALL)


@pytest.fixture
def jobs(workspace: Workspace, cluster: ToldCluster) -> Jobs:
    return Jobs(workspace, RayEngine(workspace, cluster))


def given(nodes: int, cpus: int, gpus: int = 0, memory: int = 0) -> dict[str, Any]:
    return {"nodes": nodes, "cpus": cpus, "gpus": gpus, "memory": memory}


@pytest.mark.parametrize(
    ("asked", "taken", "expected"),
    [
        ({"cpus": 2}, [], given(1, 2)),
        ({"cpus": 2, "memory": 9 * GB}, [given(1, 2, memory=8 * GB)], given(1, 2, memory=9 * GB)),
        ({"cpus": 2, "memory": 9 * GB}, [given(2, 1, memory=8 * GB)], None),  # neither node has so much left
        ({"cpus": 3}, [given(1, 2)], given(1, 3)),
        ({"cpus": 3}, [given(2, 2)], None),
        ({"nodes": 2, "cpus": 2}, [given(2, 2)], given(2, 2)),
        ({"nodes": 2, "cpus": 3}, [given(1, 2)], None),
        ({"nodes": 2, "cpus": 3, "min_nodes": 1}, [given(1, 2)], None),  # there are two, so that it waits for both
        ({"nodes": 3, "cpus": 3, "min_nodes": 1}, [], given(2, 3)),
        ({"nodes": 3, "cpus": 3, "min_nodes": 2}, [given(1, 1)], given(2, 3)),
        ({"nodes": 3, "cpus": 3}, [given(1, 1)], None),
        ({"nodes": 3, "cpus": 3}, [], given(3, 3)),  # with nobody beside it, it waits for a third node
        ({}, [], given(1, 4)),
        ({"nodes": 2}, [], given(2, 4)),
        ({}, [given(1, 1)], given(1, 4)),
        ({}, [given(2, 1)], None),
    ],
)
def test_a_job_gets_what_two_nodes_have_left(
    asked: dict[str, Any], taken: list[dict[str, Any]], expected: dict[str, Any] | None
) -> None:
    found = fitting([SMALL, SMALL], Resources(**{"gpus": 0, **asked}), taken)

    assert found == (expected and {**expected, "cores": 4})


def test_what_a_job_leaves_open_is_all_of_the_largest_nodes() -> None:
    assert fitting([SMALL, LARGE], Resources(), []) == {**given(1, 16, 8), "cores": 16}
    assert fitting([SMALL, LARGE], Resources(nodes=2), []) == {**given(2, 4), "cores": 16}


def test_a_small_job_leaves_the_large_node_to_those_that_need_it() -> None:
    beside = fitting([LARGE, SMALL], Resources(), [given(1, 1)])

    assert beside == {**given(1, 16, 8), "cores": 16}


@pytest.mark.parametrize(("cpus", "gpus"), list(product((None, 1, 5, 17), (None, 0, 1, 9))))
def test_a_node_suits_that_has_as_much_of_each(cpus: int | None, gpus: int | None) -> None:
    found = suiting([SMALL, LARGE], Resources(cpus=cpus, gpus=gpus))

    assert found == [node for node in (SMALL, LARGE) if node.cpus >= (cpus or 0) and node.gpus >= (gpus or 0)]


@pytest.mark.parametrize(
    "asked", [{"cpus": 5}, {"gpus": 1}, {"nodes": 3}, {"memory": 17 * GB}, {"nodes": 4, "min_nodes": 3}]
)
def test_what_the_cluster_never_has_is_refused(jobs: Jobs, asked: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=r"nodes=\d.* the cluster's nodes are one of 4 cores, 0 GPUs"):
        jobs.put("", **asked)


def test_a_job_with_fewer_nodes_than_it_wants_is_taken_if_it_may(jobs: Jobs, cluster: ToldCluster) -> None:
    job = jobs.submit("", nodes=4, min_nodes=2)

    assert jobs.attempts(job)[0].given["nodes"] == 2
    told = read(attempt_folder(jobs.workspace.job_folder(job), 1) / GIVEN)
    assert told is not None
    assert (told["nodes"], told["processes"], told["of_node"]) == (2, 1, {"CPU": 4, "GPU": 0, "memory": 0})
    assert cluster.started == [(f"{job}-1", str(attempt_folder(jobs.workspace.job_folder(job), 1)))]


def test_while_the_cluster_is_away_jobs_wait_and_nothing_is_lost(jobs: Jobs, cluster: ToldCluster) -> None:
    first = jobs.submit("")
    waiting = jobs.put("")
    cluster.away = True
    cluster.actors.clear()

    for _ in range(3):
        jobs.engine.reconcile()
        assert jobs.engine.start_waiting() == []
    assert [jobs.get(job).state for job in (first, waiting)] == ["starting", "queued"]

    cluster.away = False
    create(attempt_folder(jobs.workspace.job_folder(first), 1) / CLAIM, {"owner": "ray:1"})
    for _ in range(2):
        jobs.engine.reconcile()
    (attempt,) = jobs.attempts(first)
    assert attempt.ended is not None
    assert attempt.ended.reason == "lost"
    assert [actor for actor, folder in cluster.started if not folder]  # somebody comes back for what waits


def test_one_whose_cluster_goes_away_as_it_is_started_has_one_actor_at_most(
    jobs: Jobs, cluster: ToldCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = jobs.put("", wait_s=0)
    made = cluster.start

    def start(*told: Any) -> None:
        made(*told)
        raise Unavailable("it did not answer in time")

    monkeypatch.setattr(cluster, "start", start)
    assert jobs.engine.start_waiting() == [job]

    assert (jobs.get(job).state, len(jobs.attempts(job))) == ("starting", 1)
    create(attempt_folder(jobs.workspace.job_folder(job), 1) / CLAIM, {"owner": "ray:1"})  # it was made after all
    for _ in range(2):
        jobs.engine.reconcile()
    assert (jobs.get(job).state, len(jobs.attempts(job))) == ("starting", 1)


def test_one_that_has_an_actor_runs_once_its_worker_does(jobs: Jobs, cluster: ToldCluster) -> None:
    job = jobs.submit("")
    folder = attempt_folder(jobs.workspace.job_folder(job), 1)
    create(folder / CLAIM, {"owner": "ray:1"})
    jobs.engine.reconcile()
    assert jobs.get(job).state == "starting"

    create(folder / WORKER, {"owner": "1:1@x"})
    jobs.engine.reconcile()

    assert jobs.get(job).state == "running"
    assert jobs.attempts(job)[0].owner == "ray:1"


def test_one_whose_actor_was_never_made_or_dropped_gets_another_and_is_not_spent(
    jobs: Jobs, cluster: ToldCluster
) -> None:
    job = jobs.submit("", times=0)
    cluster.actors.clear()

    for _ in range(3):
        jobs.engine.reconcile()

    folder = attempt_folder(jobs.workspace.job_folder(job), 1)
    assert cluster.started == [(f"{job}-1", str(folder))] * 2
    assert (jobs.get(job).state, len(jobs.attempts(job))) == ("starting", 1)


def test_one_that_was_only_taken_is_tried_again_once_whoever_took_it_is_gone(
    jobs: Jobs, cluster: ToldCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, attempts = jobs.put("", wait_s=0), jobs.workspace.catalog.attempts
    assert attempts.take(engine="ray", owner="1:1", fits=lambda *_: {**given(1, 1), "cores": 4}) is not None
    monkeypatch.setattr(ray_engine, "is_alive", lambda _: True)
    for _ in range(3):
        jobs.engine.reconcile()
    assert jobs.get(job).state == "starting"  # its folder may be about to be laid out

    monkeypatch.setattr(ray_engine, "is_alive", lambda _: False)
    for _ in range(3):
        jobs.engine.reconcile()

    first = jobs.attempts(job)[0]
    assert first.ended is not None
    assert first.ended.reason == "lost"
    assert read(attempt_folder(jobs.workspace.job_folder(job), 1) / CLAIM) == {"owner": ""}  # no actor takes it now


def test_one_whose_actor_is_dropped_for_as_long_as_it_may_take_to_begin_is_tried_again(
    jobs: Jobs, cluster: ToldCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = jobs.submit("", wait_s=0)
    jobs.engine.reconcile()
    assert jobs.get(job).state == "starting"

    cluster.actors.clear()
    monkeypatch.setattr(ray_engine, "_BEGUN_WITHIN_S", 0.0)
    for _ in range(2):
        jobs.engine.reconcile()

    assert [attempt.ended is None for attempt in jobs.attempts(job)] == [False, True]


def test_what_an_actor_cannot_do_is_told(jobs: Jobs, cluster: ToldCluster) -> None:
    job = jobs.submit("", times=0)
    cluster.actors[f"{job}-1"] = "node x does not see it"

    for _ in range(2):
        jobs.engine.reconcile()

    assert jobs.get(job).state == "failed"
    assert jobs.get(job).error == {"title": "infra", "detail": "it could not be started: node x does not see it"}


def test_one_is_cancelled_though_the_cluster_is_away(jobs: Jobs, cluster: ToldCluster) -> None:
    job = jobs.submit("")
    cluster.away = True

    assert jobs.engine.cancel(job).state == "starting"

    assert (attempt_folder(jobs.workspace.job_folder(job), 1) / CANCEL).exists()
    cluster.away = False
    cluster.actors.clear()
    create(attempt_folder(jobs.workspace.job_folder(job), 1) / CLAIM, {"owner": "ray:1"})
    for _ in range(2):
        jobs.engine.reconcile()
    assert jobs.get(job).state == "cancelled"


def test_what_a_lost_attempt_says_later_changes_nothing(jobs: Jobs, cluster: ToldCluster) -> None:
    job = jobs.submit("", wait_s=0)
    folder = attempt_folder(jobs.workspace.job_folder(job), 1)
    create(folder / CLAIM, {"owner": "ray:1"})
    cluster.actors.clear()
    for _ in range(2):
        jobs.engine.reconcile()
    jobs.engine.start_waiting()

    create(folder / ENDED, {"reason": "succeeded", "at": now()})  # of the first
    jobs.engine.reconcile()

    assert jobs.get(job).state == "starting"
    assert [attempt.ended and attempt.ended.reason for attempt in jobs.attempts(job)] == ["lost", None]


def test_there_is_no_cluster_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(private, "HOME", tmp_path / "none")

    assert cli.main(["engine", "down"]) == 1

    assert "no cluster was started in" in capsys.readouterr().err


def test_a_token_is_its_owners_and_no_folder_has_two(tmp_path: Path) -> None:
    first, again = private.PrivateCluster(tmp_path / "ray"), private.PrivateCluster(tmp_path / "ray")

    assert first.variables() == again.variables()
    assert first.token.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "ray").stat().st_mode & 0o777 == 0o700
    assert len(first.token.read_text()) == 64
    assert first.token.read_text() not in str(first.variables())


def test_ray_that_is_not_installed_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    from mms_sdk.compute.engines.ray.door import Door

    (tmp_path / "ray.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{':'.join(sys.path)}")
    with socket.create_server(("127.0.0.1", 0)) as listens:
        door = Door(f"127.0.0.1:{listens.getsockname()[1]}")
        with pytest.raises(MissingExtra, match=r"mms-sdk\[ray\]"):
            door.nodes()
    door.close()
