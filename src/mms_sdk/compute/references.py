"""What a job reads and is to make, as its code sees it."""

from __future__ import annotations

import json
import os

from mms_sdk.settings import INPUTS_VARIABLE, OUTPUTS_VARIABLE


def inputs() -> dict[str, str]:
    """References to what this job reads, by label, each to the snapshot or version it was when it was submitted.

    Nothing where no job runs, so that a script says itself what it reads then.

    Example:
        ```python
        data = ({"data": "flowers"} | mms.inputs())["data"]  # in a job, e.g. flowers@7/train
        ```
    """
    return _told(INPUTS_VARIABLE)


def outputs() -> dict[str, str]:
    """Names of what this job is to make, by label; nothing where no job runs."""
    return _told(OUTPUTS_VARIABLE)


def _told(variable: str) -> dict[str, str]:
    told: dict[str, str] = json.loads(os.environ.get(variable) or "{}")
    return told
