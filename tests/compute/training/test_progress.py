"""What is shown while training goes on."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest

from mms_sdk.compute.training import progress
from mms_sdk.compute.training.loop import Step

METRICS = {"train/loss": 0.1265, "train/accuracy": 0.9715, "val/loss": 0.0434, "val/accuracy": 1.0}


class Terminal(io.StringIO):
    """A terminal of 80 columns."""

    def isatty(self) -> bool:
        return True


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    return terminal


def lines_of(terminal: Terminal) -> list[str]:
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    return [line.rstrip() for line in plain.replace("\r", "\n").splitlines() if line.strip()]


def test_the_bar_fits_a_terminal_of_eighty_columns_with_the_metrics_that_decide(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = terminal_of(monkeypatch)

    with progress.make_progress("auto", 100) as bar:
        bar.update(Step(1, 1, 1, 8))
        bar.update(Step(800, 100, 8, 8, METRICS))

    lines = lines_of(terminal)
    assert any("compiling the first step" in line for line in lines)
    assert max(map(len, lines)) <= 80
    assert re.search(r"epoch 100/100 .* 0:00:0\d val/loss 0\.0434  val/accuracy 1\.0000$", lines[-1])


def test_the_bar_of_a_continued_run_shows_where_it_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = terminal_of(monkeypatch)

    with progress.make_progress("auto", 4, done=2.25, history=[METRICS, METRICS]) as bar:
        bar.update(Step(19, 3, 3, 8))

    first, *_, last = lines_of(terminal)
    assert re.search(r"epoch 2/4 .* compiling the first step", first)
    assert re.search(r"epoch 2/4 .* val/loss 0\.0434  val/accuracy 1\.0000$", last)


def test_the_bar_of_a_run_that_had_come_to_its_end_does_not_say_that_it_compiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = terminal_of(monkeypatch)

    with progress.make_progress("auto", 4, done=4, history=[METRICS] * 4):
        pass

    assert re.search(r"epoch 4/4 .* val/loss 0\.0434  val/accuracy 1\.0000$", lines_of(terminal)[-1])


def test_a_notebook_draws_a_continued_run_from_its_first_epoch_on(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    class Shown:
        def update(self, shown: Any) -> None:
            drawn.append(shown.data)

    def display(shown: Any, **_: object) -> Shown:
        drawn.append(shown.data)
        return Shown()

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr("mms_sdk.html.in_notebook", lambda: True)

    with progress.make_progress("auto", 4, done=2.25, history=[METRICS | {"val/loss": 0.75}, METRICS]) as view:
        view.update(Step(24, 3, 8, 8, METRICS))

    assert 'value="2.250" max="4"' in drawn[0]
    (line,) = re.findall(r'stroke="#\w+" stroke-width="1.5" points="([^"]*)"', drawn[1])[1:]  # of val/loss
    assert len(line.split()) == 3


def test_where_nobody_watches_each_epoch_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.make_progress("auto", 3) as lines:
        for epoch in (1, 2, 3):
            lines.update(Step(2 * epoch - 1, epoch, 1, 2))
            lines.update(Step(2 * epoch, epoch, 2, 2, METRICS))

    told = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in told] == ["1/3", "2/3", "3/3"]
    assert all("train/loss 0.1265" in line and "val/accuracy 1.0000" in line for line in told)


def test_nothing_is_shown_where_nothing_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.make_progress("none", 3) as silent:
        silent.update(Step(2, 1, 2, 2, METRICS))

    assert capsys.readouterr() == ("", "")
