"""Follows a topic into a dataset: `follows_kafka.py BROKERS TOPIC FOLDER UPTO`.

Prints `ready` once all is imported, `+` for each batch that is committed, and `done` when the dataset has, or has left
out, as many messages as it is to.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path

import zarr
from small_streams import NUMBER

from mms_sdk.compute.data.follow import Batches, Following, follow
from mms_sdk.compute.data.kafka import Kafka
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.ids import new_id
from mms_sdk.storage.stores.local import LocalStore


def main() -> None:
    brokers, topic, where, upto = sys.argv[1:]
    assert zarr.__version__  # a second, in which it could not be killed while it commits
    job, stop = new_id(), threading.Event()
    folder = Path(where) / "jobs" / job
    folder.mkdir(parents=True)
    dataset = Dataset.open_or_create(LocalStore(Path(where) / "rows"), "rows")

    def tell(_: object) -> None:
        print("+", flush=True)
        if seen(dataset) >= int(upto):
            stop.set()

    if dataset.snapshots() and seen(dataset) >= int(upto):
        stop.set()
    asked = Following(columns=(NUMBER,), batches=Batches(rows=50, seconds=0.1))
    print("ready", flush=True)
    asyncio.run(follow(dataset, Kafka(brokers, topic), asked, job=job, folder=folder, tell=tell, stop=stop))
    print("done", flush=True)


def seen(dataset: Dataset) -> int:
    """How many messages the newest position counts in."""
    [offsets] = dataset.record().positions.values()
    return sum(offsets.values())


if __name__ == "__main__":
    main()
