"""What streams tell: the events of a workspace; and all that changes of one job."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import orjson

from mms_sdk.errors import InvalidRequest, NotFound
from mms_sdk.schema.job import Job, LogPiece
from mms_sdk.service import ranks
from mms_sdk.service.logs import read_log
from mms_sdk.service.metric_answers import log_of, rows_since
from mms_sdk.service.streams import message
from mms_sdk.storage.workspace import Workspace

Told = Literal["event", "log", "metrics"]
"""What a job's stream tells beside its record."""
_LOOK_EVERY_S = 2.0  # whether what runs still does; everything else is in the catalog or a file as soon as it happens
_PAGE = 500
_SEEN = re.compile(r"(\d{1,18})-(\d{1,9})-(\d{1,18})-([0-9A-Z]{26})?-(\d{1,18})")


class EventSource:
    """Events behind a number, of all jobs or of one, for ever.

    Args:
        workspace: Whose.
        reconcile: Records what became of jobs; called now and then.
        since: The number.
        job: The one job.
    """

    over = False

    def __init__(self, workspace: Workspace, reconcile: Callable[[], None], *, since: int, job: str | None) -> None:
        self._workspace = workspace
        self._events = workspace.catalog.events
        self._reconcile = reconcile
        self._since = since
        self._job = job
        self._looked_at = self._judged_at = time.monotonic()

    def new(self) -> list[bytes]:
        """See `Source`."""
        if time.monotonic() - self._looked_at > _LOOK_EVERY_S:
            self._reconcile()
            self._looked_at = time.monotonic()
        if time.monotonic() - self._judged_at > ranks.LOOK_EVERY_S:
            ranks.look_at_all(self._workspace)
            self._judged_at = time.monotonic()
        found = self._events.list(since=self._since, job=self._job, limit=_PAGE)
        self._since = found[-1].number if found else self._since
        return [message(each.model_dump_json().encode(), id=str(each.number)) for each in found]


def number_in(last_event_id: str) -> int:
    """Which event a client has seen last, by the `Last-Event-ID` it sends.

    Raises:
        InvalidRequest: It is none.
    """
    if not re.fullmatch(r"[0-9]{1,18}", last_event_id):
        raise InvalidRequest(f"Last-Event-ID is the number of an event; got {last_event_id[:60]!r}; leave it out")
    return int(last_event_id)


class Seen(NamedTuple):
    """How far somebody has followed a job.

    Attributes:
        event: Number of the last event.
        attempt: Whose log it reads.
        log: Offset in that log.
        metrics_of: Whose metric log it reads.
        metrics: Offset in that.
    """

    event: int = 0
    attempt: int = 0
    log: int = 0
    metrics_of: str = ""
    metrics: int = 0

    def __str__(self) -> str:
        return "-".join(map(str, self))

    @classmethod
    def of(cls, last_event_id: str) -> Seen:
        """What `str` said.

        Raises:
            InvalidRequest: It did not say that.
        """
        found = _SEEN.fullmatch(last_event_id)
        if found is None:
            raise InvalidRequest(
                f"Last-Event-ID is the id of a message of this stream; got {last_event_id[:60]!r}; leave it out"
            )
        event, attempt, log, job, metrics = found.groups()
        return cls(int(event), int(attempt), int(log), job or "", int(metrics))


class JobSource:
    """A job's record whenever it changes, its events, what it prints, and its metrics, until it has ended.

    Args:
        workspace: Where it is.
        reconcile: Records what became of it; called now and then.
        job: Its id.
        rank: Of which process the log is told.
        only: What is told beside the record: some of `event`, `log` and `metrics`.
        seen: What was told before.
    """

    over = False

    def __init__(
        self,
        workspace: Workspace,
        reconcile: Callable[[], None],
        job: str,
        *,
        rank: int,
        only: Sequence[Told],
        seen: Seen,
    ) -> None:
        self._workspace = workspace
        self._reconcile = reconcile
        self._id = job
        self._rank = rank
        self._only = frozenset(only)
        self._seen = seen
        self._told: Job | None = None
        self._looked_at = self._judged_at = -_LOOK_EVERY_S

    def new(self) -> list[bytes]:
        """See `Source`."""
        if time.monotonic() - self._looked_at > _LOOK_EVERY_S:
            self._reconcile()
            self._looked_at = time.monotonic()
        # Before all else: what it left is all there once it has ended.
        job = self._workspace.catalog.jobs.get(self._id)
        if not job.ended and time.monotonic() - self._judged_at > ranks.LOOK_EVERY_S:
            ranks.looked_at(self._workspace, job)
            self._judged_at = time.monotonic()
        parts: dict[Told, Callable[[Job], list[bytes]]] = {
            "event": self._events,
            "log": self._log,
            "metrics": self._metrics,
        }
        found = [each for name, part in parts.items() if name in self._only for each in part(job)]
        if job != self._told:
            self._told = job
            found.insert(0, self._message("job", job.model_dump_json().encode()))
        elif job.ended and not found:
            self.over = True
            found.append(self._message("end", job.model_dump_json().encode()))
        return found

    def _events(self, _: Job) -> list[bytes]:
        found = []
        for each in self._workspace.catalog.events.list(since=self._seen.event, job=self._id, limit=_PAGE):
            self._seen = self._seen._replace(event=each.number)
            found.append(self._message("event", each.model_dump_json().encode()))
        return found

    def _log(self, job: Job) -> list[bytes]:
        piece = self._piece(job, self._seen.attempt or 1, self._seen.log)
        if (piece is None or piece.ended) and (after := self._piece(job, (self._seen.attempt or 1) + 1, 0)):
            piece = after  # told even if it printed nothing yet: it is another attempt
        elif piece is None or not (piece.text or piece.left_out):
            return []
        self._seen = self._seen._replace(attempt=piece.attempt, log=piece.offset)
        told = {"rank": self._rank, **piece.model_dump(exclude={"ended"})}
        return [self._message("log", orjson.dumps(told))]

    def _piece(self, job: Job, attempt: int, offset: int) -> LogPiece | None:
        try:
            return read_log(self._workspace, job, offset=offset, attempt=attempt, rank=self._rank)
        except NotFound:  # no such attempt yet, or it had no such process
            return None

    def _metrics(self, job: Job) -> list[bytes]:
        of, path = log_of(self._workspace, job)
        rows, end = rows_since(path, self._seen.metrics if of == self._seen.metrics_of else 0)
        if not rows:
            return []
        self._seen = self._seen._replace(metrics_of=of, metrics=end)
        return [self._message("metrics", orjson.dumps({"job": of, "rows": rows, "offset": end}))]

    def _message(self, event: str, data: bytes) -> bytes:
        return message(data, id=str(self._seen), event=event)
