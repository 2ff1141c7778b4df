"""Studies of a server's workspace can be looked at; they run where it lies."""

from __future__ import annotations

from pathlib import Path

import pytest

import mms_sdk as mms
from mms_sdk.errors import InvalidRequest

TOY = """
import mms_sdk as mms
print("trial", mms.trial.number)
(mms.artifacts() / "number.txt").write_text(str(mms.trial.number))
mms.trial.report(1, mms.trial.params["x"])
"""


def test_a_study_looks_the_same_from_both_sides_and_runs_on_one(
    embedded: mms.WorkspaceClient, over_http: mms.WorkspaceClient, tmp_path: Path
) -> None:
    space = {"x": mms.Choice([3, 2])}
    here = embedded.tune(TOY, space=space, metric="loss", sampler="grid", progress="none")

    there = over_http.studies.get(here.id)
    assert [study.id for study in over_http.studies.list(1)] == [here.id]
    assert repr(there) == repr(here)
    assert there._repr_html_() == here._repr_html_()
    assert (there.best.params, there.best.reports, there.best.logs()) == ({"x": 2}, {1: 2.0}, "trial 1\n")
    kept = there.best.job.download("number.txt", tmp_path / "number.txt")
    assert kept.read_text() == "1"
    with pytest.raises(InvalidRequest, match="a study runs its trials on this machine"):
        over_http.tune(TOY, space=space, metric="loss")
    with pytest.raises(InvalidRequest, match="a study runs its trials on this machine"):
        there.resume()
    with pytest.raises(InvalidRequest, match="exported where its workspace lies"):
        there.best.export(tmp_path)
