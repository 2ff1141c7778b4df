"""SIGTERM while training: noticed between steps, and at once wherever the loop only waits."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import FrameType
from typing import Self, TypeVar

_T = TypeVar("_T")


class Terminated(SystemExit):
    """The process was asked to end, and does so with the status that shells give to a SIGTERM, 143."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class Termination:
    """Notices a SIGTERM, as schedulers send it before they take a machine away.

    In the main thread; elsewhere Python gives nobody a signal, and it never notices any. `with termination:` goes
    around what only waits, for data, a compiler or an evaluation, so that the signal ends it at once; between steps
    `asked` is looked at, so that the state is never lost in one.

    Args:
        interrupts: Whether it ends what only waits. Where several processes train together none may leave on its own:
            the others would wait for it.
    """

    def __init__(self, *, interrupts: bool = True) -> None:
        self.interrupts = interrupts
        self.asked = False
        self._waiting = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Notices it within; what came too late to end anything within goes to whoever listened before."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._notice)
        try:
            yield
        except Terminated:
            self.asked = False
            raise
        finally:
            if signal.getsignal(signal.SIGTERM) == self._notice:  # nobody else listens by now
                signal.signal(signal.SIGTERM, before)
            if self.asked:
                signal.raise_signal(signal.SIGTERM)

    def __enter__(self) -> Self:
        self._waiting = True
        self.refuse_to_go_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting = False

    def refuse_to_go_on(self) -> None:
        """Raises once it was asked for.

        Raises:
            Terminated: It was.
        """
        if self.asked and self.interrupts:
            self._waiting = False
            raise Terminated

    def awaited(self, work: Callable[[], _T]) -> _T:
        """Does work in a thread of its own and waits, so that what never looks at signals, a compiler, holds up none.

        Raises:
            Terminated: It was asked for meanwhile; the work is left to itself.
        """
        future: Future[_T] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001  (raised again by who waits)
                future.set_exception(error)

        # A daemon: a compiler that is still at work keeps no process from its end.
        threading.Thread(target=run, name="mms-first-step", daemon=True).start()
        with self:
            return future.result()

    def _notice(self, _signal: int, _frame: FrameType | None) -> None:
        self.asked = True
        if self._waiting:
            self.refuse_to_go_on()
