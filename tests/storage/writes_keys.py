"""Writes shares of rows, each under its key: `writes_keys.py WRITING ROWS BATCH KEY…`, WRITING a pickle.

Key `000017` brings `ROWS` rows that nobody else brings, in batches; prints each key once it is sealed. With `commit` in
place of keys it commits, once a line comes in, and prints the snapshot's number.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from small_datasets import content_of

from mms_sdk.storage.writing import Writing


def main() -> None:
    writing: Writing = pickle.loads(Path(sys.argv[1]).read_bytes())
    rows, batch, *keys = *map(int, sys.argv[2:4]), *sys.argv[4:]
    print("ready", flush=True)
    if keys == ["commit"]:
        sys.stdin.readline()
        print(writing.commit().number, flush=True)
        return
    for key in keys:
        write_key(writing, str(key), rows=rows, batch=batch)
        print(key, flush=True)


def write_key(writing: Writing, key: str, *, rows: int, batch: int) -> None:
    """Fills the part of a key with rows that depend on nothing but the key."""
    content = content_of(rows, seed=int(key))
    with writing.writer(key) as writer:
        for start in range(0, rows, batch):
            writer.write({name: values[start : start + batch] for name, values in content.items()})


if __name__ == "__main__":
    main()
