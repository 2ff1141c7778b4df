from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mms_sdk.compute.inference.batcher import Batcher, Priority
from mms_sdk.compute.inference.dispatcher import Dispatcher
from mms_sdk.errors import DeadlineExceeded, InvalidInput, InvalidRequest, Overloaded, Unavailable

Rows = NDArray[Any]
LONG = 3600.0
POISON, NAN, INF = -1.0, -2.0, -3.0


def rows_of(*values: float) -> Rows:
    return np.array([[value, value * value] for value in values])


def answer_to(rows: Rows) -> Rows:
    """The model: three numbers that tell which row they are of."""
    return np.stack([rows[:, 0], rows.sum(1), np.cos(rows[:, 0])], axis=1)


class Device:
    """Computes `answer_to`, notes what it was asked, and waits for `gate` before each answer."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[Rows] = []
        self.takes_s = 0.0
        self.threads: set[str] = set()

    def scores(self, rows: Rows) -> Rows:
        self.asked.append(rows.copy())
        self.threads.add(threading.current_thread().name)
        assert self.gate.wait(LONG)
        time.sleep(self.takes_s)
        if (rows[:, 0] == POISON).any():
            raise ZeroDivisionError("poison")
        scores = answer_to(rows)
        scores[rows[:, 0] == NAN, 1] = np.nan
        scores[rows[:, 0] == INF, 2] = np.inf
        return scores

    def values(self) -> list[float]:
        """First numbers of all rows that were computed."""
        return [float(row[0]) for rows in self.asked for row in rows]

    async def is_asked(self, times: int) -> None:
        """Waits until so many batches have come."""
        async with asyncio.timeout(LONG):
            while len(self.asked) < times:
                await asyncio.sleep(0.001)


@contextmanager
def batching(device: Device, *, max_batch_rows: int = 8, max_queue_rows: int = 1000) -> Iterator[Batcher]:
    with one_dispatcher() as dispatcher:
        batcher = Batcher(
            device.scores,
            sizes=(1, max_batch_rows),
            max_queue_rows=max_queue_rows,
            name="t",
            dispatcher=dispatcher,
        )
        try:
            yield batcher
        finally:
            device.gate.set()
            assert batcher.close()


@contextmanager
def one_dispatcher() -> Iterator[Dispatcher]:
    dispatcher = Dispatcher("t")
    yield dispatcher
    assert dispatcher.close()
    assert "mms-device-t" not in {thread.name for thread in threading.enumerate()}


async def busy(device: Device, batcher: Batcher) -> asyncio.Task[Rows]:
    """Occupies the device with the row 0 until the gate is opened."""
    device.gate.clear()
    before = len(device.asked)
    task = asyncio.create_task(batcher.submit(rows_of(0), deadline_s=LONG))
    await device.is_asked(before + 1)
    return task


async def queued(batcher: Batcher, *values: float, deadline_s: float = LONG) -> asyncio.Task[Rows]:
    task = asyncio.create_task(batcher.submit(rows_of(*values), deadline_s=deadline_s))
    await asyncio.sleep(0)  # it runs up to where it waits for the answer
    return task


async def waits(task: Awaitable[Rows]) -> Rows:
    async with asyncio.timeout(LONG):
        return await task


def test_each_of_many_requests_at_once_gets_its_own_answer() -> None:
    device = Device()
    device.takes_s = 0.001
    rng = np.random.default_rng(0)
    ends = np.cumsum(rng.integers(1, 6, 1500))
    requests = [rows_of(*range(start, end)) for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    async def ask(batcher: Batcher) -> list[Rows]:
        return await asyncio.gather(*(batcher.submit(rows, deadline_s=LONG) for rows in requests))

    with batching(device, max_batch_rows=64, max_queue_rows=10_000) as batcher:
        answers = asyncio.run(ask(batcher))
        counted = batcher.counts.requests, batcher.counts.rows

    for rows, answer in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(answer, answer_to(rows))
    assert sorted(device.values()) == list(range(ends[-1]))  # every row once
    assert max(map(len, device.asked)) <= 64
    assert ends[-1] / 64 <= len(device.asked) <= 2 * ends[-1] / 64 + 1
    assert counted == (1500, ends[-1])
    assert device.threads == {"mms-device-t"}


def test_a_model_that_answers_more_or_fewer_rows_than_it_was_asked_fails_alone() -> None:
    async def ask(batcher: Batcher) -> Rows:
        return await batcher.submit(rows_of(1, 2), deadline_s=LONG)

    with one_dispatcher() as dispatcher:
        short = Batcher(
            lambda rows: answer_to(rows)[1:], sizes=(8,), max_queue_rows=8, name="short", dispatcher=dispatcher
        )
        with pytest.raises(Unavailable, match="it gave 1 answers to 2 rows"):
            asyncio.run(ask(short))
        with pytest.raises(Unavailable, match="it gave 1 answers"):  # the thread that answers goes on
            asyncio.run(ask(short))
        short.close()


def test_requests_of_several_event_loops_each_get_their_own_answer() -> None:
    device = Device()
    device.takes_s = 0.001
    wrong: list[int] = []

    def work(batcher: Batcher, number: int) -> None:
        async def ask() -> None:
            requests = [rows_of(*range(1000 * number + at, 1000 * number + at + 1 + at % 5)) for at in range(100)]
            answers = await asyncio.gather(*(batcher.submit(rows, deadline_s=LONG) for rows in requests))
            for rows, answer in zip(requests, answers, strict=True):
                if not np.array_equal(answer, answer_to(rows)):
                    wrong.append(number)

        asyncio.run(ask())

    with batching(device, max_queue_rows=10_000) as batcher:
        threads = [threading.Thread(target=work, args=(batcher, number)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
        counted = batcher.counts.requests

    assert wrong == []
    assert counted == 600


def test_a_request_that_meets_an_idle_device_goes_at_once() -> None:
    device = Device()

    async def ask(batcher: Batcher) -> None:
        for value in range(5):
            np.testing.assert_array_equal(
                await batcher.submit(rows_of(value), deadline_s=LONG), answer_to(rows_of(value))
            )

    with batching(device) as batcher:
        asyncio.run(ask(batcher))
    assert [len(rows) for rows in device.asked] == [1] * 5


def test_what_queued_while_the_device_was_busy_is_the_next_batch() -> None:
    device = Device()

    async def ask(batcher: Batcher) -> None:
        first = await busy(device, batcher)
        others = [await queued(batcher, value, value + 0.5) for value in range(1, 6)]
        device.gate.set()
        await waits(asyncio.gather(first, *others))

    with batching(device) as batcher:
        asyncio.run(ask(batcher))
    assert [len(rows) for rows in device.asked] == [1, 8, 2]
    assert device.values() == [0, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5]


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    device = Device()

    async def ask(batcher: Batcher) -> None:
        first = await busy(device, batcher)
        held = [await queued(batcher, *range(1 + 3 * at, 4 + 3 * at)) for at in range(3)]
        with pytest.raises(Overloaded, match=r"'t' has 9 rows waiting \(at most 10\).*try again later") as told:
            await batcher.submit(rows_of(20, 21), deadline_s=LONG)
        assert told.value.retry_after_s >= 1
        held.append(await queued(batcher, 10))  # one more row has room
        with pytest.raises(Overloaded):
            await batcher.submit(rows_of(22), deadline_s=LONG)
        device.gate.set()
        await waits(asyncio.gather(first, *held))
        await batcher.submit(rows_of(30), deadline_s=LONG)  # and it recovers

    with batching(device, max_queue_rows=10) as batcher:
        asyncio.run(ask(batcher))
    assert device.values() == [*range(11), 30]


def test_a_request_whose_answer_would_come_too_late_is_refused_at_once() -> None:
    device = Device()

    async def ask(batcher: Batcher) -> None:
        device.takes_s = 0.5
        await batcher.submit(rows_of(100), deadline_s=LONG)  # now it knows how long a batch takes
        first = await busy(device, batcher)
        held = [await queued(batcher, 1, 2), await queued(batcher, 3, 4)]  # two batches: a second of work
        began = time.monotonic()
        with pytest.raises(Overloaded, match=r"about 1\.\d s of work") as told:
            await batcher.submit(rows_of(5), deadline_s=0.7)
        assert time.monotonic() - began < 0.7  # before it would be too late
        assert told.value.retry_after_s == pytest.approx(1, abs=0.4)
        held.append(await queued(batcher, 6, deadline_s=LONG))  # who has the time may wait
        device.takes_s = 0
        device.gate.set()
        await waits(asyncio.gather(first, *held))
        await batcher.submit(rows_of(7), deadline_s=0.3)  # an empty queue refuses nobody

    with batching(device, max_batch_rows=2) as batcher:
        asyncio.run(ask(batcher))
    assert 5 not in device.values()


def test_a_request_that_is_not_answered_in_time_says_so_and_is_never_computed() -> None:
    device = Device()

    async def ask(batcher: Batcher) -> None:
        first = await busy(device, batcher)
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"due within 0\.05 s .*try again later"):
            await batcher.submit(rows_of(1, 2), deadline_s=0.05)
        assert 0.04 < time.monotonic() - began < 5
        other = await queued(batcher, 3)
        device.gate.set()
        await waits(asyncio.gather(first, other))

    with batching(device) as batcher:
        asyncio.run(ask(batcher))
    assert device.values() == [0, 3]


def test_an_answer_that_comes_after_the_deadline_harms_nobody() -> None:
    device = Device()

    async def ask(batcher: Batcher) -> None:
        device.gate.clear()
        with pytest.raises(DeadlineExceeded):
            await batcher.submit(rows_of(1), deadline_s=0.05)
        device.gate.set()
        np.testing.assert_array_equal(await batcher.submit(rows_of(2), deadline_s=LONG), answer_to(rows_of(2)))

    with batching(device) as batcher:
        asyncio.run(ask(batcher))


def test_a_cancelled_request_is_never_computed() -> None:
    device = Device()

    async def ask(batcher: Batcher) -> None:
        first = await busy(device, batcher)
        left, other = await queued(batcher, 1, 2), await queued(batcher, 3)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        device.gate.set()
        await waits(asyncio.gather(first, other))

    with batching(device) as batcher:
        asyncio.run(ask(batcher))
    assert device.values() == [0, 3]


@pytest.mark.parametrize("how", ["late", "cancelled"])
def test_a_request_that_gives_up_while_a_batch_without_room_for_it_is_computed_is_never_computed(how: str) -> None:
    device = Device()

    async def ask(batcher: Batcher) -> None:
        first = await busy(device, batcher)
        full = await queued(batcher, 1, 2)
        other = await queued(batcher, 3, deadline_s=0.3 if how == "late" else LONG)
        device.takes_s = 0.6
        device.gate.set()
        await device.is_asked(2)  # it works on `full`; `other` was looked at and did not fit
        if how == "cancelled":
            other.cancel()
        with pytest.raises((DeadlineExceeded, asyncio.CancelledError)):
            await other
        await waits(asyncio.gather(first, full))
        await batcher.submit(rows_of(9), deadline_s=LONG)

    with batching(device, max_batch_rows=2) as batcher:
        asyncio.run(ask(batcher))
    assert device.values() == [0, 1, 2, 9]


def test_an_input_on_which_the_model_fails_fails_alone() -> None:
    device = Device()

    async def ask(batcher: Batcher) -> None:
        first = await busy(device, batcher)
        good = [await queued(batcher, 1, 2), await queued(batcher, 3)]
        bad = await queued(batcher, 4, POISON)
        good.append(await queued(batcher, 5, 6))
        device.gate.set()
        with pytest.raises(Unavailable, match="the model failed on this input: poison"):
            await waits(bad)
        for task, values in zip(good, [(1, 2), (3,), (5, 6)], strict=True):
            np.testing.assert_array_equal(await waits(task), answer_to(rows_of(*values)))
        await waits(first)
        np.testing.assert_array_equal(await batcher.submit(rows_of(7), deadline_s=LONG), answer_to(rows_of(7)))

    with batching(device) as batcher:
        asyncio.run(ask(batcher))


def test_a_request_of_another_shape_fails_alone_and_the_thread_lives_on() -> None:
    device = Device()

    async def ask(batcher: Batcher) -> None:
        first = await busy(device, batcher)
        good = await queued(batcher, 1)
        bad = asyncio.create_task(batcher.submit(np.zeros((1, 2, 2)), deadline_s=LONG))
        await asyncio.sleep(0)
        device.gate.set()
        with pytest.raises(Unavailable, match="the model failed on this input"):
            await waits(bad)
        np.testing.assert_array_equal(await waits(good), answer_to(rows_of(1)))
        await waits(first)
        np.testing.assert_array_equal(await batcher.submit(rows_of(2), deadline_s=LONG), answer_to(rows_of(2)))

    with batching(device) as batcher:
        asyncio.run(ask(batcher))


def test_an_error_raised_on_purpose_is_kept() -> None:
    def scores(rows: Rows) -> Rows:
        raise InvalidInput("too green; send another")

    with one_dispatcher() as dispatcher:
        batcher = Batcher(scores, sizes=(4,), max_queue_rows=4, name="t", dispatcher=dispatcher)
        with pytest.raises(InvalidInput, match="too green"):
            asyncio.run(batcher.submit(rows_of(1), deadline_s=LONG))
        batcher.close()


@pytest.mark.parametrize("what", [NAN, INF])
def test_scores_that_are_no_numbers_fail_their_own_request_only(what: float) -> None:
    device = Device()

    async def ask(batcher: Batcher) -> None:
        first = await busy(device, batcher)
        before, bad, after = await queued(batcher, 1), await queued(batcher, 2, what), await queued(batcher, 3, 4)
        device.gate.set()
        with pytest.raises(InvalidInput, match="not finite numbers; check the input"):
            await waits(bad)
        np.testing.assert_array_equal(await waits(before), answer_to(rows_of(1)))
        np.testing.assert_array_equal(await waits(after), answer_to(rows_of(3, 4)))
        await waits(first)

    with batching(device) as batcher:
        asyncio.run(ask(batcher))
    assert [len(rows) for rows in device.asked] == [1, 5]  # they were one batch


def test_more_rows_than_a_batch_may_have_are_refused() -> None:
    device = Device()
    with batching(device) as batcher:
        asyncio.run(batcher.submit(rows_of(*range(8)), deadline_s=LONG))
        with pytest.raises(InvalidRequest, match=r"at most 8 rows, .* \[1, 8\] .*; got 9; send several, or predict in"):
            asyncio.run(batcher.submit(rows_of(*range(9)), deadline_s=LONG))
    assert len(device.asked) == 1


def test_closing_answers_what_is_queued_and_refuses_what_comes_after() -> None:
    device = Device()

    async def ask(batcher: Batcher) -> None:
        first = await busy(device, batcher)
        others = [await queued(batcher, value, value + 0.5) for value in range(1, 21)]
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        await asyncio.sleep(0.1)
        with pytest.raises(Unavailable, match="is being taken down; try again"):
            await batcher.submit(rows_of(99), deadline_s=LONG)
        device.gate.set()
        for value, task in enumerate(others, 1):
            np.testing.assert_array_equal(await waits(task), answer_to(rows_of(value, value + 0.5)))
        await first
        await closing
        with pytest.raises(Unavailable):
            await batcher.submit(rows_of(98), deadline_s=LONG)

    with batching(device) as batcher:
        asyncio.run(ask(batcher))
        batcher.close()  # twice does no harm
    assert not {98, 99} & set(device.values())


def test_a_loop_that_ended_without_its_answer_harms_nobody() -> None:
    device = Device()

    async def leave(batcher: Batcher) -> None:
        await queued(batcher, 1)
        await device.is_asked(1)

    with batching(device) as batcher:
        device.gate.clear()
        asyncio.run(leave(batcher))  # its loop is closed now, and the device still at work
        device.gate.set()
        answer = asyncio.run(batcher.submit(rows_of(2), deadline_s=LONG))
    np.testing.assert_array_equal(answer, answer_to(rows_of(2)))


def test_every_request_under_a_storm_ends_in_an_answer_or_a_refusal() -> None:
    device = Device()
    device.takes_s = 0.002
    rng = np.random.default_rng(1)

    async def one(batcher: Batcher, value: int, pause: float, deadline_s: float) -> str:
        await asyncio.sleep(pause)
        try:
            answer = await batcher.submit(rows_of(value), deadline_s=deadline_s)
        except (Overloaded, DeadlineExceeded) as error:
            return type(error).__name__
        np.testing.assert_array_equal(answer, answer_to(rows_of(value)))
        return "answered"

    async def storm(batcher: Batcher) -> list[str]:
        asked = [
            one(batcher, value, pause, deadline_s)
            for value, (pause, deadline_s) in enumerate(rng.uniform((0, 0.001), (0.2, 0.05), (1500, 2)))
        ]
        async with asyncio.timeout(LONG):
            return await asyncio.gather(*asked)

    with batching(device, max_queue_rows=40) as batcher:
        ends = asyncio.run(storm(batcher))
        answered = batcher.counts.requests
    assert ends.count("answered") > 50
    assert ends.count("Overloaded") > 50
    assert ends.count("answered") == answered
    assert len(device.values()) == len(set(device.values()))


def test_of_what_waits_the_higher_priority_goes_first_and_within_one_the_order_is_kept() -> None:
    device = Device()

    async def ask(batcher: Batcher) -> None:
        first = await busy(device, batcher)
        others = []
        kinds: list[tuple[float, Priority]] = [(1, "low"), (2, "normal"), (3, "high"), (4, "low"), (5, "normal")]
        for value, priority in kinds:
            others.append(asyncio.create_task(batcher.submit(rows_of(value), deadline_s=LONG, priority=priority)))
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # what a turn of the loop gathered is sent in the next
        device.gate.set()
        await waits(asyncio.gather(first, *others))

    with batching(device, max_batch_rows=1) as batcher:
        asyncio.run(ask(batcher))
    assert device.values() == [0, 3, 2, 5, 1, 4]


def test_a_full_queue_of_low_priority_keeps_nobody_of_a_higher_one_out() -> None:
    device = Device()

    async def ask(batcher: Batcher) -> None:
        first = await busy(device, batcher)
        low = [
            asyncio.create_task(batcher.submit(rows_of(value), deadline_s=LONG, priority="low")) for value in (1, 2, 3)
        ]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await batcher.submit(rows_of(4), deadline_s=LONG, priority="low")
        normal = await queued(batcher, 5)
        await asyncio.sleep(0)  # what a turn of the loop gathered is sent in the next
        device.gate.set()
        await waits(asyncio.gather(first, normal, *low))

    with batching(device, max_batch_rows=1, max_queue_rows=3) as batcher:
        asyncio.run(ask(batcher))
    assert device.values() == [0, 5, 1, 2, 3]


def test_who_leaves_the_queue_makes_room_at_once_while_the_device_is_still_busy() -> None:
    device = Device()

    async def ask(batcher: Batcher) -> None:
        first = await busy(device, batcher)
        left = await queued(batcher, 1, 2)
        late = await queued(batcher, 3, deadline_s=0.01)
        with pytest.raises(Overloaded):
            await batcher.submit(rows_of(4), deadline_s=LONG)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        with pytest.raises(DeadlineExceeded):
            await late
        assert batcher.queued_rows() == 0
        other = await queued(batcher, 5, 6, 7)
        assert batcher.queued_rows() == 3
        device.gate.set()
        await waits(asyncio.gather(first, other))
        assert batcher.queued_rows() == 0

    with batching(device, max_queue_rows=3) as batcher:
        asyncio.run(ask(batcher))
        counts = batcher.counts
    assert device.values() == [0, 5, 6, 7]
    assert (counts.requests, counts.rows, counts.refused, counts.late, counts.left, counts.failed) == (2, 4, 1, 1, 1, 0)


def test_what_was_given_up_holds_no_rows_and_little_else_while_the_device_is_busy() -> None:
    device = Device()
    alive: list[weakref.ref[Rows]] = []

    async def give_up(batcher: Batcher, how: str) -> None:
        rows = rows_of(1, 2)
        alive.append(weakref.ref(rows))
        task = asyncio.create_task(batcher.submit(rows, deadline_s=0.001 if how == "late" else LONG))
        del rows
        await asyncio.sleep(0)
        if how == "cancelled":
            task.cancel()
        with pytest.raises((DeadlineExceeded, asyncio.CancelledError)):
            await task

    async def ask(batcher: Batcher) -> None:
        first = await busy(device, batcher)
        for number in range(8):
            await give_up(batcher, "late" if number % 2 else "cancelled")
        await asyncio.sleep(0)  # the loop lets go of the last
        gc.collect()
        assert [rows() is None for rows in alive] == [True] * 8
        assert batcher.queued_rows() == 0
        with pytest.raises(Overloaded, match="8 requests were given up"):
            await batcher.submit(rows_of(3), deadline_s=LONG)
        await gives_up_of_high(batcher)
        device.gate.set()
        await waits(first)
        await batcher.submit(rows_of(5), deadline_s=LONG)

    async def gives_up_of_high(batcher: Batcher) -> None:
        with pytest.raises(DeadlineExceeded):  # let in: what others gave up is not its own
            await batcher.submit(rows_of(4), deadline_s=0.001, priority="high")

    with batching(device, max_queue_rows=8) as batcher:
        asyncio.run(ask(batcher))
    assert device.values() == [0, 5]


def test_what_was_given_up_of_low_priority_leaves_the_queue_though_every_batch_is_full() -> None:
    device = Device()
    waiting: list[int] = []

    async def ask(batcher: Batcher) -> None:
        first = await busy(device, batcher)
        low = [asyncio.create_task(batcher.submit(rows_of(9), deadline_s=LONG, priority="low")) for _ in range(3)]
        await asyncio.sleep(0)
        for task in low[:2]:
            task.cancel()
        normal = [await queued(batcher, value) for value in (1, 2)]
        await asyncio.sleep(0)
        batcher._scores = lambda rows: waiting.append(len(batcher._rows[2].waiting)) or device.scores(rows)
        device.gate.set()
        await waits(asyncio.gather(first, *normal, low[2]))

    with batching(device, max_batch_rows=1, max_queue_rows=3) as batcher:
        asyncio.run(ask(batcher))
    assert device.values() == [0, 1, 2, 9]
    assert waiting == [1, 1, 0]


def test_one_poisoned_row_among_sixty_four_is_found_in_a_dozen_calls() -> None:
    device = Device()

    async def ask(batcher: Batcher) -> None:
        first = await busy(device, batcher)
        tasks = [await queued(batcher, POISON if value == 38 else value) for value in range(1, 65)]
        await asyncio.sleep(0)  # what a turn of the loop gathered is sent in the next
        device.gate.set()
        for value, task in enumerate(tasks, 1):
            if value == 38:
                with pytest.raises(Unavailable, match="poison"):
                    await waits(task)
            else:
                np.testing.assert_array_equal(await waits(task), answer_to(rows_of(value)))
        await first

    with batching(device, max_batch_rows=64) as batcher:
        asyncio.run(ask(batcher))
    assert [len(rows) for rows in device.asked[:2]] == [1, 64]
    assert len(device.asked) == 1 + 1 + 2 * 6  # all of them, and twice each of six halvings


def test_a_busy_event_loop_hands_out_no_answer_after_its_deadline() -> None:
    device = Device()

    async def ask(batcher: Batcher) -> None:
        device.gate.clear()
        asked = await queued(batcher, 1, deadline_s=0.2)
        await device.is_asked(1)
        device.gate.set()
        time.sleep(0.3)  # the answer is there in time, and the loop is not
        with pytest.raises(DeadlineExceeded):
            await asked

    with batching(device) as batcher:
        asyncio.run(ask(batcher))


def test_a_model_that_hangs_costs_its_requests_their_deadline_and_the_end_its_limit() -> None:
    device = Device()
    dispatcher = Dispatcher("t")
    batcher = Batcher(device.scores, sizes=(1, 2), max_queue_rows=2, name="t", dispatcher=dispatcher)

    async def ask() -> None:
        device.gate.clear()
        for _ in range(3):
            with pytest.raises(DeadlineExceeded):
                await batcher.submit(rows_of(1), deadline_s=0.02)
        assert batcher.stuck_s() > 0.04

    try:
        asyncio.run(ask())
        assert not batcher.close(timeout_s=0.05)
        assert not dispatcher.close(timeout_s=0.05)
    finally:
        device.gate.set()
    assert batcher.close()
    assert dispatcher.close()
    assert batcher.stuck_s() == 0


def test_what_would_be_late_makes_way_for_what_is_not_and_a_device_that_was_slow_once_is_asked_again() -> None:
    device = Device()

    async def ask(batcher: Batcher) -> None:
        device.takes_s = 0.4
        await batcher.submit(rows_of(1), deadline_s=LONG)  # now it knows how long a batch takes
        first = await busy(device, batcher)
        hopeless = asyncio.create_task(batcher.submit(rows_of(2), deadline_s=0.3))
        other = await queued(batcher, 3)
        await asyncio.sleep(0)
        device.takes_s = 0
        device.gate.set()
        with pytest.raises(DeadlineExceeded):
            await hopeless
        await waits(asyncio.gather(first, other))
        assert device.values() == [1, 0, 3]
        await batcher.submit(rows_of(4), deadline_s=0.3)  # by the average it would be late; nothing else waits

    with batching(device, max_batch_rows=1) as batcher:
        asyncio.run(ask(batcher))
    assert device.values() == [1, 0, 3, 4]
