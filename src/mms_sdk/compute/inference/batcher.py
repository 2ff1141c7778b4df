"""Continuous micro-batching: what queued while the device was busy is the next batch.

There is no waiting window. A request that meets an idle device goes at once; under load the batches grow by
themselves, to the size at which the device keeps up.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mms_sdk.errors import DeadlineExceeded, InvalidInput, MmsError, Overloaded, Unavailable
from mms_sdk.types import Array


@dataclass(eq=False)
class _Request:
    rows: Array
    deadline: float
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Array]


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
        self._max_batch_rows = max_batch_rows
        self._max_queue_rows = max_queue_rows
        self._name = name
        self._queue: deque[_Request] = deque()
        self._queued_rows = 0
        self._row_s = 0.0  # seconds a row, a running average: what an estimated wait is made of
        self._closed = False
        self._changed = threading.Condition()
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
        if len(rows) > self._max_batch_rows:
            raise InvalidInput(
                f"a request has at most {self._max_batch_rows} rows; got {len(rows)}; send several, or predict in bulk"
            )
        loop = asyncio.get_running_loop()
        request = _Request(rows, time.monotonic() + deadline_s, loop, loop.create_future())
        self._admit(request, deadline_s)
        try:
            async with asyncio.timeout(deadline_s):
                return await request.future
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"the answer of {self._name!r} was due within {deadline_s:g} s and was not ready; try again later, or "
                f"allow more time with X-MMS-Deadline-Ms"
            ) from error

    def close(self) -> None:
        """Answers what is queued, then ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _admit(self, request: _Request, deadline_s: float) -> None:
        with self._changed:
            if self._closed:
                raise Unavailable(f"deployment {self._name!r} is being taken down; try again in a moment")
            wait = self._queued_rows * self._row_s
            if self._queued_rows + len(request.rows) > self._max_queue_rows or wait > deadline_s:
                raise Overloaded(
                    f"deployment {self._name!r} has {self._queued_rows} rows waiting (at most {self._max_queue_rows}), "
                    f"about {wait:.1f} s of work; try again later",
                    retry_after_s=max(1.0, wait),
                )
            self._queue.append(request)
            self._queued_rows += len(request.rows)
            self._changed.notify()

    def _dispatch(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closed:
                    self._changed.wait()
                if not self._queue:
                    return
                batch = self._take()
            if batch:
                self._answer(batch)

    def _take(self) -> list[_Request]:
        batch: list[_Request] = []
        room = self._max_batch_rows
        at = time.monotonic()
        while self._queue and len(self._queue[0].rows) <= room:
            request = self._queue.popleft()
            self._queued_rows -= len(request.rows)
            # Whoever gave up or was too late costs the device nothing.
            if request.future.cancelled() or request.deadline < at:
                continue
            batch.append(request)
            room -= len(request.rows)
        return batch

    def _answer(self, batch: list[_Request]) -> None:
        began = time.monotonic()
        rows = batch[0].rows if len(batch) == 1 else np.concatenate([request.rows for request in batch])
        try:
            scores = self._scores(rows)
        except Exception as error:  # noqa: BLE001 (a model raises what it likes; the thread must outlive it)
            self._fail(batch, error)
            return
        seconds = (time.monotonic() - began) / len(rows)
        self._row_s = seconds if not self._row_s else 0.9 * self._row_s + 0.1 * seconds
        self.requests += len(batch)
        self.rows += len(rows)
        at = 0
        for request in batch:
            part = scores[at : at + len(request.rows)]
            at += len(request.rows)
            if np.isfinite(part).all():
                _resolve(request, part)
            else:
                _reject(
                    request, InvalidInput("the model's scores for this input are not finite numbers; check the input")
                )

    def _fail(self, batch: list[_Request], error: Exception) -> None:
        if len(batch) > 1:  # one of them is to blame; alone each gets what it deserves
            for request in batch:
                self._answer([request])
            return
        known = error if isinstance(error, MmsError) else Unavailable(f"the model failed on this input: {error}")
        _reject(batch[0], known)


def _resolve(request: _Request, scores: Array) -> None:
    _hand_over(request, lambda: None if request.future.done() else request.future.set_result(scores))


def _reject(request: _Request, error: MmsError) -> None:
    _hand_over(request, lambda: None if request.future.done() else request.future.set_exception(error))


def _hand_over(request: _Request, answer: Callable[[], object]) -> None:
    try:
        request.loop.call_soon_threadsafe(answer)
    except RuntimeError:  # the loop is closed: nobody waits any more
        return
