"""MMS in notebooks: `%load_ext mms_jupyter`, then `%mms`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Makes `%mms` known; called by `%load_ext mms_jupyter`."""
    from mms_jupyter.magics.mms import MmsMagics

    shell.register_magics(MmsMagics)
