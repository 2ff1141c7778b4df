"""Continuous micro-batching: what queued while the device was busy is the next batch.

There is no waiting window. A request that meets an idle device goes at once; under load the batches grow by
themselves, to the size at which the device keeps up.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from mms_sdk.errors import DeadlineExceeded, InvalidInput, MmsError, Overloaded, Unavailable
from mms_sdk.types import Array


@dataclass(eq=False, slots=True)
class _Request:
    rows: Array
    future: asyncio.Future[Array]


_Answer: TypeAlias = "tuple[_Request, Array | MmsError]"


class Batcher:
    """One bounded queue and one dispatch thread in front of a model.

    Args:
        scores: Prepared rows → scores; called from the dispatch thread only.
        max_batch_rows: Rows in one call at most.
        max_queue_rows: Rows that may wait.
        name: Of the deployment, for messages.
    """

    def __init__(
        self, scores: Callable[[Array], Array], *, max_batch_rows: int, max_queue_rows: int, name: str
    ) -> None:
        self._scores = scores
        self.max_batch_rows = max_batch_rows
        self._max_queue_rows = max_queue_rows
        self._name = name
        # The dispatch thread takes no lock that an event loop might wait for: each side has a counter of its own.
        self._queue: queue.SimpleQueue[list[_Request] | None] = queue.SimpleQueue()
        self._gathered: dict[asyncio.AbstractEventLoop, list[_Request]] = {}
        self._admitting = threading.Lock()
        self._admitted_rows = 0
        self._taken_rows = 0
        self._batch_s = 0.0  # seconds a batch, a running average: what an estimated wait is made of
        self._closed = False
        self.requests = 0
        self.rows = 0
        self._thread = threading.Thread(target=self._dispatch, name=f"mms-batcher-{name}", daemon=True)
        self._thread.start()

    async def submit(self, rows: Array, *, deadline_s: float) -> Array:
        """Scores of a request's rows, computed together with those of others.

        Args:
            rows: Prepared, shape (n, *input shape).
            deadline_s: Seconds from now within which the answer is of use.

        Raises:
            Overloaded: The queue is full, or the answer would come too late.
            DeadlineExceeded: It did come too late.
            Unavailable: The deployment is being taken down.
            InvalidInput: More rows than one batch may have, or scores that are no numbers.
        """
        if len(rows) > self.max_batch_rows:
            raise too_many_rows(len(rows), self.max_batch_rows)
        loop = asyncio.get_running_loop()
        request = _Request(rows, loop.create_future())
        self._admit(request, deadline_s)
        expiry = loop.call_later(deadline_s, self._expire, request, deadline_s)
        try:
            return await request.future
        finally:
            expiry.cancel()

    def close(self) -> None:
        """Answers what is queued, then ends the thread."""
        with self._admitting:
            self._closed = True
            for gathered in self._gathered.values():
                self._queue.put(gathered)
            self._gathered.clear()
            self._queue.put(None)
        self._thread.join()

    def _admit(self, request: _Request, deadline_s: float) -> None:
        with self._admitting:
            if self._closed:
                raise Unavailable(f"deployment {self._name!r} is being taken down; try again in a moment")
            queued = self._admitted_rows - self._taken_rows
            # Behind a long queue batches are full; and an empty one refuses nobody, so the average can recover.
            wait = queued / self.max_batch_rows * self._batch_s
            if queued + len(request.rows) > self._max_queue_rows or wait > deadline_s:
                raise Overloaded(
                    f"deployment {self._name!r} has {queued} rows waiting (at most {self._max_queue_rows}), about "
                    f"{wait:.1f} s of work; try again later",
                    retry_after_s=max(1.0, wait),
                )
            self._admitted_rows += len(request.rows)
            # What an event loop reads in one turn goes to the dispatch thread together. Woken by the first of sixty, it
            # would take the interpreter from the loop and compute that one alone.
            loop = request.future.get_loop()
            gathered = self._gathered.setdefault(loop, [])
            gathered.append(request)
            if len(gathered) == 1:
                loop.call_soon(self._send, loop)

    def _send(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._admitting:
            if gathered := self._gathered.pop(loop, None):
                self._queue.put(gathered)

    def _dispatch(self) -> None:
        batch: list[_Request] = []
        room = self.max_batch_rows
        while True:
            try:
                requests = self._queue.get(block=not batch)
            except queue.Empty:
                self._answer(batch)
                batch, room = [], self.max_batch_rows
                continue
            if requests is None:
                break
            for request in requests:
                self._taken_rows += len(request.rows)
                if request.future.done():  # whoever gave up or was too late costs the device nothing
                    continue
                if len(request.rows) > room:
                    self._answer(batch)
                    batch, room = [], self.max_batch_rows
                batch.append(request)
                room -= len(request.rows)
        if batch:
            self._answer(batch)

    def _answer(self, batch: list[_Request]) -> None:
        batch = [request for request in batch if not request.future.done()]  # some gave up while others were answered
        if not batch:
            return
        began = time.monotonic()
        try:
            rows = batch[0].rows if len(batch) == 1 else np.concatenate([request.rows for request in batch])
            scores = self._scores(rows)
            if len(scores) != len(rows):
                raise ValueError(f"it gave {len(scores)} answers to {len(rows)} rows")
        except Exception as error:  # noqa: BLE001  (whatever it is, the next batch deserves its answer)
            self._fail(batch, error)
            return
        seconds = time.monotonic() - began
        self._batch_s = seconds if not self._batch_s else 0.9 * self._batch_s + 0.1 * seconds
        self.requests += len(batch)
        self.rows += len(rows)
        finite = np.atleast_1d(np.isfinite(scores).reshape(len(rows), -1).all(axis=1))
        answers: list[_Answer] = []
        at = 0
        for request in batch:
            own = slice(at, at + len(request.rows))
            at = own.stop
            answers.append((request, scores[own] if finite[own].all() else _not_finite()))
        _hand_over(answers)

    def _fail(self, batch: list[_Request], error: Exception) -> None:
        if len(batch) > 1:  # one of them is to blame; alone each gets what it deserves
            for request in batch:
                self._answer([request])
            return
        known = error if isinstance(error, MmsError) else Unavailable(f"the model failed on this input: {error}")
        _hand_over([(batch[0], known)])

    def _expire(self, request: _Request, deadline_s: float) -> None:
        late = DeadlineExceeded(
            f"the answer of {self._name!r} was due within {deadline_s:g} s and was not ready; try again later, or "
            f"allow more time with X-MMS-Deadline-Ms"
        )
        _settle([(request, late)])


def too_many_rows(rows: int, at_most: int) -> InvalidInput:
    """The error of a request with more rows than a batch may have."""
    return InvalidInput(f"a request has at most {at_most} rows; got {rows}; send several, or predict in bulk")


def _not_finite() -> InvalidInput:
    return InvalidInput("the model's scores for this input are not finite numbers; check the input")


def _hand_over(answers: list[_Answer]) -> None:
    # One call for each event loop, not for each request: waking a loop costs more than all that is done there.
    by_loop: dict[asyncio.AbstractEventLoop, list[_Answer]] = {}
    for request, answer in answers:
        by_loop.setdefault(request.future.get_loop(), []).append((request, answer))
    for loop, part in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_settle, part)


def _settle(answers: list[_Answer]) -> None:
    for request, answer in answers:
        if request.future.done():
            continue
        if isinstance(answer, MmsError):
            request.future.set_exception(answer)
        else:
            request.future.set_result(answer)
