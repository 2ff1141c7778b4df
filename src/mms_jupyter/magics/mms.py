"""`%mms`: the command line's own parser, in a cell; a command returns its value instead of printing it."""

from __future__ import annotations

import shlex
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_magic, magics_class

from mms_sdk.cli import UsageProblem, make_parser
from mms_sdk.errors import MmsError
from mms_sdk.told import on_its_lines

# What a kernel should not do: serve for ever, or begin a process-wide story.
_ELSEWHERE = ("serve",)


@magics_class
class MmsMagics(Magics):
    """`%mms VERB …`; `%mms help` lists the verbs."""

    @line_magic
    def mms(self, line: str) -> Any:
        """Runs one MMS command and returns what it found, e.g. `%mms status`, `%mms data show flowers`.

        `{name}` and `$name` on the line are replaced by the notebook's variables. `%mms help` lists the verbs.
        """
        try:
            asked = make_parser("%mms").parse_args(shlex.split(line) or ["help"])
            if asked.verb in _ELSEWHERE:
                raise UsageProblem(f"%mms {asked.verb} would block the notebook; run it in a terminal: mms {line}")
            value = asked.command(asked)
        except (UsageProblem, ValueError, MmsError) as error:
            raise UsageError(on_its_lines(str(error))) from None
        except SystemExit:  # argparse ends so after --help, which it has printed
            return None
        if isinstance(value, str):
            print(value)
            return None
        return value
