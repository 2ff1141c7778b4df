"""Small records that are written once: JSON under a name, with the digest of what it says."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson

from mms_sdk.errors import Damaged
from mms_sdk.schema.base import Schema


def signed(record: Schema, name: str) -> bytes:
    """A record as it is written: `{NAME: what it says, "sha256": the digest of that}`."""
    body = record.model_dump(mode="json")
    return orjson.dumps({name: body, "sha256": _digest(body)}, option=orjson.OPT_INDENT_2)


def opened(data: bytes, name: str, *, where: str, what: str, remedy: str) -> dict[str, Any]:
    """What a record says, once that was compared with its digest.

    Args:
        data: The file's bytes.
        name: Under which name it is said.
        where: The file, for the error.
        what: It is, for the error, e.g. `a snapshot description`.
        remedy: What to do about a damaged one.

    Raises:
        Damaged: It is no such record, or not what was written.
    """
    try:
        told = orjson.loads(data)
        body, digest = told[name], told["sha256"]
        intact = _digest(body) == digest
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise Damaged(f"{where} is not {what}; {remedy}") from error
    if not isinstance(body, dict) or not intact:
        raise Damaged(f"{where} is damaged: its digest is not the one written with it; {remedy}")
    return body


def _digest(body: Any) -> str:
    return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()
