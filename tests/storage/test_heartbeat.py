"""A heartbeat says what is done now, costs next to nothing, and is never a reason to stop."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from mms_sdk.storage import heartbeat
from mms_sdk.storage.heartbeat import Heart, beats


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which passes when a test says so."""
    now = [1000.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(heartbeat.time, "time", lambda: 1e9 + now[0])
    return now


def test_each_phase_is_told_as_it_begins_and_steps_once_a_second(tmp_path: Path, clock: list[float]) -> None:
    def told() -> tuple[str, int, float]:
        (found,) = beats(tmp_path)
        return found.phase, found.step, found.at - 1e9

    heart = Heart(tmp_path, rank=0, step=5)
    assert told() == ("starting", 5, 1000)
    clock[0] += 7
    with heart.during("compiling"):
        assert told() == ("compiling", 5, 1007)
        clock[0] += 60
    assert told() == ("starting", 5, 1067)
    heart.step(6)
    assert told() == ("training", 6, 1067)
    for step in range(7, 27):
        clock[0] += 0.125
        heart.step(step)
    assert told()[:2] == ("training", 22)
    assert beats(tmp_path)[0].step_s == pytest.approx(0.125)
    with heart.during("evaluating"):
        clock[0] += 500
        with heart.during("saving"):
            assert told()[0] == "saving"
        assert told()[0] == "evaluating"
    for step in range(27, 50):
        clock[0] += 0.125
        heart.step(step)
    assert beats(tmp_path)[0].step_s == pytest.approx(0.125)  # what an evaluation takes is no step's
    heart.close()


def test_what_a_step_usually_takes_is_not_moved_by_a_few_slow_ones(tmp_path: Path, clock: list[float]) -> None:
    heart = Heart(tmp_path, rank=0, step=0)
    for step in range(1, 20):
        clock[0] += 40 if step in (5, 11) else 2
        heart.step(step)

    assert beats(tmp_path)[0].step_s == 2
    heart.close()


def test_the_share_of_time_that_is_waited_for_data_is_told(tmp_path: Path, clock: list[float]) -> None:
    heart = Heart(tmp_path, rank=0, step=0)
    waited = 0.0
    for step in range(1, 40):
        clock[0] += 0.5
        waited += 0.125
        heart.step(step, waited_s=waited, awaited_s=2 * waited)

    (beat,) = beats(tmp_path)
    assert (beat.input_wait, beat.step_wait) == (0.25, 0.5)
    heart.close()


def test_each_process_has_its_own_and_what_is_none_is_left_out(tmp_path: Path) -> None:
    for rank in (10, 2, 0):
        Heart(tmp_path, rank=rank, step=rank).close()
    (tmp_path / "heartbeat.3").write_text("{")
    (tmp_path / "heartbeat.4").write_text('{"rank": 4, "step": 1, "phase": "sleeping", "at": 1}')
    (tmp_path / "heartbeat.5").write_text('{"rank": 5, "step": 1, "phase": "training", "at": "NaN"}')
    (tmp_path / "heartbeat.6").mkdir()

    assert [each.rank for each in beats(tmp_path)] == [0, 2, 10]
    assert beats(tmp_path / "nothing") == []


def test_a_folder_that_is_away_stops_nobody(tmp_path: Path, clock: list[float]) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    heart = Heart(folder, rank=0, step=0)
    shutil.rmtree(folder)
    clock[0] += 5
    heart.step(1)
    heart.close()
    gone = Heart(folder, rank=0, step=0)
    gone.step(1)
    with gone.during("saving"):
        pass
    gone.close()


def test_a_step_costs_next_to_nothing(tmp_path: Path) -> None:
    heart = Heart(tmp_path, rank=0, step=0)
    heart.step(1)
    began = time.process_time()
    for step in range(2, 50_002):
        heart.step(step)
    assert (time.process_time() - began) / 50_000 < 5e-6
    heart.close()
