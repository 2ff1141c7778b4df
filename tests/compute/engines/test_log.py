"""Logs of any length take little of the disk, and keep their beginning, their end and their offsets."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mms_sdk.compute.engines.log import give_up_middle, read
from mms_sdk.testing.engines import Jobs

KIB, MIB = 2**10, 2**20
COUNTS = "import sys\nfor n in range(int(sys.argv[1])): print(f'{n:099d}')"  # lines of 100 bytes


def on_disk(path: Path) -> int:
    return path.stat().st_blocks * 512


def read_all(log: Path, most: int = 100_000) -> tuple[bytes, list[tuple[int, int]]]:
    """What is left, and after which byte how many are not."""
    content, gaps, offset = b"", [], 0
    while (piece := read(log, offset, most)).content:
        if piece.left_out:
            gaps.append((len(content), piece.left_out))
        content += piece.content
        assert piece.end == offset + piece.left_out + len(piece.content)
        offset = piece.end
    return content, gaps


def test_a_short_log_is_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_bytes(random.Random(0).randbytes(300_000))
    before = log.read_bytes()

    give_up_middle(log, MIB)

    assert log.read_bytes() == before
    assert read_all(log) == (before, [])


def test_of_a_long_one_the_beginning_and_the_newest_half_are_kept(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    written = random.Random(0).randbytes(5 * MIB + 77)
    log.write_bytes(written)

    give_up_middle(log, MIB)

    content, gaps = read_all(log)
    ((at, left_out),) = gaps
    assert log.stat().st_size == len(written)
    assert on_disk(log) <= MIB
    assert content == written[:at] + written[at + left_out :]
    assert at >= 200 * KIB
    assert len(written) - at - left_out >= 500 * KIB


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), most=st.integers(5_000, 200_000))
def test_whatever_is_written_and_given_up_what_is_read_was_written_there(
    tmp_path_factory: pytest.TempPathFactory, seed: int, most: int
) -> None:
    draw, log = random.Random(seed), tmp_path_factory.mktemp("log") / "log.txt"
    written = b""
    for _ in range(draw.randint(1, 5)):
        more = draw.randbytes(draw.randint(0, 900_000))
        with log.open("ab") as file:
            file.write(more)
        written += more
        give_up_middle(log, draw.randint(64 * KIB, MIB))

    offset = draw.randint(0, len(written) + 10)
    while (piece := read(log, offset, most)).content:
        begin = offset + piece.left_out
        assert piece.content == written[begin : begin + len(piece.content)]
        assert len(piece.content) <= most
        offset = piece.end
    assert offset >= len(written)


def test_there_is_nothing_in_a_log_that_is_not_there(tmp_path: Path) -> None:
    give_up_middle(tmp_path / "none", 10)

    assert read(tmp_path / "none", 5, 10) == (b"", 0, 5, False)


def test_it_is_given_up_and_read_while_it_is_written(tmp_path: Path) -> None:
    log, lines = tmp_path / "log.txt", 300_000
    with log.open("ab") as file:
        writer = subprocess.Popen([sys.executable, "-c", COUNTS, str(lines)], stdout=file)
    largest, offset, seen = 0, 0, b""
    while writer.poll() is None:
        give_up_middle(log, 2 * MIB)
        largest = max(largest, on_disk(log))
        piece = read(log, offset, MIB)
        seen, offset = seen + piece.content, piece.end
    give_up_middle(log, 2 * MIB)
    while (piece := read(log, offset, MIB)).content:
        seen, offset = seen + piece.content, piece.end

    assert b"\0" not in seen  # nothing was given up in the moment it was read
    assert offset == log.stat().st_size == 100 * lines
    assert seen.endswith(b"%099d\n" % (lines - 1))
    assert on_disk(log) <= 2 * MIB


def test_a_job_that_prints_without_end_fills_no_disk(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mms_sdk.compute.engines.attempt.KEPT_BYTES", 4 * MIB)
    text = f"{COUNTS}\nimport time; sys.stdout.flush(); time.sleep(2.5)\nprint('the end')"

    job = jobs.submit(text, 200_000)

    assert jobs.end_of(job).lines[-1] == "the end"
    (log,) = (jobs.workspace.job_folder(job) / "attempts/1").glob("log*.txt")
    content, gaps = read_all(log)
    assert on_disk(log) <= 4 * MIB
    assert content.startswith(b"%099d\n" % 0)
    assert content.endswith(b"the end\n")
    assert sum(left_out for _, left_out in gaps) > 10 * MIB


@pytest.mark.torture
@pytest.mark.timeout(600)
def test_ten_gigabytes_of_log_take_a_quarter_of_one(jobs: Jobs) -> None:
    text = (
        "import sys\nline = b'x' * 999_999 + b'\\n'\n"
        "for _ in range(10_000): sys.stdout.buffer.write(line)\n"
        "sys.stdout.flush(); import time; time.sleep(2); print('the end')"
    )
    job, largest = jobs.submit(text), 0
    log = jobs.workspace.job_folder(job) / "attempts/1/log.txt"

    while not jobs.get(job).ended:
        jobs.engine.reconcile()
        largest = max(largest, on_disk(log) if log.exists() else 0)
        time.sleep(0.2)

    assert jobs.end_of(job).lines[-1] == "the end"
    assert log.stat().st_size > 10**10
    print(f"10 GB printed: at most {largest / 1e9:.2f} GB on the disk, {on_disk(log) / 1e9:.2f} GB at the end")
    assert on_disk(log) <= 2**28
