"""Begins a study, or goes on with the one that is there: `python tunes_until_killed.py WORKSPACE MARKS TRIALS`."""

from __future__ import annotations

import sys

import mms_sdk as mms

SCRIPT = """
import os, pathlib, time
import mms_sdk as mms
marks = pathlib.Path(os.environ["MARKS"])
(marks / f"began-{mms.trial.number}-{os.getpid()}").touch()
for step in range(4):
    mms.trial.report(step, mms.trial.params["x"] + (3 - step))
    time.sleep(0.05)
(marks / f"ended-{mms.trial.number}-{os.getpid()}").touch()
"""
SPACE = {"x": mms.Uniform(0, 1), "y": mms.LogUniform(1e-3, 1)}

if __name__ == "__main__":
    ws = mms.connect(workspace=sys.argv[1])
    print("ready", flush=True)
    if there := ws.studies.list():
        if there[0].state != "succeeded":  # unless it was killed when all was done
            there[0].resume()
    else:
        trials = int(sys.argv[3])
        ws.tune(SCRIPT, space=SPACE, metric="loss", trials=trials, sampler="random", parallel=2, environment=["MARKS"])
