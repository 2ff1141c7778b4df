"""Files that a job leaves."""

from __future__ import annotations

import os
from pathlib import Path

from mms_sdk.settings import ARTIFACTS_VARIABLE


def artifacts() -> Path:
    """The folder of what this job leaves: whatever is written into it is kept with the attempt.

    Where no job runs it is `artifacts` in the current folder, so that a script runs alone. Programs that the job starts
    find it in `$MMS_ARTIFACTS`.

    Example:
        ```python
        figure.savefig(mms.artifacts() / "loss.png")  # and later: job.download("loss.png", "loss.png")
        ```
    """
    folder = Path(os.environ.get(ARTIFACTS_VARIABLE) or "artifacts").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder
