"""One thread in front of one device: several deployments take turns, each by the time it has had.

A turn is one batch. Whose turn it is follows start-time fair queueing (Goyal, Vin, Cheng 1996): of those that have
something waiting, the one that has had the least of the device so far, counted in seconds over its weight. So a model
that takes half a second a batch does not starve one that takes a millisecond: between two of its batches the other has
half a second's worth of its own. Who comes back after a pause starts level with the others and has nothing saved up.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias


class Lane(Protocol):
    """What takes turns on a device. Everything here is called from the device's thread only."""

    def take_in(self, arrived: Any) -> None:
        """Remembers what was sent to `Dispatcher.send` for this lane."""

    def waiting(self) -> bool:
        """Whether it has something to do."""

    def answer_some(self) -> None:
        """Computes one batch. Raises nothing."""


@dataclass(eq=False)
class _Share:
    """What a lane has had of the device, in seconds over its weight; and whether it only gets what others leave."""

    weight: float
    background: bool
    had_s: float = 0.0


_Arrival: TypeAlias = "tuple[Lane, Any]"


class Dispatcher:
    """Runs the batches of one device, one at a time.

    Args:
        name: Of the device; part of the thread's name.
        clock: Seconds; what shares are counted by.
    """

    def __init__(self, name: str = "0", *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        # The thread takes no lock that an event loop might wait for.
        self._arrivals: queue.SimpleQueue[_Arrival | None] = queue.SimpleQueue()
        self._shares: dict[Lane, _Share] = {}
        self._waiting: dict[Lane, _Share] = {}
        self._now_s = 0.0  # what the lane whose turn was last had had by then
        self._since: float | None = None
        self.busy_s = 0.0
        self._starting = threading.Lock()
        self._thread = threading.Thread(target=self._work, name=f"mms-device-{name}", daemon=True)

    def join(self, lane: Lane, *, weight: float = 1.0, background: bool = False) -> None:
        """Lets a lane take turns.

        Args:
            lane: Whose batches are to be run.
            weight: How much of a device that is wanted by several it gets, beside the weights of the others.
            background: It gets a turn only when no other lane has anything waiting.
        """
        self._shares[lane] = _Share(weight, background)
        with self._starting:
            if self._thread.ident is None:  # an application that serves nothing has no thread for it
                self._thread.start()

    def leave(self, lane: Lane) -> None:
        """Forgets a lane that has nothing waiting and is sent nothing more."""
        self._shares.pop(lane, None)

    def send(self, lane: Lane, arrived: Any) -> None:
        """Hands something to a lane, on the device's thread; from any thread, without waiting."""
        self._arrivals.put((lane, arrived))

    def part(self, lane: Lane) -> float:
        """The part of the device, above 0 and up to 1, that a lane gets while those wait that wait now."""
        own = self._shares[lane]
        others = [share for share in tuple(self._waiting.values()) if share is not own and not share.background]
        return own.weight / (own.weight + sum(share.weight for share in others))

    def running_s(self) -> float:
        """How long the batch that is computed now has taken so far; 0 while none is."""
        since = self._since
        return 0.0 if since is None else self._clock() - since

    def close(self, timeout_s: float = 30.0) -> bool:
        """Answers what waits, then ends the thread; says whether it did within a time."""
        self._arrivals.put(None)
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        open_still = True
        while open_still or self._waiting:
            open_still &= self._take_in(wait=not self._waiting)
            if self._waiting:
                self._turn(self._next())

    def _take_in(self, *, wait: bool) -> bool:
        try:
            while (arrival := self._arrivals.get(block=wait)) is not None:
                wait = False
                lane, arrived = arrival
                lane.take_in(arrived)
                if lane not in self._waiting and lane.waiting():
                    share = self._waiting[lane] = self._shares[lane]
                    share.had_s = max(share.had_s, self._now_s)
        except queue.Empty:
            return True
        return False

    def _next(self) -> Lane:
        if len(self._waiting) == 1:
            return next(iter(self._waiting))
        return min(self._waiting, key=lambda lane: (self._waiting[lane].background, self._waiting[lane].had_s))

    def _turn(self, lane: Lane) -> None:
        share = self._waiting[lane]
        if not share.background:
            self._now_s = share.had_s
        self._since = began = self._clock()
        lane.answer_some()
        self._since, took_s = None, self._clock() - began
        self.busy_s += took_s
        share.had_s += took_s / share.weight
        if not lane.waiting():
            del self._waiting[lane]
