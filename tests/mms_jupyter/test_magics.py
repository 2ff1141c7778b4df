"""`%mms` in a real IPython shell."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image
from traitlets.config import Config

from mms_sdk.storage.workspace import Workspace


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    monkeypatch.setenv("MMS_WORKSPACE", str(tmp_path / "ws"))
    Workspace(tmp_path / "ws").close()
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    shell.run_line_magic("load_ext", "mms_jupyter")
    yield shell
    InteractiveShell.clear_instance()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for label, shade in (("dark", 10), ("light", 240)):
        for number in range(10):
            path = tmp_path / "my photos" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), shade + number).save(path)
    return tmp_path / "my photos"


def test_loading_the_extension_loads_no_heavy_library() -> None:
    probe = (
        "import sys\n"
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "from traitlets.config import Config\n"
        "shell = InteractiveShell.instance(config=Config({'HistoryManager': {'enabled': False}}))\n"
        "shell.run_line_magic('load_ext', 'mms_jupyter')\n"
        "heavy = {'jax', 'flax', 'orbax', 'zarr', 'fastapi'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_verb_returns_what_the_python_call_would(shell: InteractiveShell, photos: Path) -> None:
    dataset = shell.run_line_magic("mms", f"data ingest shades '{photos}'")
    assert (dataset.ref, dataset.rows) == ("shades@1", 20)
    assert [each.ref for each in shell.run_line_magic("mms", "data")] == ["shades@1"]
    assert shell.run_line_magic("mms", "status")["datasets"] == "shades@1"
    assert "dataset shades@1" in shell.run_line_magic("mms", "data show shades")._repr_html_()
    assert len(shell.run_line_magic("mms", "data head shades --rows 3")) == 3
    assert "columns of shades@1" in shell.run_line_magic("mms", "data describe shades")._repr_html_()
    assert "1 part: nothing" in shell.run_line_magic("mms", "data compact shades")._repr_html_()


def test_variables_on_the_line_are_replaced(shell: InteractiveShell, photos: Path) -> None:
    shell.user_ns |= {"name": "shades", "folder": str(photos)}
    ran = shell.run_cell('%mms data ingest {name} "{folder}"')
    assert ran.success
    assert ran.result.ref == "shades@1"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("frobnicate", "there is no verb 'frobnicate'"),
        ("data show nope", "no dataset 'nope'"),
        ("data show 'unfinished", "No closing quotation"),
        ("serve", "would block the notebook"),
        ("train nope --epochs many", "whole number"),
    ],
)
def test_a_mistake_is_a_usage_error_without_a_traceback(shell: InteractiveShell, line: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        shell.run_line_magic("mms", line)


def test_help_is_printed(shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.run_line_magic("mms", "") is None
    assert "status" in capsys.readouterr().out
    assert shell.run_line_magic("mms", "train --help") is None
    assert "--epochs" in capsys.readouterr().out


def test_a_function_of_a_cell_is_tuned_unless_it_takes_something_from_other_cells(shell: InteractiveShell) -> None:
    shell.run_cell(
        "import math\nimport mms_sdk as mms\nws = mms.connect()\nspace = {'x': mms.Choice([4, 9])}\nside = 2"
    )
    shell.run_cell("def root(x):\n    return math.sqrt(x)\n\ndef longer(x):\n    return x * side\n")
    asked = "space=space, metric='score', sampler='grid', progress='none'"
    ran = shell.run_cell(f"ws.tune(root, {asked})")
    assert [trial.value for trial in ran.result.trials] == [2, 3]
    refused = shell.run_cell(f"ws.tune(longer, {asked})")
    assert "longer uses side from there; define or import it within" in str(refused.error_in_exec)


def test_tune_by_magic_returns_the_study(shell: InteractiveShell, tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text("import mms_sdk as mms\nmms.trial.report(0, mms.trial.params['x'])\n")
    study = shell.run_line_magic("mms", f"tune {tmp_path}/toy.py --space x=3,5 --metric score --sampler grid")
    assert (study.best.params, study.best.value) == ({"x": 5}, 5)
    assert [each.id for each in shell.run_line_magic("mms", "studies")] == [study.id]
    assert "<svg" in shell.run_line_magic("mms", f"study {study.id}")._repr_html_()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_train_and_predict_by_magic(shell: InteractiveShell, photos: Path) -> None:
    shell.run_line_magic("mms", f"data ingest shades '{photos}'")
    version = shell.run_line_magic("mms", "train shades --epochs 2 --batch-size 8 --model mlp")
    assert version.ref == "shades@1"
    prediction = shell.run_line_magic("mms", f"predict shades '{photos}/dark/1.png'")
    assert {label for label, _ in prediction.top(2)} == {"dark", "light"}
