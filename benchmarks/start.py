"""Starting: how long a fresh process takes for `import mms_sdk`, `mms --help` and `%load_ext mms_jupyter`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from math import inf
from pathlib import Path
from statistics import median

from benchmarks.table import Row, in_turns

LIMIT_S = 0.2
HEAVY = ("jax", "flax", "orbax", "zarr")

_TOLD = "print(json.dumps([time.perf_counter() - began, sorted({*HEAVY} & {*sys.modules})]), file=sys.stderr)"
_IMPORT = f"""
import json, sys, time
HEAVY = {HEAVY}
began = time.perf_counter()
import mms_sdk
{_TOLD}
"""
_HELP = f"""
import json, sys, time
HEAVY = {HEAVY}
began = time.perf_counter()
from mms_sdk import cli
try:
    cli.main(["--help"])
except SystemExit:
    pass
{_TOLD}
"""
_LOAD_EXT = f"""
import json, sys, time
HEAVY = {HEAVY}
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
began = time.perf_counter()
shell.run_line_magic("load_ext", "mms_jupyter")
{_TOLD}
"""


def rows(_folder: Path, *, quick: bool) -> list[Row]:
    """The rows of this topic."""
    codes = {"import mms_sdk": _IMPORT, "mms --help": _HELP, "%load_ext mms_jupyter": _LOAD_EXT}
    loaded = {what: _inside(code)[1] for what, code in codes.items()}
    seen = in_turns(
        {
            **{what: lambda code=code: _inside(code)[0] for what, code in codes.items()},
            "whole": _process("-m", "mms_sdk.cli", "--help"),
            "bare": _process("-c", "pass"),
        },
        3 if quick else 25,
    )
    taken = {what: median(seconds) for what, seconds in seen.items()}
    told = [
        Row(
            what=f"{what}, in a fresh process",
            mms=f"{taken[what]:.3f} s" + (f", loads {', '.join(loaded[what])}" if loaded[what] else ""),
            beside=f"{LIMIT_S} s, and none of {', '.join(HEAVY)} loaded",
            # A heavy library misses the target, however quickly it was loaded.
            ratio=inf if loaded[what] else taken[what] / LIMIT_S,
            target="<= 1.0",
        )
        for what in codes
    ]
    return [
        *told,
        Row(
            what="mms --help, from the start of the process to its end",
            mms=f"{taken['whole']:.3f} s",
            beside=f"{LIMIT_S} s; python -c pass takes {taken['bare']:.3f} s",
            ratio=taken["whole"] / LIMIT_S,
            target="<= 1.0",
        ),
    ]


def _inside(code: str) -> tuple[float, list[str]]:
    """Seconds and heavy libraries, as the fresh process tells them itself."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, heavy = json.loads(done.stderr.splitlines()[-1])
    return seconds, heavy


def _process(*words: str) -> Callable[[], float]:
    def run() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, *words], capture_output=True, check=True)
        return time.perf_counter() - began

    return run
