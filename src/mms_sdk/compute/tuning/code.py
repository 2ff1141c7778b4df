"""The code of a study: a script, a module, a cell's text or a function, as bytes that travel.

Nothing is pickled. What a script imports from beside it is taken from where it lies when a trial runs.
"""

from __future__ import annotations

import ast
import builtins
import dis
import hashlib
import importlib.util
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from mms_sdk.errors import Damaged, InvalidRequest
from mms_sdk.schema.tuning import Code
from mms_sdk.storage import files

_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def code_of(script: str | Path | Callable[..., Any], space: Mapping[str, Any]) -> tuple[Code, bytes]:
    """What is to be run, and its bytes.

    Args:
        script: A path, a module's name, the text of a cell, or a function that takes the space's names.
        space: What is searched.

    Raises:
        InvalidRequest: There is no such script, it does not parse, or a function needs more than its own text.
    """
    if callable(script):
        return _function(script, space)
    text = str(script)
    if isinstance(script, str) and "\n" in script:
        return _checked(Code(name="cell.py", sha256="", origin="a cell"), text.encode())
    path = Path(text).expanduser().absolute()
    if path.is_file():
        return _checked(_file(path, origin=str(path)), path.read_bytes())
    if isinstance(script, str) and not text.endswith(".py") and _MODULE.fullmatch(text):
        return _module(text)
    raise InvalidRequest(
        f"a study runs a script, a module, the text of a cell or a function; there is no file {path}; give its path"
    )


def keep(folder: Path, code: Code, content: bytes) -> None:
    """Writes the code into a study's folder."""
    files.make_folder(folder / "code")
    files.write_durable(folder / "code" / code.name, content)


def kept(folder: Path, code: Code) -> Path:
    """The file in a study's folder that holds the code.

    Raises:
        Damaged: It is not what was written.
    """
    path = folder / "code" / code.name
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != code.sha256:
        raise Damaged(f"{path} is not the script that the study began with; restore it from a backup")
    return path


def _file(path: Path, *, origin: str, folder: Path | None = None, package: str = "") -> Code:
    return Code(name=path.name, sha256="", origin=origin, folder=str(folder or path.parent), package=package)


def _module(name: str) -> tuple[Code, bytes]:
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError) as error:
        raise InvalidRequest(f"a study runs a script or a module; {name!r} cannot be imported: {error}") from error
    if found is None or found.origin is None or not found.origin.endswith(".py"):
        raise InvalidRequest(
            f"a study runs a script, a module, the text of a cell or a function; there is no file and no module "
            f"{name!r} written in Python; give its path"
        )
    path = Path(found.origin)
    if found.submodule_search_locations is not None:
        raise InvalidRequest(f"a study runs one module; {name!r} is a package; name a module in it, e.g. {name}.train")
    folder = path.parents[name.count(".")]
    code = _file(path, origin=name, folder=folder, package=name.rpartition(".")[0])
    return _checked(code, path.read_bytes())


def _checked(code: Code, content: bytes) -> tuple[Code, bytes]:
    try:
        compile(content, code.origin, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise InvalidRequest(f"a study runs Python; {code.origin}{line}: {error}; correct it first") from error
    return code.model_copy(update={"sha256": hashlib.sha256(content).hexdigest()}), content


def _function(function: Callable[..., Any], space: Mapping[str, Any]) -> tuple[Code, bytes]:
    name = getattr(function, "__name__", repr(function))
    if not inspect.isfunction(function) or not name.isidentifier():
        raise InvalidRequest(f"a study runs a function defined by def; got {function!r}; write one with a name")
    try:
        text = textwrap.dedent(inspect.getsource(function))
        tree = ast.parse(text)
    except (OSError, SyntaxError) as error:
        raise InvalidRequest(
            f"a function travels as its text, and that of {name} is nowhere to be found; write it into a file or a cell"
        ) from error
    if not isinstance(tree.body[0], ast.FunctionDef):
        raise InvalidRequest(f"a study runs a function defined by def; got {text.splitlines()[0]!r}")
    _takes(function, space)
    imports = _imports(function, text)
    call = f"import mms_sdk as _mms\n\n_mms.trial.returned({name}(**_mms.trial.params))\n"
    whole = "\n".join(["from __future__ import annotations", *imports, "", text, call])
    return _checked(Code(name=f"{name}.py", sha256="", origin=f"function {name}"), whole.encode())


def _takes(function: Callable[..., Any], space: Mapping[str, Any]) -> None:
    try:
        inspect.signature(function).bind(**dict.fromkeys(space))
    except TypeError as error:
        raise InvalidRequest(
            f"a function is called with the names of the search space, {', '.join(space)}; "
            f"{function.__name__}{inspect.signature(function)} does not take them: {error}"
        ) from error


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
            f"from there; define or import {'it' if len(left) == 1 else 'them'} within, or make the study of a file"
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
