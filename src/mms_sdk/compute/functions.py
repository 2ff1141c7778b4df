"""A function as text that travels: nothing is pickled, and nothing of what is around it comes along but modules."""

from __future__ import annotations

import ast
import builtins
import dis
import inspect
import textwrap
from collections.abc import Callable, Iterator
from types import CodeType, ModuleType
from typing import Any

from mms_sdk.errors import InvalidRequest


def text_of(function: Callable[..., Any]) -> str:
    """The text of a module that defines a function as it is defined here, without its decorators.

    Modules that it uses from around it are imported again there.

    Raises:
        InvalidRequest: It is no function defined by `def`, its text is nowhere to be found, or it needs more than that.
    """
    name = getattr(function, "__name__", repr(function))
    if not inspect.isfunction(function) or not name.isidentifier():
        raise InvalidRequest(f"what travels is a function defined by def; got {function!r}; write one with a name")
    try:
        lines = textwrap.dedent(inspect.getsource(function))
        tree = ast.parse(lines)
    except (OSError, SyntaxError) as error:
        raise InvalidRequest(
            f"a function travels as its text, and that of {name} is nowhere to be found; write it into a file or a cell"
        ) from error
    defined = tree.body[0]
    if not isinstance(defined, ast.FunctionDef):
        raise InvalidRequest(f"what travels is a function defined by def; got {lines.splitlines()[0]!r}")
    text = "\n".join(lines.splitlines()[defined.lineno - 1 :]) + "\n"
    return "\n".join(["from __future__ import annotations", *_imports(function, text), "", text])


def _imports(function: Callable[..., Any], text: str) -> list[str]:
    # Names that the text takes from around it: modules are imported again, anything else stays behind.
    there: dict[str, Any] = {**function.__globals__, **inspect.getclosurevars(function).nonlocals}
    code = compile(f"from __future__ import annotations\n{text}", "<function>", "exec", dont_inherit=True)
    imports, left = [], []
    for name in dict.fromkeys(_loaded(code)):
        value = there.get(name, function if name == function.__name__ else None)
        if isinstance(value, ModuleType):
            imports.append(f"import {value.__name__} as {name}")
        elif value is not function and (name in there or not hasattr(builtins, name)):
            left.append(name)
    if left:
        raise InvalidRequest(
            f"a function travels as its text, without what is around it; {function.__name__} uses {', '.join(left)} "
            f"from there; define or import {'it' if len(left) == 1 else 'them'} within, or write all of it into a file"
        )
    return imports


def _loaded(code: CodeType, stored: frozenset[str] = frozenset()) -> Iterator[str]:
    steps = list(dis.get_instructions(code))
    if code.co_name == "<module>":
        stored |= {str(step.argval) for step in steps if step.opname in ("STORE_NAME", "STORE_GLOBAL")}
    for step in steps:
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and step.argval not in stored - {"__module__"}:
            yield str(step.argval)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _loaded(inner, stored)
