"""How a job asks the server of its workspace: where that answers, and a token that is worth nothing once it ends.

```
server.json      where the server answers, for as long as it runs
job-tokens.key   by which the tokens of attempts are signed; in no backup
```

A token names its attempt and is signed, so that none is written anywhere; that the attempt runs, the catalog says.
Imports little, since what looks after a job makes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import json
import os
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from mms_sdk.storage.owners import is_alive, is_elsewhere, owner_of

if TYPE_CHECKING:
    from mms_sdk.schema.access import Principal, Role
    from mms_sdk.storage.attempts import Attempts

SERVER = "server.json"
KEY = "job-tokens.key"
ROLE: Role = "editor"
"""What submitting takes, so that no job may more than whoever submitted it."""
_KEY_BYTES = 32
_TOKEN = re.compile(r"mms_job_([0-9A-Z]{26})\.([1-9][0-9]{0,5})\.([0-9a-f]{64})")


class Server(NamedTuple):
    """What an attempt is told of the server.

    Attributes:
        url: Where it answers.
        token: The attempt's own.
    """

    url: str
    token: str


class JobTokens:
    """Says whose tokens of jobs are.

    Args:
        root: The workspace's folder.
        attempts: Of its catalog.
    """

    def __init__(self, root: Path, attempts: Attempts) -> None:
        self._root = root
        self._attempts = attempts

    def find(self, token: str) -> Principal | None:
        """The job whose token it is; None once its attempt has ended, or if it is none."""
        from mms_sdk.schema.access import Principal

        found = _TOKEN.fullmatch(token)
        key = _key(self._root)
        if found is None or key is None:
            return None
        job, number, signature = found[1], int(found[2]), found[3]
        if not hmac.compare_digest(_signature(key, job, number), signature):
            return None
        runs = any(each.number == number and each.ended is None for each in self._attempts.of(job))
        return Principal(name=f"job {job}", role=ROLE) if runs else None


def open_to_jobs(root: Path, url: str) -> None:
    """Tells attempts that begin from now on where this process serves their workspace."""
    from mms_sdk.storage import files

    if _key(root) is None:
        (root / KEY).unlink(missing_ok=True)  # what is damaged
        with contextlib.suppress(FileExistsError):  # another server made one in this moment
            files.publish(root / KEY, secrets.token_bytes(_KEY_BYTES))
    files.replace(root / SERVER, json.dumps({"url": url, "owner": owner_of(os.getpid())}).encode())


def close_to_jobs(root: Path) -> None:
    """Tells it to no more of them; another server that has come since stays as it is."""
    told = _told(root)
    if told is not None and told["owner"] == owner_of(os.getpid()):
        (root / SERVER).unlink(missing_ok=True)


def server_for(root: Path, job: str, number: int) -> Server | None:
    """What an attempt is told of the server; None if none runs, or only one that is not reached from this machine."""
    told, key = _told(root), _key(root)
    if told is None or key is None or not _is_reached(told["url"], told["owner"]):
        return None
    return Server(told["url"], f"mms_job_{job}.{number}.{_signature(key, job, number)}")


def _signature(key: bytes, job: str, number: int) -> str:
    return hmac.new(key, f"{job}/{number}".encode(), hashlib.sha256).hexdigest()


def _key(root: Path) -> bytes | None:
    try:
        key = (root / KEY).read_bytes()
    except FileNotFoundError:
        return None
    return key if len(key) == _KEY_BYTES else None  # what a full disk left of one signs nothing


def _told(root: Path) -> dict[str, str] | None:
    try:
        told = json.loads((root / SERVER).read_bytes())
        return {"url": str(told["url"]), "owner": str(told["owner"])}
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def _is_reached(url: str, owner: str) -> bool:
    # One that was killed leaves its file; of one of another machine nothing is known but where it listens.
    if not is_elsewhere(owner):
        return is_alive(owner)
    host = urlsplit(url).hostname or "localhost"
    with contextlib.suppress(ValueError):
        return not ipaddress.ip_address(host).is_loopback
    return host != "localhost"
