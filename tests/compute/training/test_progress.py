"""What is shown while training goes on."""

from __future__ import annotations

import io
import re

import pytest

from mms_sdk.compute.training import progress
from mms_sdk.compute.training.loop import Step

METRICS = {"train/loss": 0.1265, "train/accuracy": 0.9715, "val/loss": 0.0434, "val/accuracy": 1.0}


class Terminal(io.StringIO):
    """A terminal of 80 columns."""

    def isatty(self) -> bool:
        return True


def test_the_bar_fits_a_terminal_of_eighty_columns_with_the_metrics_that_decide(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")

    with progress.make_progress("auto", 100) as bar:
        bar.update(Step(1, 1, 1, 8))
        bar.update(Step(800, 100, 8, 8, METRICS))

    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()).replace("\r", "\n").splitlines()
    assert any("compiling the first step" in line for line in lines)
    assert max(map(len, lines)) <= 80
    assert re.search(r"epoch 100/100 .* 0:00:0\d val/loss 0\.0434  val/accuracy 1\.0000$", lines[-1].rstrip())


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
