"""Saves checkpoints until it is killed: `saves_until_killed.py FOLDER`. Step n holds arrays full of n."""

from __future__ import annotations

import sys
from pathlib import Path

import jax.numpy as jnp

from mms_sdk.storage.checkpoints import CheckpointFolder


def main() -> None:
    folder = CheckpointFolder(Path(sys.argv[1]), keep=2)
    for step in range(1, 1_000_000):
        folder.save(step, {"w": jnp.full((64, 1024), step, jnp.float32)}, {"epoch": step}, best=step % 3 == 0)
        print(step - 1, flush=True)  # saving waits for the save before, so that one is on disk


if __name__ == "__main__":
    main()
