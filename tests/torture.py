"""How the tests marked torture kill: at some of all steps, or at each where `MMS_TORTURE=full` is set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

DRIVER = Path(__file__).with_name("storage") / "dies_at_step.py"
_FIRST = {"kill": 1, "enospc": 2, "interrupt": 3}
_ASKED = os.environ.get("MMS_TORTURE", "")
if _ASKED not in ("", "full"):
    raise ValueError(f"MMS_TORTURE is full, or not set; got {_ASKED!r}; leave it out to try some of all times")


def times(some: int, *, full: int) -> int:
    """A number of tries, or a stride over steps: `some`, and `full` where all was asked for."""
    return full if _ASKED else some


def die_at_steps(work: str, how: str, template: Path, out: Path, *, stride: int) -> list[dict[str, Any]]:
    """Lets a piece of work fail at every so many of its steps; the last one told is the one that went through.

    The three ways to fail begin at different steps, so that between them they come to each with a stride of three.
    """
    out.mkdir(exist_ok=True)
    first = min(_FIRST[how], stride)
    command = [sys.executable, "-W", "ignore", str(DRIVER), work, how, str(template), str(out), f"{stride}", f"{first}"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]
