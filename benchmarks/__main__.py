"""Runs measurements and prints one table.

python -m benchmarks                    all of them
python -m benchmarks storage training   some
python -m benchmarks --quick            fewer rounds, to see that they run
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.table import Row, markdown, plain

# One file each, with `rows(folder, *, quick)`.
TOPICS = (
    *("start", "catalog", "storage", "ingest", "growth", "training", "checkpoints", "planning", "jobs", "watching"),
    *("clusters", "serving"),
)


def main(words: Sequence[str] | None = None) -> int:
    """Measures what is asked for; returns how many targets were missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help=f"some of {', '.join(TOPICS)}; all if left out")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: to see that it runs, not to measure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    asked = parser.parse_args(words)
    unknown = [topic for topic in asked.topics if topic not in TOPICS]
    if unknown:
        parser.error(f"topics are {', '.join(TOPICS)}; got {', '.join(unknown)}")
    rows: list[Row] = []
    for topic in asked.topics or TOPICS:
        print(f"measuring: {topic}", flush=True)
        with tempfile.TemporaryDirectory(prefix=f"mms-{topic}-") as folder:
            rows += importlib.import_module(f"benchmarks.{topic}").rows(Path(folder), quick=asked.quick)
    print(markdown(rows) if asked.markdown else plain(rows))
    if asked.json:
        machine = {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}
        told = {"machine": machine, "quick": asked.quick, "rows": [row.told() for row in rows]}
        asked.json.write_text(json.dumps(told, indent=2) + "\n")
    return sum(row.met == "NO" for row in rows)


if __name__ == "__main__":
    raise SystemExit(min(main(), 1))
