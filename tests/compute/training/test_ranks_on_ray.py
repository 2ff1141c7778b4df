"""A training on two nodes of a real Ray: the same as in one process, whatever happens to either."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from test_ranks_of_a_job import Run, run
from test_trainer import assert_equal_to_the_bit

from mms_sdk.compute.engines.ray.door import Door
from mms_sdk.compute.engines.ray.engine import RayEngine
from mms_sdk.compute.engines.ray.private import PrivateCluster
from mms_sdk.settings import COMPILE_CACHE_VARIABLE
from mms_sdk.testing.engines import until
from ray_cluster import ray_cluster

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PrivateCluster, Door]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(COMPILE_CACHE_VARIABLE, str(tmp_path_factory.mktemp("compiled")))
        with ray_cluster(nodes=2, cpus=1) as started:
            yield started


@pytest.fixture(scope="module")
def door(started: tuple[PrivateCluster, Door]) -> Door:
    return started[1]


@pytest.fixture(scope="module")
def two(door: Door, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two nodes, which nobody disturbs."""
    return on_two_nodes(door, tmp_path_factory.mktemp("two"))


def on_two_nodes(door: Door, root: Path, *kills: int) -> Run:
    engine: Any = partial(RayEngine, cluster=door)
    return run(root, *kills, devices=1, on=engine, nodes=2, cpus=1)


def test_two_nodes_train_as_one_process_of_two_devices(two: Run, tmp_path: Path) -> None:
    one = run(tmp_path, devices=2)

    assert two.attempts == 1
    for mine, theirs in zip(one.history, two.history, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


def test_a_node_whose_process_is_killed_changes_nothing_to_the_bit(door: Door, two: Run, tmp_path: Path) -> None:
    broken = on_two_nodes(door, tmp_path, 17)

    assert broken.attempts == 2
    assert broken.history == two.history
    assert_equal_to_the_bit(broken.states, two.states)
    assert any(part.spec["resumed_from"] for part in broken.parts)


def test_a_node_that_goes_down_changes_nothing_to_the_bit(
    started: tuple[PrivateCluster, Door], two: Run, tmp_path: Path
) -> None:
    cluster, door = started
    with ThreadPoolExecutor(1) as threads:
        broken = threads.submit(on_two_nodes, door, tmp_path, -17)
        until((tmp_path / "said" / "stays").exists, "the seventeenth step", within_s=120)
        cluster.kill(min(cluster.nodes_with("ray::NodeActor")))
        cluster.add_node(cpus=1)
        run = broken.result(timeout=240)

    assert run.attempts == 2
    assert run.history == two.history
    assert_equal_to_the_bit(run.states, two.states)
    assert any(part.spec["resumed_from"] for part in run.parts)
