"""Backs a workspace up again and again: `backs_up_until_killed.py WORKSPACE PLACE`; prints each copy's id."""

from __future__ import annotations

import sys
from pathlib import Path

from mms_sdk.storage.backup.copies import Copies
from mms_sdk.storage.stores.opening import store_at
from mms_sdk.storage.workspace import Workspace


def main() -> None:
    workspace = Workspace(Path(sys.argv[1]))
    copies = Copies(store_at(sys.argv[2], copies=workspace.root / "copies"))
    print("ready", flush=True)
    while True:
        print(copies.take(workspace).id, flush=True)


if __name__ == "__main__":
    main()
