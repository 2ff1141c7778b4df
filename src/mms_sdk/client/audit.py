"""The audit log: who changed what through a server, and who was refused."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from mms_sdk.client.api import Api
from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.audit import AuditEntry, AuditHead

_PAGE = 500


class Audit:
    """The audit log of a workspace, to which its servers write."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def entries(self, *, since: int | datetime = 0) -> Iterator[AuditEntry]:
        """Lines, oldest first.

        Args:
            since: The number of a line behind which to begin, or a time with its zone.

        Raises:
            InvalidRequest: A time without a zone.
        """
        number, at = (since, "") if isinstance(since, int) else (0, _text(since))
        while page := self._api.get("/v1/audit", list[AuditEntry], since=number, limit=_PAGE):
            yield from (entry for entry in page if entry.at >= at)
            number = page[-1].number

    def verify(self, head: str | AuditHead | None = None) -> AuditHead:
        """Reads the whole log and compares.

        Args:
            head: What this gave once, kept where nobody who can write to the workspace can change it.

        Returns:
            The end of the log.

        Raises:
            Damaged: A line was changed, taken out, put in, moved or cut off.
            InvalidRequest: `head` is no such thing.
        """
        if head is None:
            return self._api.get("/v1/audit:verify", AuditHead)
        number, _, hash = str(head).partition(":")
        if not number.isdecimal() or len(hash) != 64:
            raise InvalidRequest(f"the end of a log is NUMBER:SHA256, as verify tells it; got {str(head)[:100]!r}")
        return self._api.get("/v1/audit:verify", AuditHead, number=int(number), hash=hash)


def _text(at: datetime) -> str:
    if at.tzinfo is None:
        raise InvalidRequest(f"a time has a zone, e.g. datetime.now(UTC); got {at} without one")
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
