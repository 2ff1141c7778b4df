"""Several processes of one job on this machine: what each is given, and what one that is lost costs."""

from __future__ import annotations

import socket
from pathlib import Path

import psutil
import pytest

from mms_sdk.compute.engines import local
from mms_sdk.compute.engines.folder import COORDINATOR
from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.job import JobSpec, Resources
from mms_sdk.testing.engines import GANG, Jobs, until

SAYS = "import os\nprint(*(os.environ.get(n) for n in ('CUDA_VISIBLE_DEVICES', 'NPROC', 'OMP_NUM_THREADS')))"


def test_cores_and_gpus_are_divided(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "a,b,c,d")

    job = jobs.submit(SAYS, processes=2, gpus=4)

    assert jobs.ended(job).state == "succeeded"
    cores = max(1, jobs.engine.room().cpus // 2)
    told = [jobs.log(job, rank=rank).decode().splitlines()[-1] for rank in range(2)]
    assert told == [f"a,b {cores} {cores}", f"c,d {cores} {cores}"]


def test_what_does_not_divide_or_fit_is_refused(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = jobs.engine
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")

    def check(**asked: int) -> None:
        engine.check(JobSpec(bundle="0" * 64, entrypoint="a.py", resources=Resources(**asked)))

    with pytest.raises(InvalidRequest, match="this machine has 3, for processes=2; say how many"):
        check(processes=2)
    check(processes=2, gpus=2)
    check(processes=3)
    with pytest.raises(InvalidRequest, match="GPUs divide over the processes of a node; got gpus=3 for processes=2"):
        check(processes=2, gpus=3)
    with pytest.raises(InvalidRequest, match="asks for 2 machines, and this machine has 1"):
        check(nodes=2)


def test_processes_that_do_not_come_together_are_tried_again(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    free = local.free_port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = iter([int(taken.getsockname()[1])])
        monkeypatch.setattr(local, "free_port", lambda address: next(ports, None) or free(address))

        job = jobs.submit(GANG.format("print('sum', int(total), flush=True)"), processes=2, wait_s=0)

        assert jobs.ended(job, within_s=90).state == "succeeded"
    first, _ = jobs.attempts(job)
    assert first.ended is not None
    assert first.ended.reason == "infra"
    assert first.ended.signal or "did not come together" in first.ended.detail  # JAX may crash over it


def test_processes_come_together_where_no_other_machine_gets_in(jobs: Jobs, tmp_path: Path) -> None:
    stays = GANG.format("Path(sys.argv[1], str(rank)).touch(); time.sleep(100)")
    job = jobs.submit(stays, tmp_path, processes=2, grace_s=0.2)
    until(lambda: (tmp_path / "0").exists() and (tmp_path / "1").exists(), "their beginning")

    processes = [psutil.Process(pid) for pid in jobs.left(job)]
    coordinator = processes[0].environ()[COORDINATOR]
    listening = [
        address.laddr
        for process in processes
        for address in process.net_connections("inet")
        if address.status == psutil.CONN_LISTEN and address.laddr.port == int(coordinator.rpartition(":")[2])
    ]
    jobs.end_all()

    assert [address.ip.removeprefix("::ffff:") for address in listening] == ["127.0.0.1"]
