"""Appends rows to a dataset, one commit after another: `appends_until_killed.py STORE COPIES FIRST`.

Each commit brings three rows with the number of the attempt. Prints an attempt's number once it is acknowledged.
"""

from __future__ import annotations

import importlib
import sys
from itertools import count
from pathlib import Path

import numpy as np

from mms_sdk.schema.dataset import Column
from mms_sdk.storage.changes import Addition
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.stores.opening import store_at

NUMBER = Column(name="number", kind="number", dtype="int64")


def main() -> None:
    where, copies, first = sys.argv[1:]
    dataset = Dataset.open_or_create(store_at(where, copies=Path(copies)), "numbers")
    importlib.import_module("zarr")  # a second, in which it could not be killed while it commits
    print("ready", flush=True)
    for number in count(int(first)):
        with dataset.writer((NUMBER,)) as writer:
            writer.write({"number": np.full(3, number, np.int64)})
            part = writer.close()
        base = dataset.record() if dataset.snapshots() else None
        dataset.commit(Addition(parts=[part], columns=(NUMBER,)), base=base, rebase=True)
        print(number, flush=True)


if __name__ == "__main__":
    main()
