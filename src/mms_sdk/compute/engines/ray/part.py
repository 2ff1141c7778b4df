"""What an attempt runs on one node: `python -m mms_sdk.compute.engines.ray.part FOLDER`.

It is started by the node's actor, which says on standard input what this node runs, and later that it is to stop. On
standard output it says how that ended. When the actor dies, and with it both, all that runs here is ended at once:
another attempt may have begun elsewhere.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from mms_sdk.compute.engines.supervisor import Supervised, ignored

MODULE = "mms_sdk.compute.engines.ray.part"
TOKEN = "RAY_AUTH_TOKEN"
"""The variable in which KubeRay gives the cluster's token; others name a file that has it."""
_ALONE = {"reason": "lost", "detail": "the node's actor is gone", "grace_s": 0.0}


def main(folder: Path) -> None:
    """Runs the part of an attempt that standard input describes."""
    if os.fork():  # Ray ends the children of an actor with it; this one has to end what it started first
        os._exit(0)
    os.setsid()
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, ignored)
    os.chdir("/")
    part = Part(folder, json.loads(sys.stdin.readline()))
    print(json.dumps(part.run()), flush=True)
    os._exit(0)  # Python aborts if it ends while a thread reads standard input


class Part(Supervised):
    """The workers of one node, and everything that they start.

    Args:
        folder: The attempt's.
        given: What is said of this node beside what its file says of all.
    """

    def __init__(self, folder: Path, given: dict[str, Any]) -> None:
        super().__init__(folder)
        self._given |= given
        self._told_to_stop: dict[str, Any] | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    def _secrets(self) -> dict[bytes, bytes]:
        token = os.environ.get(TOKEN, "").encode()
        return ({TOKEN.encode(): token} if token else {}) | super()._secrets()

    def _listen(self) -> None:
        for line in sys.stdin:
            self._told_to_stop = json.loads(line)
            os.write(self._wake, b".")
        self._told_to_stop = _ALONE
        if self._stop_at is not None:  # it was about to stop in its own time
            self._stop_at = 0.0
        os.write(self._wake, b".")

    def _reason_to_stop(self, *seen: Any) -> tuple[str, str] | None:
        told = self._told_to_stop
        if told is None:
            return super()._reason_to_stop(*seen)
        self._given["grace_s"] = told["grace_s"]
        return told["reason"], told["detail"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
