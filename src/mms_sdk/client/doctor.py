"""`mms doctor`: what is installed, what is there, and what may be wrong."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from mms_sdk.errors import MmsError
from mms_sdk.storage.workspace import Workspace

_OPTIONAL = ("jupyterlab", "ray", "psycopg")
_PACKAGES = ("mms-sdk", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "zarr", "numpy", *_OPTIONAL)
_LOW_DISK_BYTES = 2 * 2**30
_DEVICES = "import jax; print(', '.join(f'{d.platform}:{d.id} {d.device_kind}' for d in jax.devices()))"


def examine(workspace: Path, *, catalog: str | None, datasets: str | None) -> list[dict[str, Any]]:
    """One row a finding: what was looked at, whether it is well (– if it is not needed), what was seen; no secrets."""
    return [
        _row("python", sys.version_info >= (3, 11), f"{platform.python_version()} on {platform.platform()}"),
        *_packages(),
        _devices(),
        *_workspace(workspace, catalog, datasets),
    ]


def _packages() -> list[dict[str, Any]]:
    rows = []
    for name in _PACKAGES:
        try:
            rows.append(_row(name, True, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            rows.append({**_row(name, False, "not installed"), **({"ok": "–"} if name in _OPTIONAL else {})})
    return rows


def _devices() -> dict[str, Any]:
    # In a process of its own: a broken driver may hang or crash whoever asks.
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _DEVICES], capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return _row("devices", False, "JAX did not answer within 120 s; look at the accelerator's driver")
    seen = asked.stdout.strip() or asked.stderr.strip().splitlines()[-1:]
    return _row("devices", asked.returncode == 0, str(seen))


def _workspace(folder: Path, catalog: str | None, datasets: str | None) -> list[dict[str, Any]]:
    if not folder.exists():
        where = folder.resolve()
        seen = f"there is none at {where}; the first ingest makes it there"
        return [_row("workspace", True, f"{seen}. If yours lies elsewhere, name it: --workspace, or $MMS_WORKSPACE")]
    try:
        workspace = Workspace(folder, catalog=catalog, datasets=datasets)
        jobs = sum(workspace.catalog.jobs.counts().values())
        name = workspace.catalog.name
        workspace.close()
    except MmsError as error:
        return [_row("workspace", False, error.message)]
    mode = os.stat(folder).st_mode & 0o777
    free = shutil.disk_usage(folder).free
    return [
        _row("workspace", True, f"{folder}: {len(workspace.dataset_names())} datasets, {jobs} jobs"),
        _row("catalog", True, name),
        _row(
            "permissions", mode & 0o077 == 0, f"{mode:o}" + ("" if mode & 0o077 == 0 else f"; run: chmod 700 {folder}")
        ),
        _row("free disk", free > _LOW_DISK_BYTES, f"{free / 2**30:.1f} GiB"),
    ]


def _row(what: str, well: bool, seen: str) -> dict[str, Any]:
    return {"what": what, "ok": "yes" if well else "NO", "seen": seen}
