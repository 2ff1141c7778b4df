"""The code of a study: taken as text, checked before anything runs."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

import mms_sdk as mms
from mms_sdk.compute.tuning.code import code_of, keep, kept
from mms_sdk.errors import Damaged, InvalidRequest

SPACE = {"lr": mms.Uniform(0, 1)}
SCALE = 3


def uses_modules(lr: float) -> float:
    return math.log(lr) + len(json.dumps([value * 2 for value in range(3)]))


def uses_a_global(lr: float) -> float:
    return sum(SCALE * lr for _ in range(2))


def has_a_default(lr: float = math.pi, *, more: int = SCALE) -> float:
    return lr * more


def calls_itself(lr: float) -> float:
    return lr if lr < 1 else calls_itself(lr - 1)


def test_a_script_is_taken_byte_by_byte(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_bytes("# -*- coding: latin-1 -*-\nname = 'é'\n".encode("latin-1"))
    code, content = code_of(path, SPACE)
    assert content == path.read_bytes()
    assert code.sha256 == hashlib.sha256(content).hexdigest()
    assert (code.name, code.origin, code.folder) == ("train.py", str(path), str(tmp_path))

    keep(tmp_path / "study", code, content)
    path.write_text("changed = True")
    assert kept(tmp_path / "study", code).read_bytes() == content
    kept(tmp_path / "study", code).write_text("changed = True")
    with pytest.raises(Damaged, match="is not the script that the study began with"):
        kept(tmp_path / "study", code)


def test_a_module_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tuned_package").mkdir()
    (tmp_path / "tuned_package" / "__init__.py").touch()
    (tmp_path / "tuned_package" / "train.py").write_text("from . import x\n")
    monkeypatch.syspath_prepend(tmp_path)
    code, content = code_of("tuned_package.train", SPACE)
    assert content == b"from . import x\n"
    assert (code.package, code.folder, code.origin) == ("tuned_package", str(tmp_path), "tuned_package.train")
    with pytest.raises(InvalidRequest, match=r"'tuned_package' is a package; name a module in it"):
        code_of("tuned_package", SPACE)


def test_the_text_of_a_cell_will_do() -> None:
    code, content = code_of("import os\nprint(os)\n", SPACE)
    assert (code.name, content) == ("cell.py", b"import os\nprint(os)\n")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("nope.py", "there is no file"),
        ("no_such_module", "there is no file and no module 'no_such_module'"),
        ("no_such_package.train", "'no_such_package.train' cannot be imported"),
        ("sys", "no module 'sys' written in Python"),
        ("", "there is no file"),
        ("def f(:\n  pass", "a cell, line 1"),
        (Path("nope"), "there is no file"),
        (lambda lr: lr, "a function defined by def"),
        (print, "a function defined by def"),
        (mms.Uniform, "a function defined by def"),
        (uses_a_global, "uses_a_global uses SCALE from there; define or import it within"),
        (has_a_default, "uses SCALE from there"),
    ],
)
def test_what_cannot_travel_is_refused_with_the_reason(script: Any, said: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        code_of(script, SPACE)
    assert said in refused.value.message


def test_a_script_that_does_not_parse_says_where(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("x = 1\ny = (\n")
    with pytest.raises(InvalidRequest, match=r"train\.py, line 2: '\(' was never closed.*; correct it first"):
        code_of(tmp_path / "train.py", SPACE)


def test_a_function_that_closes_over_names_is_refused() -> None:
    rows, modules = [1, 2], sys

    def closes(lr: float) -> float:
        return lr * len(rows) + len(modules.path)

    with pytest.raises(InvalidRequest, match="closes uses rows from there"):
        code_of(closes, SPACE)


def test_a_function_that_does_not_take_the_names_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"names of the search space, lr, width; uses_modules\(lr: 'float'\)"):
        code_of(uses_modules, {**SPACE, "width": mms.Integer(1, 2)})


@pytest.mark.parametrize("function", [uses_modules, calls_itself])
def test_a_function_runs_by_its_text_alone(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, content = code_of(function, SPACE)
    found: list[float] = []
    monkeypatch.setattr(mms.trial, "returned", found.append)
    monkeypatch.setattr(mms.trial, "params", {"lr": 0.25}, raising=False)
    exec(compile(content, "x", "exec"), {"__name__": "__main__"})
    assert found == [function(0.25)]
