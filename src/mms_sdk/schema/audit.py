"""The audit log: who changed what through a server, and who was refused."""

from __future__ import annotations

from mms_sdk.schema.base import Schema


class AuditEntry(Schema):
    """One line of the log. It has no bodies, no queries and no tokens.

    Attributes:
        number: From 1, one more for each.
        at: When it was written.
        who: The name of the token; empty where there was no valid one.
        token: Its id; empty likewise.
        client: The address that it came from; empty for a socket of this machine.
        method: What was asked for.
        route: And where, e.g. `/v1/deployments/{name}`; empty for a path that is none.
        names: What stands for each name in the route; empty where who asked is not known.
        status: What was answered; 0 if it was cut off before.
        request: The request's id.
        unrecorded: Refused requests since the line before that were counted only, because there were so many.
        before: The SHA-256 of the whole line before, its line end included; of nothing for the first.
    """

    number: int
    at: str
    who: str
    token: str
    client: str
    method: str
    route: str
    names: dict[str, str]
    status: int
    request: str
    unrecorded: int = 0
    before: str

    def __str__(self) -> str:
        route = self.route
        for name, value in self.names.items():
            route = route.replace(f"{{{name}}}", value)
        who = self.who or "nobody known"
        more = f"; {self.unrecorded:,} more refused" if self.unrecorded else ""
        return (
            f"{self.number} {self.at} {who} from {self.client or 'here'}: {self.method} {route} → {self.status}{more}"
        )


class AuditHead(Schema):
    """The end of a log that is whole: kept elsewhere, it tells later that nothing up to it was changed.

    Attributes:
        number: Of the last line; 0 of an empty log.
        hash: Its SHA-256.
    """

    number: int
    hash: str

    def __str__(self) -> str:
        return f"{self.number}:{self.hash}"
