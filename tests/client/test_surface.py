"""`import mms_sdk as mms`: what is on it, and what importing it costs."""

from __future__ import annotations

import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import mms_sdk as mms


@pytest.mark.parametrize("name", mms.__all__)
def test_every_name_resolves_to_something_documented(name: str) -> None:
    value = getattr(mms, name)
    assert inspect.getdoc(value), f"{name} has no docstring"
    assert value is getattr(mms, name)
    if not isinstance(value, ModuleType):
        assert value.__doc__ not in (None, dict.__doc__)


def test_the_names_are_sorted_and_dir_lists_them() -> None:
    assert mms.__all__ == sorted(mms.__all__, key=lambda name: (not name.isupper(), name))  # as the linter does
    assert set(dir(mms)) == {*mms.__all__, "__version__"}


def test_an_unknown_name_says_which_there_are() -> None:
    with pytest.raises(AttributeError, match=r"has no name 'conect'; it has ASHA, .*connect, "):
        _ = mms.conect
    assert not hasattr(mms, "os")


def test_importing_it_loads_no_heavy_library() -> None:
    probe = (
        "import sys\nimport mms_sdk\ndir(mms_sdk)\n"
        "heavy = {'jax', 'flax', 'orbax', 'zarr', 'pandas', 'numpy', 'fastapi', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
