"""What `scripts/demo` and `scripts/test` say before they have made an environment."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.mark.parametrize("script", ["demo", "test"])
def test_a_python_too_old_is_refused_with_what_was_found(script: str, tmp_path: Path) -> None:
    python = tmp_path / "old-python"
    python.write_text("#!/bin/sh\necho 3.9\n")
    python.chmod(0o755)

    done = subprocess.run(
        [SCRIPTS / script], env=os.environ | {"PYTHON": str(python)}, capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert "needs Python 3.11, 3.12 or 3.13" in done.stderr
    assert f"{python} is 3.9" in done.stderr
