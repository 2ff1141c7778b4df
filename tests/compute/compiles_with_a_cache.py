"""Trains once and says what it compiled: `compiles_with_a_cache.py WORKSPACE`."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "training"))

from small_pictures import SmallData

import mms_sdk as mms
from mms_sdk.storage.workspace import Workspace

if __name__ == "__main__":
    told: Counter[str] = Counter()
    jax.monitoring.register_event_listener(lambda name, **_: told.update([name.rpartition("/")[2]]))
    trainer = mms.Trainer(model=mms.models.MLP(num_classes=3, widths=(16,)), batch_size=8, epochs=1)
    result = trainer.fit(SmallData(Workspace(Path(sys.argv[1]))), progress="none")
    learnt = hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in result.last.state.params.values())).hexdigest()
    print(json.dumps({"found": told["cache_hits"], "kept": told["cache_misses"], "learnt": learnt}))
