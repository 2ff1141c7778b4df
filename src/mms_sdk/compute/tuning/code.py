"""The code of a study: a script, a module, a cell's text or a function, as bytes that travel.

Nothing is pickled. What a script imports from beside it is taken from where it lies when a trial runs.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mms_sdk.compute.functions import text_of
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
    text = text_of(function)
    _takes(function, space)
    name = function.__name__
    whole = f"{text}\nimport mms_sdk as _mms\n\n_mms.trial.returned({name}(**_mms.trial.params))\n"
    return _checked(Code(name=f"{name}.py", sha256="", origin=f"function {name}"), whole.encode())


def _takes(function: Callable[..., Any], space: Mapping[str, Any]) -> None:
    try:
        inspect.signature(function).bind(**dict.fromkeys(space))
    except TypeError as error:
        raise InvalidRequest(
            f"a function is called with the names of the search space, {', '.join(space)}; "
            f"{function.__name__}{inspect.signature(function)} does not take them: {error}"
        ) from error
