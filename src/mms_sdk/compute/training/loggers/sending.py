"""Takes a run's metric log to a server, without ever holding the run up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from mms_sdk.compute.training.callbacks import Begun, Ending, Record
from mms_sdk.storage import metric_log

_LOOK_EVERY_S = 0.5
_AGAIN_AFTER_S = 1.0, 30.0  # first and longest pause
_log = logging.getLogger("mms.training")


class Server(Protocol):
    """A run as a server keeps it. Each call may take its time and raise; it is then made again."""

    def open(self, run: Begun) -> None:
        """Finds the run there, or makes it."""

    def write(self, records: Sequence[Record]) -> None:
        """Sends records, oldest first, from the beginning of the log on; those it has already are left out."""

    def close(self, state: Ending, why: str) -> None:
        """Says how the run ended."""


class Sending:
    """A thread that reads the metric log of a run and sends it.

    A server that is slow or away holds nothing up and loses nothing: what it has not got yet lies in the log.

    Args:
        name: Of the server, for warnings.
        server: Where to.
        run: Which.
    """

    def __init__(self, name: str, server: Server, run: Begun) -> None:
        self._name, self._server, self._run = name, server, run
        self._ended: tuple[Ending, str] = ("failed", "")
        self._over, self._given_up, self._all_sent = threading.Event(), threading.Event(), False
        self._trouble: Exception | None = None
        self._thread = threading.Thread(target=self._send, name=f"mms-{name}", daemon=True)
        self._thread.start()

    def end(self, state: Ending, why: str, *, wait_s: float) -> None:
        """Sends the rest and how the run ended; what is not sent in so many seconds is given up, with a warning."""
        self._ended = (state, why)
        self._over.set()
        self._thread.join(wait_s)
        self._given_up.set()
        if not self._all_sent:
            said = f"the last it said: {self._trouble}" if self._trouble else "it said nothing"
            _log.warning(
                "%s has not got all of job %s within %g s of its end (%s); the job's own log is whole, and "
                "job.log_to(…) sends the rest",
                *(self._name, self._run.job, wait_s, said),
            )

    def _send(self) -> None:
        self._all_sent = (
            self._until_done(self._server.open, self._run)
            and self._send_records()
            and self._until_done(self._server.close, *self._ended)
        )

    def _send_records(self) -> bool:
        offset = 0
        while True:
            over = self._over.is_set()  # asked first: what is logged before the end is read after it
            records, offset = metric_log.read(self._run.log, offset, most=metric_log.PIECE_BYTES)
            if records and not self._until_done(self._server.write, records):
                return False
            if not records and over:
                return True
            if not records:
                self._over.wait(_LOOK_EVERY_S)

    def _until_done(self, call: Callable[..., None], *given: Any) -> bool:
        pause, longest = _AGAIN_AFTER_S
        while not self._given_up.is_set():
            try:
                call(*given)
            except Exception as error:  # noqa: BLE001 (whatever the server's library raises; the run goes on)
                self._warn_once(error)
                # Woken by the end of the run, for a last few tries.
                (self._given_up if self._over.is_set() else self._over).wait(pause)
                pause = _AGAIN_AFTER_S[0] if self._over.is_set() else min(longest, pause * 2)
            else:
                return True
        return False

    def _warn_once(self, error: Exception) -> None:
        if self._trouble is None:
            _log.warning(
                "%s does not take what job %s logs (%s: %s); the run goes on, and it is tried again",
                *(self._name, self._run.job, type(error).__name__, error),
            )
        self._trouble = error
