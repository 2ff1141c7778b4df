"""Jobs on a real Ray, whose parts are killed."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mms_sdk.compute.engines.folder import ENDED, attempt_folder, create
from mms_sdk.compute.engines.ray.door import Door
from mms_sdk.compute.engines.ray.engine import RayEngine
from mms_sdk.compute.engines.ray.private import PrivateCluster
from mms_sdk.errors import InvalidRequest, Unavailable
from mms_sdk.schema.job import Ended
from mms_sdk.storage.ids import now
from mms_sdk.storage.workspace import Workspace
from mms_sdk.testing.engines import GANG, STAYS, TREE, EngineConformance, Jobs, runs, until
from ray_cluster import ray_cluster

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(500)]
WITHIN_S = 240.0  # a process of Ray's takes seconds to start, and a job needs two


@pytest.fixture(scope="module")
def started() -> Iterator[tuple[PrivateCluster, Door]]:
    with ray_cluster(nodes=1, cpus=2) as started:
        yield started


@pytest.fixture(scope="module")
def cluster(started: tuple[PrivateCluster, Door]) -> PrivateCluster:
    return started[0]


@pytest.fixture(scope="module")
def door(started: tuple[PrivateCluster, Door]) -> Door:
    return started[1]


class TestRay(EngineConformance):
    """On a cluster of two nodes, of which the head runs no jobs."""

    within_s = WITHIN_S
    soon_s = 40.0

    @pytest.fixture
    def engine(self, workspace: Workspace, door: Door) -> RayEngine:
        return RayEngine(workspace, door)


@pytest.fixture
def jobs(workspace: Workspace, door: Door) -> Iterator[Jobs]:
    jobs = Jobs(workspace, RayEngine(workspace, door), within_s=WITHIN_S)
    yield jobs
    jobs.end_all()


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    (tmp_path / "marks").mkdir()
    return tmp_path / "marks"


@pytest.fixture
def two(cluster: PrivateCluster, door: Door) -> None:
    """Two nodes that run jobs, whatever became of them in the test before."""
    for _ in range(2 - len(door.nodes())):
        cluster.add_node(cpus=2)
    until(lambda: len(door.nodes()) == 2, "two nodes", within_s=60)


def begun(jobs: Jobs, mark: Path) -> None:
    """Waits until a job says that it has begun, as somebody does who asks now and then."""

    def is_there() -> bool:
        jobs.engine.reconcile()
        return mark.exists()

    until(is_there, "its beginning", within_s=WITHIN_S)


def ends(jobs: Jobs, job: str) -> list[str]:
    return [attempt.ended.reason if attempt.ended else "" for attempt in jobs.attempts(job)]


def look(jobs: Jobs, job: str, count: int) -> bool:
    """Whether so many attempts at a job have ended, to somebody who asks now and then."""
    jobs.engine.reconcile()
    return len([end for end in ends(jobs, job) if end]) >= count


def test_a_job_goes_on_and_is_recorded_though_whoever_started_it_is_gone(
    workspace: Workspace, cluster: PrivateCluster, marks: Path
) -> None:
    door = Door(cluster.address)
    jobs = Jobs(workspace, RayEngine(workspace, door), within_s=WITHIN_S)
    job = jobs.submit(STAYS, "a", marks)
    begun(jobs, marks / "a")
    door.close()
    (marks / "a-go").touch()

    assert jobs.ended(job, alone=True).state == "succeeded"


def test_when_its_actor_is_killed_all_of_it_ends_and_it_is_tried_again(
    jobs: Jobs, cluster: PrivateCluster, marks: Path
) -> None:
    job = jobs.submit(TREE, marks, "bare", wait_s=0.2)
    pids = until(lambda: pids_of(marks, 4), "the tree", within_s=WITHIN_S)

    (actor,) = cluster.processes(title="ray::AttemptActor")
    actor.kill()

    until(lambda: not any(map(runs, pids)), "the end of all of it", within_s=20)
    until(lambda: look(jobs, job, 1), "its end", within_s=30)
    assert ends(jobs, job)[0] == "lost"
    until(lambda: len(jobs.attempts(job)) == 2, "another attempt", within_s=WITHIN_S)  # by whoever came back
    jobs.engine.cancel(job)
    assert jobs.ended(job).state == "cancelled"


def test_when_what_looks_after_it_on_its_node_is_killed_what_is_left_there_is_ended(jobs: Jobs, marks: Path) -> None:
    job = jobs.submit(TREE, marks, times=0)
    pids = until(lambda: pids_of(marks, 3), "the tree", within_s=WITHIN_S)
    (worker,) = [int(path.name.rpartition("-")[2]) for path in marks.glob("pid-worker-*")]

    psutil.Process(worker).parent().kill()

    ended = jobs.end_of(job)
    assert (ended.reason, jobs.get(job).state) == ("lost", "lost")
    assert "what looked after it on node" in ended.detail
    assert not any(map(runs, pids))


def test_a_job_whose_node_goes_down_is_tried_again_on_another(
    jobs: Jobs, cluster: PrivateCluster, two: None, marks: Path
) -> None:
    job = jobs.submit(STAYS, "a", marks, wait_s=0)
    begun(jobs, marks / "a")
    (pid,) = jobs.left(job)
    (first,) = cluster.nodes_with("ray::NodeActor")

    cluster.kill(first, only="raylet")

    until(lambda: not runs(pid), "the end of what ran there", within_s=60)
    (marks / "a").unlink()
    begun(jobs, marks / "a")
    (second,) = cluster.nodes_with("ray::NodeActor")
    (marks / "a-go").touch()
    assert jobs.ended(job).state == "succeeded"
    assert second != first
    assert ends(jobs, job) == ["lost", "succeeded"]


def test_nodes_are_one_cluster(jobs: Jobs, two: None) -> None:
    job = jobs.submit(GANG.format("print('sum', int(total), flush=True)"), nodes=2, cpus=1, times=0)

    ended = jobs.end_of(job)
    assert ended.reason == "succeeded", ended
    assert jobs.attempts(job)[0].given["nodes"] == 2
    for rank in range(2):
        assert "sum 11\n" in jobs.log(job, rank=rank).decode()  # 5 + 6


def test_what_the_code_does_wrong_on_one_node_ends_all(jobs: Jobs, two: None) -> None:
    wrong = "if rank == 1:\n    raise ValueError('of the second')\ngather(rank)\nprint('went on')"
    job = jobs.submit(GANG.format(wrong), nodes=2)

    ended = jobs.end_of(job)

    assert (ended.reason, ended.detail) == ("user", "rank 1: ValueError: of the second")
    assert jobs.left(job) == []
    assert len(jobs.attempts(job)) == 1


def test_a_gang_that_loses_a_node_goes_on_with_fewer_if_it_may(
    jobs: Jobs, cluster: PrivateCluster, two: None, marks: Path
) -> None:
    text = (
        "import os, sys, time\nfrom pathlib import Path\nranks, folder = os.environ['MMS_RANKS'], Path(sys.argv[1])\n"
        "(folder / f\"{ranks}-{os.environ['MMS_RANK']}\").touch()\n"
        "while ranks == '2':\n    time.sleep(0.01)\n"
    )
    job = jobs.submit(text, marks, nodes=2, min_nodes=1, wait_s=0)
    for rank in range(2):
        begun(jobs, marks / f"2-{rank}")

    cluster.kill(sorted(cluster.nodes_with("ray::NodeActor"))[-1])

    assert jobs.ended(job).state == "succeeded"
    *lost, last = ends(jobs, job)  # another one may have begun on the node that goes down
    assert (set(lost), last) == ({"lost"}, "succeeded")
    assert sorted(mark.name for mark in marks.iterdir()) == ["1-0", "2-0", "2-1"]


def test_while_the_head_is_away_nothing_is_lost_and_on_a_new_cluster_all_is_tried_again(
    jobs: Jobs, cluster: PrivateCluster, marks: Path
) -> None:
    job = jobs.submit(STAYS, "a", marks, wait_s=0)
    begun(jobs, marks / "a")
    jobs.engine.reconcile()

    cluster.kill("head")
    jobs.engine.reconcile()

    assert (jobs.get(job).state, ends(jobs, job)) == ("running", [""])
    with pytest.raises(Unavailable, match=r"nothing listens there|does not answer"):
        jobs.engine.room()
    cluster.end()  # Ray starts no head beside nodes of the machine that look for one of its address
    (marks / "a").unlink()
    cluster.start_head()
    cluster.add_node(cpus=2)
    until(lambda: look(jobs, job, 1), "its end", within_s=WITHIN_S)
    begun(jobs, marks / "a")
    (marks / "a-go").touch()
    assert jobs.ended(job).state == "succeeded"
    assert ends(jobs, job) == ["lost", "succeeded"]


def test_an_attempt_that_was_lost_and_comes_back_changes_nothing(jobs: Jobs, marks: Path) -> None:
    job = jobs.submit(STAYS, "a", marks, wait_s=0)
    begun(jobs, marks / "a")
    (first,) = jobs.attempts(job)
    jobs.workspace.catalog.attempts.end(first, Ended(reason="lost", at=now()))  # as if it had been cut off
    jobs.engine.start_waiting()

    create(attempt_folder(jobs.workspace.job_folder(job), 1) / ENDED, {"reason": "user", "at": now()})
    (marks / "a-go").touch()

    assert jobs.ended(job).state == "succeeded"
    assert ends(jobs, job) == ["lost", "succeeded"]


def test_a_node_that_does_not_see_the_workspace_says_so(jobs: Jobs, door: Door, workspace: Workspace) -> None:
    name = f"unseen-{secrets.token_hex(4)}"
    door.start(name, "/nowhere/jobs/x/attempts/1", workspace.variables())

    told = until(lambda: door.says(name), "what it says", within_s=WITHIN_S)

    assert "does not see /nowhere/jobs/x/attempts/1; mount the workspace there" in told
    door.stop(name)
    until(lambda: door.says(name) is None, "its end", within_s=WITHIN_S)


@pytest.mark.parametrize("token", ["", "0" * 64])
def test_without_its_token_nobody_uses_the_cluster(
    cluster: PrivateCluster, tmp_path: Path, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text(token)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("RAY_AUTH_MODE", "token" if token else "disabled")
    door = Door(cluster.address)

    with pytest.raises(Unavailable, match="it does not take our token") as told:
        door.nodes()

    assert not token or token not in str(told.value)
    door.close()


class OpenCluster(PrivateCluster):
    """One that asks nobody for a token."""

    def variables(self) -> dict[str, str]:
        return {"RAY_AUTH_MODE": "disabled"}


def test_a_cluster_that_asks_for_no_token_is_used_only_if_one_says_so(
    cluster: PrivateCluster, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cluster.folder / "open"
    folder.mkdir()
    open_to_all = OpenCluster(folder)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    try:
        open_to_all.start_head()
        door = Door(open_to_all.address)
        with pytest.raises(
            Unavailable, match="it opens to anybody, without a token; start it with RAY_AUTH_MODE=token"
        ):
            door.nodes()
        monkeypatch.setenv("MMS_RAY_OPEN", "1")
        door = Door(open_to_all.address)
        assert door.nodes() == []  # a head that runs no jobs
        door.close()
    finally:
        open_to_all.end()


@pytest.mark.parametrize("address", ["ray://somewhere:10001", "auto", ":6379", "head", "head:port", ""])
def test_an_address_is_host_and_port(address: str) -> None:
    with pytest.raises(InvalidRequest, match="host:port of its head"):
        Door(address)


def pids_of(marks: Path, count: int) -> list[int] | None:
    found = [int(path.name.rpartition("-")[2]) for path in marks.glob("pid-*")]
    return found if len(found) >= count else None
