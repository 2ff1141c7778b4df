"""Continuous micro-batching: what queued while the device was busy is the next batch.

There is no waiting window. A request that meets an idle device goes at once; under load the batches grow by
themselves, to the size at which the device keeps up.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from mms_sdk.compute.inference.dispatcher import Dispatcher
from mms_sdk.errors import DeadlineExceeded, InvalidInput, InvalidRequest, MmsError, Overloaded, Unavailable
from mms_sdk.types import Array

Priority: TypeAlias = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")

_RANK = {priority: rank for rank, priority in enumerate(PRIORITIES)}
_NO_ROWS: Array = np.empty(0)


@dataclass(eq=False, slots=True)
class _Request:
    """Rows that want scores.

    Attributes:
        due: When the answer is of no use any more, by `time.monotonic`.
        since: When it came, likewise.
        uncounted: Holds one element until its rows no longer wait. Taking it out is atomic, so of the device's thread
            and an event loop exactly one counts them out. If it was the loop, the request was given up, and is empty.
    """

    rows: Array
    future: asyncio.Future[Array]
    priority: int
    since: float
    due: float
    uncounted: list[None]


_Answer: TypeAlias = "tuple[_Request, Array | MmsError]"


@dataclass(slots=True)
class Counts:
    """What became of the requests of one batcher, since it began; each is counted once.

    Attributes:
        requests: Answered with scores.
        rows: In those.
        batches: Computed.
        failed: Answered with an error of the model or of the input.
        refused: Refused at the door.
        late: Not answered within their deadline.
        left: Their clients went away first.
        queue_s: Seconds that those that were computed had waited, added up.
        compute_s: Seconds that the device was busy with them.
        taken: Requests that were taken from the queue to be computed.
        by_rows: Batches, and seconds in them, by the rows they had.
    """

    requests: int = 0
    rows: int = 0
    batches: int = 0
    failed: int = 0
    refused: int = 0
    late: int = 0
    left: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0
    taken: int = 0
    by_rows: dict[int, tuple[int, float]] = field(default_factory=dict)

    def computed(self, rows: int, seconds: float) -> None:
        """Counts a batch."""
        self.batches += 1
        self.compute_s += seconds
        batches, before_s = self.by_rows.get(rows, (0, 0.0))
        self.by_rows[rows] = (batches + 1, before_s + seconds)


@dataclass(slots=True)
class _Rows:
    """How many rows came, and how many no longer wait, of one priority. Each number has one writer at a time."""

    admitted: int = 0
    taken: int = 0  # by the device's thread
    left: int = 0  # by event loops, under the lock
    given_up: int = 0  # requests, not rows; likewise
    passed_over: int = 0  # of those, by the device's thread, which is rid of them
    waiting: deque[_Request] = field(default_factory=deque)  # the device's thread's own

    def queued(self) -> int:
        return self.admitted - self.taken - self.left

    def empty_requests(self) -> int:
        """Those that were given up and that the device's thread has not come to yet."""
        return self.given_up - self.passed_over


class Batcher:
    """One bounded queue in front of a model; its batches take turns with those of others on the same device.

    Args:
        scores: Prepared rows → scores; called from the device's thread only.
        sizes: Batch sizes that it has a program for, ascending; the last is the most rows of one call.
        max_queue_rows: Rows that may wait.
        name: Of the deployment, for messages.
        dispatcher: Of the device; whoever made it closes it, after its batchers.
        weight: How much of the device it gets while others want it too, beside their weights.
        background: It gets what the others leave of the device.
    """

    def __init__(
        self,
        scores: Callable[[Array], Array],
        *,
        sizes: Sequence[int],
        max_queue_rows: int,
        name: str,
        dispatcher: Dispatcher,
        weight: float = 1.0,
        background: bool = False,
    ) -> None:
        self._scores = scores
        self.sizes = tuple(sizes)
        self.max_batch_rows = self.sizes[-1]
        self._max_queue_rows = max_queue_rows
        self._name = name
        self._dispatcher = dispatcher
        self._gathered: dict[asyncio.AbstractEventLoop, list[_Request]] = {}
        self._admitting = threading.Lock()
        self._rows = tuple(_Rows() for _ in PRIORITIES)
        self._batch_s = 0.0  # seconds a batch, a running average: what an estimated wait is made of
        self._closed = False
        self._ending = False  # the device's thread's own
        self._empty = threading.Event()  # nothing waits, and nothing more will come
        self.counts = Counts()
        dispatcher.join(self, weight=weight, background=background)

    async def submit(self, rows: Array, *, deadline_s: float, priority: Priority = "normal") -> Array:
        """Scores of a request's rows, computed together with those of others.

        Args:
            rows: Prepared, shape (n, *input shape).
            deadline_s: Seconds from now within which the answer is of use.
            priority: Those of a higher one go first.

        Raises:
            Overloaded: The queue is full, or the answer would come too late.
            DeadlineExceeded: It did come too late.
            Unavailable: The deployment is being taken down.
            InvalidRequest: More rows than one batch may have.
            InvalidInput: Scores that are no numbers.
        """
        if len(rows) > self.max_batch_rows:
            raise too_many_rows(len(rows), self.sizes)
        loop, now = asyncio.get_running_loop(), time.monotonic()
        request = _Request(rows, loop.create_future(), _RANK[priority], now, now + deadline_s, [None])
        self._admit(request, deadline_s)
        expiry = loop.call_later(deadline_s, self._expire, request)
        try:
            scores = await request.future
        except BaseException as error:
            self._give_up(request, error)
            raise
        finally:
            expiry.cancel()
        self.counts.requests += 1
        self.counts.rows += len(rows)
        return scores

    def queued_rows(self) -> int:
        """Rows that wait now."""
        return sum(rows.queued() for rows in self._rows)

    def stuck_s(self) -> float:
        """How long the batch that is computed on the device now, whosever it is, has taken so far."""
        return self._dispatcher.running_s()

    def close(self, timeout_s: float = 30.0) -> bool:
        """Refuses what comes, answers what is queued, and says whether it was within a time; a model may hang."""
        with self._admitting:
            if not self._closed:
                self._closed = True
                for gathered in self._gathered.values():
                    self._dispatcher.send(self, gathered)
                self._gathered.clear()
                self._dispatcher.send(self, None)
        if not self._empty.wait(timeout_s):
            return False
        self._dispatcher.leave(self)
        return True

    def _admit(self, request: _Request, deadline_s: float) -> None:
        with self._admitting:
            if self._closed:
                raise Unavailable(f"deployment {self._name!r} is being taken down; try again in a moment")
            queued = 0
            for rows in self._rows[: request.priority + 1]:  # those that go before it
                queued += rows.admitted - rows.taken - rows.left
            # Behind a long queue batches are full; and an empty one refuses nobody, so the average can recover.
            wait = queued / self.max_batch_rows * self._batch_s / self._dispatcher.part(self) if queued else 0.0
            # Behind what waits come the batch that is computed now and its own.
            late = queued > 0 and wait + 2 * self._batch_s > deadline_s
            if queued + len(request.rows) > self._max_queue_rows or late:
                self.counts.refused += 1
                raise Overloaded(
                    f"deployment {self._name!r} has {queued} rows waiting (at most {self._max_queue_rows}), about "
                    f"{wait:.1f} s of work; try again later",
                    retry_after_s=max(1.0, wait),
                )
            own = self._rows[request.priority]
            if own.empty_requests() >= self._max_queue_rows:
                self.counts.refused += 1
                raise Overloaded(
                    f"deployment {self._name!r} has been at one batch while {own.empty_requests()} requests were given "
                    f"up; try again later"
                )
            own.admitted += len(request.rows)
            # What an event loop reads in one turn goes to the device's thread together. Woken by the first of sixty, it
            # would take the interpreter from the loop and compute that one alone.
            loop = request.future.get_loop()
            gathered = self._gathered.setdefault(loop, [])
            gathered.append(request)
            if len(gathered) == 1:
                loop.call_soon(self._send, loop)

    def _send(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._admitting:
            if gathered := self._gathered.pop(loop, None):
                self._dispatcher.send(self, gathered)

    def _give_up(self, request: _Request, error: BaseException) -> None:
        # It makes room at once, though the device's thread sees it only when it looks at the queue again. What stays
        # in the queue until then has no rows; nor the future, whose error knows this call and all that led to it.
        if _counted_out(request):
            with self._admitting:
                self._rows[request.priority].left += len(request.rows)
                self._rows[request.priority].given_up += 1
            nobody: asyncio.Future[Array] = request.future.get_loop().create_future()
            nobody.cancel()
            request.rows, request.future = _NO_ROWS, nobody
        if isinstance(error, DeadlineExceeded):
            self.counts.late += 1
        elif isinstance(error, asyncio.CancelledError):
            self.counts.left += 1
        else:
            self.counts.failed += 1

    def _expire(self, request: _Request) -> None:
        if not request.future.done():
            request.future.set_exception(self._late(request))

    def _late(self, request: _Request) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"the answer of {self._name!r} was due within {request.due - request.since:.4g} s and was not ready; try "
            f"again later, or allow more time with X-MMS-Deadline-Ms"
        )

    # What follows runs on the device's thread.

    def take_in(self, arrived: list[_Request] | None) -> None:
        """Queues requests by priority; None says that none will follow."""
        self._ending |= arrived is None
        for request in arrived or ():
            self._rows[request.priority].waiting.append(request)
        self._say_if_empty()

    def waiting(self) -> bool:
        """Whether any request waits."""
        high, normal, low = self._rows
        return bool(normal.waiting or high.waiting or low.waiting)

    def answer_some(self) -> None:
        """Computes the next batch."""
        self._answer(self._next_batch())
        self._say_if_empty()

    def _say_if_empty(self) -> None:
        if self._ending and not self.waiting():
            self._empty.set()

    def _next_batch(self) -> list[_Request]:
        batch: list[_Request] = []
        hopeless: list[_Request] = []
        room, now = self.max_batch_rows, time.monotonic()
        for rows in self._rows:
            self._pass_over(rows)
        for rows in self._rows:
            while rows.waiting:
                request = rows.waiting[0]
                wanted = _wanted(request, now)  # whoever gave up or is too late costs the device nothing
                if wanted and len(request.rows) > room:
                    return batch
                rows.waiting.popleft()
                if not _counted_out(request):
                    rows.passed_over += 1
                    continue
                rows.taken += len(request.rows)
                if not wanted:
                    continue
                if request.due < now + self._batch_s:  # its answer would most likely be late
                    hopeless.append(request)
                    continue
                self.counts.taken += 1
                self.counts.queue_s += now - request.since
                batch.append(request)
                room -= len(request.rows)
        # Computed where there is nothing better to do: a device that was slow once shows that it no longer is.
        return batch or hopeless[:1]

    def _pass_over(self, rows: _Rows) -> None:
        # A batch may be full before it comes to those of low priority, again and again.
        if rows.empty_requests() > self._max_queue_rows // 2:
            kept = deque(request for request in rows.waiting if request.uncounted)
            rows.passed_over += len(rows.waiting) - len(kept)
            rows.waiting = kept

    def _answer(self, batch: list[_Request]) -> None:
        if not batch:
            return
        began = time.monotonic()
        try:
            rows = batch[0].rows if len(batch) == 1 else np.concatenate([request.rows for request in batch])
            scores = self._scores(rows)
            if len(scores) != len(rows):
                raise ValueError(f"it gave {len(scores)} answers to {len(rows)} rows")
            finite = np.atleast_1d(np.isfinite(scores).reshape(len(rows), -1).all(axis=1))
        except Exception as error:  # noqa: BLE001  (whatever it is, the next batch deserves its answer)
            self._fail(batch, error)
            return
        seconds = time.monotonic() - began
        self._batch_s = seconds if not self._batch_s else 0.9 * self._batch_s + 0.1 * seconds
        self.counts.computed(len(rows), seconds)
        answers: list[_Answer] = []
        at = 0
        for request in batch:
            own = slice(at, at + len(request.rows))
            at = own.stop
            answers.append((request, scores[own] if finite[own].all() else _not_finite()))
        self._hand_over(answers)

    def _fail(self, batch: list[_Request], error: Exception) -> None:
        if len(batch) == 1:
            known = error if isinstance(error, MmsError) else Unavailable(f"the model failed on this input: {error}")
            self._hand_over([(batch[0], known)])
            return
        # One of them is to blame. Each half is computed again: of sixty-four that takes a dozen calls to find the one.
        middle, now = len(batch) // 2, time.monotonic()
        for half in (batch[:middle], batch[middle:]):
            self._answer([request for request in half if _wanted(request, now)])

    def _hand_over(self, answers: list[_Answer]) -> None:
        # One call for each event loop, not for each request: waking a loop costs more than all that is done there.
        by_loop: dict[asyncio.AbstractEventLoop, list[_Answer]] = {}
        for request, answer in answers:
            by_loop.setdefault(request.future.get_loop(), []).append((request, answer))
        for loop, part in by_loop.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._settle, part)

    def _settle(self, answers: list[_Answer]) -> None:
        # On an event loop again. One that was busy may come to this before it comes to the timer of the deadline.
        now = time.monotonic()
        for request, answer in answers:
            if request.future.done():
                continue
            if now > request.due:
                request.future.set_exception(self._late(request))
            elif isinstance(answer, MmsError):
                request.future.set_exception(answer)
            else:
                request.future.set_result(answer)


def too_many_rows(rows: int, sizes: Sequence[int]) -> InvalidRequest:
    """The error of a request with more rows than the largest batch that there is a program for."""
    return InvalidRequest(
        f"a request has at most {sizes[-1]} rows, as the deployment has programs for batches of {list(sizes)} and "
        f"compiles no others; got {rows}; send several, or predict in bulk"
    )


def _wanted(request: _Request, now: float) -> bool:
    return now < request.due and not request.future.done()


def _counted_out(request: _Request) -> bool:
    try:
        request.uncounted.pop()
    except IndexError:
        return False
    return True


def _not_finite() -> InvalidInput:
    return InvalidInput("the model's scores for this input are not finite numbers; check the input")
