"""Commits sealed parts, one after another, once a file appears: `commits_at_once.py DATASET START PARTS REBASE`.

Prints, for each part, the number of the snapshot that holds it, or the name of the error.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from small_datasets import COLUMNS

from mms_sdk.errors import MmsError
from mms_sdk.schema.dataset import Sealed
from mms_sdk.storage.changes import Addition
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.stores.opening import store_at


def main() -> None:
    start = Path(sys.argv[2])
    dataset = Dataset.open(store_at(sys.argv[1], copies=start.with_suffix(".copies")), "flowers")
    parts = [Sealed.model_validate_json(line) for line in Path(sys.argv[3]).read_text().splitlines()]
    base = dataset.record()
    print("ready", flush=True)
    while not start.exists():
        time.sleep(0.001)
    for part in parts:
        addition = Addition(parts=[part], columns=COLUMNS, splits={"train": 1}, classes={"cat": 1})
        try:
            base = dataset.commit(addition, base=base, rebase=sys.argv[4] == "rebase")
            print(base.number)
        except MmsError as error:
            print(type(error).__name__)


if __name__ == "__main__":
    main()
