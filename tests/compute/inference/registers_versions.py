"""Registers versions of the model `tiny`, as a program of its own.

`registers_versions.py at-once WORKSPACE ARTIFACT COUNT` does so through the SDK once WORKSPACE/../go exists, and prints
the numbers it got. `registers_versions.py dies WORK TEMPLATE OUT` is killed at each step, see `dies_at_step.py`; it
registers what is staged in TEMPLATE as `staged`.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[2] / "storage")]

import dies_at_step

STAGED = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


def keep(folder: Path) -> None:
    """What registering does to the disk."""
    from mms_sdk.compute.inference.export import read_card
    from mms_sdk.storage.workspace import Workspace

    workspace = Workspace(folder / "workspace")
    card = read_card(workspace.staged(STAGED))
    artifact, _, digest = workspace.keep_artifact(STAGED)
    workspace.catalog.models.add("tiny", artifact=artifact, digest=digest, size=1, card=card)
    workspace.close()


def register(folder: Path) -> None:
    """All of it, through the SDK."""
    from made_artifacts import Spoilt

    import mms_sdk as mms

    with mms.connect(workspace=folder / "workspace") as ws:
        ws.models.register("tiny", Spoilt(folder / "source"))


def register_at_once(workspace: Path, artifact: Path, count: int) -> None:
    from made_artifacts import Spoilt

    import mms_sdk as mms

    with mms.connect(workspace=workspace) as ws:
        print("ready", flush=True)
        while not (workspace.parent / "go").exists():
            time.sleep(0.001)
        for _ in range(count):
            print(ws.models.register("tiny", Spoilt(artifact)).version, flush=True)


def main() -> None:
    if sys.argv[1] == "at-once":
        register_at_once(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
        return
    import made_artifacts  # noqa: F401
    import sqlalchemy.dialects.sqlite  # noqa: F401

    import mms_sdk.compute.inference.predictor
    import mms_sdk.service.app  # noqa: F401

    dies_at_step.WORK |= {"keep": keep, "register": register}
    work, template, out = sys.argv[2:]
    sys.argv[1:] = [work, "kill", template, out]
    dies_at_step.main()


if __name__ == "__main__":
    main()
