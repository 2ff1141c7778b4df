"""Server-sent events, as they are read (WHATWG HTML, 9.2.6): lines of a name and a value, and an empty one behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Message(NamedTuple):
    """One message.

    Attributes:
        id: By which to go on behind it.
        event: Of which kind it is; empty if there is one kind alone.
        data: What it says.
    """

    id: str
    event: str
    data: str


def messages(pieces: Iterable[bytes]) -> Iterator[Message]:
    """Messages in the bytes of a stream, however they are cut; what has no end yet is left out, and so are comments."""
    fields: dict[str, str] = {}
    seen = ""
    for line in _lines(pieces):
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
            continue
        if "data" in fields:
            seen = fields.get("id", seen)
            yield Message(seen, fields.get("event", ""), fields["data"])
        fields = {}


def _lines(pieces: Iterable[bytes]) -> Iterator[str]:
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")  # the one end of a line that MMS writes
        for line in lines:
            yield line.decode()
