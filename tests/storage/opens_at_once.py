"""Makes workspaces at the moment that files appear, and finishes jobs in them: `opens_at_once.py FOLDER ROUNDS`.

For each round N it waits for FOLDER/N.go, opens the workspace FOLDER/N, starts a job, ends the job named in the first
line of FOLDER/N.go if there is one, and prints whether it was the one to end it, or the error. The second line is the
URL of the catalog, empty for a file.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import alembic.command  # noqa: F401  (so that the first round is not over before it is imported)

from mms_sdk.errors import MmsError
from mms_sdk.storage.workspace import Workspace


def main() -> None:
    print("ready", flush=True)
    for number in range(int(sys.argv[2])):
        go = Path(sys.argv[1]) / f"{number}.go"
        while not go.exists():
            time.sleep(0.0005)
        try:
            job, catalog = go.read_text().split("\n")
            workspace = Workspace(go.with_suffix(""), catalog=catalog or None)
            workspace.catalog.jobs.start("train", "flowers", {})
            ended = bool(job) and workspace.catalog.jobs.finish(job, "succeeded", result={"by": "me"})
            workspace.close()
            print(ended, flush=True)
        except (MmsError, OSError) as error:
            print(f"{type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    main()
