from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from mms_sdk.storage import owners
from mms_sdk.storage.owners import here, is_alive, is_elsewhere, owner_of, pid_of


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield started
    started.kill()
    started.wait()


def test_a_process_is_known_by_its_number_its_start_and_where_it_runs(child: subprocess.Popen[bytes]) -> None:
    owner = owner_of(child.pid)

    pid, start, place = owner.replace("@", ":").split(":")
    assert int(pid) == pid_of(owner) == child.pid
    assert here() == f"@{place}"
    ticks = os.sysconf("SC_CLK_TCK")
    assert psutil.boot_time() + int(start) / ticks == pytest.approx(psutil.Process(child.pid).create_time(), abs=1.5)
    assert len(owner) <= 64  # as long as the catalog's column
    assert owner_of(child.pid) == owner != owner_of(os.getpid())


def test_a_process_is_alive_until_it_ends_also_while_it_is_stopped(child: subprocess.Popen[bytes]) -> None:
    owner = owner_of(child.pid)
    assert is_alive(owner)

    child.send_signal(signal.SIGSTOP)
    assert is_alive(owner)

    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie: its number and start are still there
    assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
    assert not is_alive(owner)

    child.wait()
    assert not is_alive(owner)
    with pytest.raises(ProcessLookupError):
        owner_of(child.pid)


def test_another_process_of_that_number_is_not_it(child: subprocess.Popen[bytes]) -> None:
    pid, _, rest = owner_of(child.pid).partition(":")
    start, _, boot = rest.partition("@")

    assert is_alive(f"{pid}:{start}@{boot}")
    assert not is_alive(f"{pid}:{int(start) + 1}@{boot}")
    assert not is_alive(f"{os.getpid()}:{start}@{boot}")


def test_one_of_another_boot_is_not_it_whatever_else_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = owner_of(os.getpid())
    assert is_alive(owner)

    monkeypatch.setattr(owners, "_life", lambda: "another")

    assert not is_alive(owner)
    assert not is_elsewhere(owner)  # the machine has this name: it was started anew
    assert is_alive(owner_of(os.getpid()))


def test_of_another_machine_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = owner_of(os.getpid())
    assert not is_elsewhere(owner)

    monkeypatch.setattr(owners, "_machine", lambda: "renamed")
    assert not is_elsewhere(owner)  # but of this life
    assert is_alive(owner)
    monkeypatch.setattr(owners, "_life", lambda: "another")
    assert is_elsewhere(owner)
    assert not is_alive(owner)
    assert not is_elsewhere(owner_of(os.getpid()))


@pytest.mark.skipif(shutil.which("unshare") is None or os.geteuid() != 0, reason="needs root, to make a container")
def test_a_container_is_another_life() -> None:
    code = "from mms_sdk.storage.owners import here; print(here())"
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code]

    inside = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    life, _, machine = inside.partition(".")
    assert life != here().partition(".")[0]
    assert machine == here().partition(".")[2]


def test_a_clock_that_is_set_makes_it_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = owner_of(os.getpid())
    monkeypatch.setattr("time.time", lambda: 0.0)

    assert owner_of(os.getpid()) == owner


@pytest.mark.parametrize("name", ["a) R 1 (b", "é\n", "x" * 15])
def test_the_name_of_a_process_may_hold_anything(name: str) -> None:
    code = "import sys; open('/proc/self/comm', 'w').write(sys.argv[1]); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert is_alive(owner_of(process.pid))
        process.kill()


@pytest.mark.parametrize("owner", ["", ":", "x", "@x.y", "0:1@b", "-1:1@b", "1e3:1@b", f"{2**70}:1@b", "PID:1.00"])
def test_what_is_no_process_is_not_alive(owner: str) -> None:
    assert not is_alive(owner.replace("PID", str(os.getpid())))
