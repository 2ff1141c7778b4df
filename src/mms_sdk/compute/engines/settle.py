"""Writes down what ended and starts what waits: `python -m mms_sdk.compute.engines.settle`, in an engine's workspace.

It prints how many seconds to wait until it is to be done again, if a job is to be tried once more by then.
"""

from __future__ import annotations

import os
from pathlib import Path

from mms_sdk.compute.engines.local import LocalEngine
from mms_sdk.settings import WORKSPACE_VARIABLE, default_catalog, default_datasets
from mms_sdk.storage.workspace import Workspace


def main() -> None:
    """Settles the workspace that the environment names."""
    root = Path(os.environ[WORKSPACE_VARIABLE])
    workspace = Workspace(root, catalog=default_catalog(), datasets=default_datasets(), make=False)
    try:
        engine = LocalEngine(workspace, comes_back=False)  # who started this does
        engine.reconcile()
        engine.start_waiting()
        due_s = workspace.catalog.attempts.next_due_s(engine.name)
    finally:
        workspace.close()
    if due_s:
        print(due_s)


if __name__ == "__main__":
    main()
