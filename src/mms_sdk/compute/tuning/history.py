"""What the catalog says of a study's trials: the attempts at each, and how it stands."""

from __future__ import annotations

from collections.abc import Sequence

from mms_sdk.compute.tuning.asking import Ended, Past
from mms_sdk.compute.tuning.reports import all_of
from mms_sdk.schema.job import Job
from mms_sdk.schema.tuning import StudySpec, TrialSpec
from mms_sdk.storage.workspace import Workspace


def attempts_of(rows: Sequence[Job]) -> dict[int, list[Job]]:
    """The attempts at each trial, oldest first, by its number."""
    found: dict[int, list[Job]] = {}
    for row in rows:
        found.setdefault(row.spec["number"], []).append(row)
    return found


def how_ended(attempts: Sequence[Job]) -> Ended | None:
    """How a trial ended; None if it runs, or is to run again."""
    last = attempts[-1]
    title = (last.error or {}).get("title")
    if last.state == "succeeded":
        return "complete"
    if last.state == "cancelled" and title == "pruned":
        return "pruned"
    if last.state != "failed":
        return None
    killed = sum((each.error or {}).get("title") == "killed" for each in attempts)
    return None if title == "killed" and killed == 1 else "failed"


def past_of(workspace: Workspace, spec: StudySpec, attempts: Sequence[Job]) -> Past:
    """What a study that goes on has to know of a trial."""
    last = attempts[-1]
    ended = how_ended(attempts)
    return Past(
        params=TrialSpec.model_validate(last.spec).params,
        ended=ended,
        value=last.result.get("value"),
        reports=all_of(workspace, last, spec.metric) if ended else {},
        rungs=last.result.get("rungs", {}),
    )
