"""What the README and the documentation show is run: one test a page, its blocks in order.

A ```python block runs in the page's namespace, an ```ipython block as a cell of a notebook with the same namespace, and
of a ```console block the lines that start with `$ mms`. Blocks that cannot run here (an install, a server that stays)
are ```sh blocks. The working folder is empty but for `photos/`, labelled pictures of three shapes.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image, ImageDraw
from sybil import Document, Example
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser
from traitlets.config import Config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


class CellParser(CodeBlockParser):
    """Runs a block as IPython runs a cell: magics, and a plot or a table as the last expression."""

    language = "ipython"

    def evaluate(self, example: Example) -> None:
        # The history is a database and a thread that outlive the shell.
        config = Config({"HistoryManager": {"enabled": False}})
        shell = InteractiveShell.instance(user_ns=example.namespace, config=config)
        shell.run_cell(example.parsed).raise_error()


class ConsoleParser(CodeBlockParser):
    """Runs the commands of a block; what they print is theirs to change."""

    language = "console"

    def evaluate(self, example: Example) -> None:
        text = re.sub(r"\\\n\s*", " ", example.parsed)
        for command in (line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")):
            program, *arguments = shlex.split(command, comments=True)
            if program != "mms":
                raise ValueError(f"a console block runs only mms; got {command!r}; fence it as ```sh")
            mms = Path(sys.executable).with_name("mms")
            done = subprocess.run([mms, *arguments], capture_output=True, text=True, check=False, timeout=110)
            assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a page runs: an empty folder with `photos/`, a workspace and a notebook of its own."""
    draw_photos(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    sys.path_importer_cache.pop(".", None)  # where a page before ran
    monkeypatch.setenv("MMS_WORKSPACE", str(tmp_path / "mms-workspace"))
    yield tmp_path
    InteractiveShell.clear_instance()


def draw_photos(folder: Path, of_each: int = 40, side: int = 32) -> None:
    """Writes `folder/circle/00.png` and so on: shapes of random place, size and shade on noise."""
    rng = np.random.default_rng(0)
    for shape in ("circle", "square", "triangle"):
        (folder / shape).mkdir(parents=True)
        for number in range(of_each):
            picture = Image.fromarray(rng.integers(0, 80, (side, side, 3), np.uint8))
            x, y, radius = (int(value) for value in rng.integers([12, 12, 6], [20, 20, 11]))
            draw, shade = ImageDraw.Draw(picture), tuple(int(value) for value in rng.integers(160, 256, 3))
            match shape:
                case "circle":
                    draw.circle((x, y), radius, fill=shade)
                case "square":
                    draw.rectangle((x - radius, y - radius, x + radius, y + radius), fill=shade)
                case "triangle":
                    draw.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=shade)
            picture.save(folder / shape / f"{number:02}.png")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("working_folder")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_shows_runs(page: Path) -> None:
    document = Document.parse(str(page), PythonCodeBlockParser(), CellParser(), ConsoleParser())
    for example in document.examples():
        example.evaluate()
