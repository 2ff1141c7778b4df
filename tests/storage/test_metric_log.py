from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_sdk.errors import StorageFull
from mms_sdk.storage.metric_log import MetricLog, read

VALUES = st.dictionaries(
    st.text(min_size=1, max_size=5),
    st.one_of(st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False)),
)


@given(lines=st.lists(VALUES, max_size=10), cut=st.integers(0, 10))
def test_lines_read_back_from_wherever_one_had_got_to(
    tmp_path_factory: pytest.TempPathFactory, lines: list[dict[str, float]], cut: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    log = MetricLog(path)
    for line in lines[:cut]:
        log.write(line)
    first, offset = read(path)
    for line in lines[cut:]:
        log.write(line)
    rest, end = read(path, offset)
    log.close()

    assert [*first, *rest] == lines
    assert end == path.stat().st_size
    assert read(path, end) == ([], end)


def test_what_json_has_no_number_for_is_still_seen(tmp_path: Path) -> None:
    log = MetricLog(tmp_path / "m")
    log.write({"loss": float("nan"), "up": float("inf"), "down": float("-inf"), "step": 3})
    log.close()

    assert read(tmp_path / "m")[0] == [{"loss": "nan", "up": "inf", "down": "-inf", "step": 3}]


def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read(tmp_path / "absent", 7) == ([], 7)


def test_a_log_is_continued_where_it_ended(tmp_path: Path) -> None:
    for step in range(3):
        log = MetricLog(tmp_path / "m")
        log.write({"step": step})
        log.close()

    assert read(tmp_path / "m")[0] == [{"step": 0}, {"step": 1}, {"step": 2}]


@pytest.mark.parametrize("left", [b"", b'{"step": 0}\n'])
def test_half_a_line_is_not_read_and_does_not_spoil_the_next(tmp_path: Path, left: bytes) -> None:
    path = tmp_path / "m"
    path.write_bytes(left + b'{"step": 1, "lo')
    whole = [{"step": 0}] if left else []
    assert read(path) == (whole, len(left))

    log = MetricLog(path)
    log.write({"step": 2})
    log.close()

    assert read(path)[0] == [*whole, {"step": 2}]


def test_a_reader_beside_the_writer_sees_whole_lines_in_order(tmp_path: Path) -> None:
    path = tmp_path / "m"
    log = MetricLog(path)
    writer = threading.Thread(target=lambda: [log.write({"step": step, "x": "ü" * 50}) for step in range(2000)])
    writer.start()
    seen, offset = [], 0
    while writer.is_alive() or len(seen) < 2000:
        lines, offset = read(path, offset)
        seen += [line["step"] for line in lines]
    log.close()

    assert seen == list(range(2000))


def test_a_disk_that_gets_full_in_the_middle_of_a_line_leaves_whole_lines(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(64)
    log = MetricLog(disk / "m")
    written = 0

    def fill() -> None:
        nonlocal written
        while True:
            log.write({"step": written, "x": "x" * 700})
            written += 1

    with pytest.raises(StorageFull, match=r"m: No space left on device; .*Free space there"):
        fill()

    assert [line["step"] for line in read(disk / "m")[0]] == list(range(written))
    assert (disk / "m").read_bytes().endswith(b"\n")
    log.close()
