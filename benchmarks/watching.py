"""Watching: what it costs a training, a chart of a long log, and an event from its cause to who follows."""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path
from statistics import median

import mms_sdk as mms
from benchmarks.table import Row
from mms_sdk.storage import series
from mms_sdk.storage.heartbeat import Heart
from mms_sdk.storage.metric_index import charted
from mms_sdk.storage.metric_log import MetricLog
from mms_sdk.storage.workspace import Workspace

STEP_S, LOGGED_A_S, TOLD_A_S = 0.001, 4, 1  # a step of a tiny network; what the loop writes meanwhile
WATCHED_SHARE = 0.01
ROWS, POINTS, CHART_LIMIT_S = 10_000_000, 2000, 0.2
HEARD_LIMIT_S = 1.0
IDLE_SHARE = 0.01


def rows(folder: Path, *, quick: bool) -> list[Row]:
    """The rows of this topic."""
    return [
        _written(folder, steps=10_000 if quick else 500_000),
        *_charts(folder / "metrics.jsonl", ROWS // 100 if quick else ROWS),
        *_following(folder / "workspace", rounds=3 if quick else 30, idle_s=2 if quick else 20),
    ]


def _written(folder: Path, *, steps: int) -> Row:
    heart, log = Heart(folder, rank=0, step=0), MetricLog(folder / "written.jsonl")
    a_step = _seconds(heart.step, range(1, steps))
    a_row = _seconds(lambda step: log.write({"step": step, "time": 1e9, "running/loss": 1 / (step + 1)}), range(2000))
    a_beat = _seconds(lambda _: heart._beat(time.monotonic()), range(2000))
    heart.close()
    log.close()
    share = a_step / STEP_S + a_row * LOGGED_A_S + a_beat * TOLD_A_S
    return Row(
        what=f"metrics and heartbeat of a training with steps of {1e3 * STEP_S:.0f} ms, of its time",
        mms=f"{100 * share:.2f} %: step {1e6 * a_step:.2f} µs, row {1e6 * a_row:.0f} µs, beat {1e6 * a_beat:.0f} µs",
        beside=f"{100 * WATCHED_SHARE:.0f} %",
        ratio=share / WATCHED_SHARE,
        target="<= 1.0",
    )


def _seconds(work: object, over: range) -> float:
    began = time.perf_counter()
    for each in over:
        work(each)  # type: ignore[operator]
    return (time.perf_counter() - began) / len(over)


def _charts(log: Path, count: int) -> list[Row]:
    with log.open("wb") as file:
        for begin in range(0, count, 50_000):
            lines = (
                b'{"step":%d,"time":%.3f,"running/loss":%.6f}\n' % (step, 1.7e9 + step / 4, math.sin(step / 1e4))
                for step in range(begin, min(begin + 50_000, count))
            )
            file.write(b"".join(lines))
    first, *later = [_chart(log) for _ in range(8)]
    return [
        Row(
            what=f"chart of {count:,} rows in {POINTS:,} points, {log.stat().st_size / 1e6:,.0f} MB of log",
            mms=f"{1e3 * median(later):.0f} ms",
            beside=f"{1e3 * CHART_LIMIT_S:.0f} ms",
            ratio=median(later) / CHART_LIMIT_S,
            target="<= 1.0",
        ),
        Row(what="the first one, which makes the index", mms=f"{first:.1f} s", beside="–", ratio=math.nan),
    ]


def _chart(log: Path) -> float:
    began = time.perf_counter()
    found, offset = charted(log, POINTS, most_rows=2**20)
    assert series.pack(found, job="", offset=offset)
    return time.perf_counter() - began


def _following(root: Path, *, rounds: int, idle_s: float) -> list[Row]:
    heard: list[float] = []
    with mms.connect(workspace=root) as ws:
        behind = Workspace(root)

        def listen() -> None:
            for _ in ws.events(follow=True):
                heard.append(time.perf_counter())

        thread = threading.Thread(target=listen)
        thread.start()
        took = []
        for number in range(rounds):
            time.sleep(0.5 + number % 7 / 7)
            began = time.perf_counter()
            behind.catalog.jobs.start("ingest", "pets", {})
            while len(heard) <= number:
                time.sleep(0.001)
            took.append(heard[-1] - began)
        time.sleep(3)
        before = time.process_time()
        time.sleep(idle_s)
        busy = (time.process_time() - before) / idle_s
        behind.close()
    thread.join()
    return [
        Row(
            what="from an event in another process to who follows, embedded",
            mms=f"{1e3 * median(took):.0f} ms, at most {1e3 * max(took):.0f} ms",
            beside=f"{1e3 * HEARD_LIMIT_S:.0f} ms",
            ratio=median(took) / HEARD_LIMIT_S,
            target="<= 1.0",
        ),
        Row(
            what="CPU of following while nothing happens",
            mms=f"{100 * busy:.2f} % of a core",
            beside=f"{100 * IDLE_SHARE:.0f} %",
            ratio=busy / IDLE_SHARE,
            target="<= 1.0",
        ),
    ]
