"""Packages of a job's own: a virtual environment for each list of requirements, made once and kept while it is used.

```
environments/KEY.lock        held by whoever makes or removes it, and shared by all who use it
environments/KEY/made.json   written last: without it, it was left half-made
```

It sees all packages of the interpreter that it is made by, and brings what these lack. It may bring other versions of
them, but not of what MMS itself runs on.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from mms_sdk.compute.engines import folder as files
from mms_sdk.compute.packages import RequirementsFailed, installed, normalised

FOLDER = "environments"
"""Of a workspace."""
_MADE = "made.json"
_KEPT = 20  # environments, and those that were used within so many days
_KEPT_DAYS = 30
_LINES = 12
_SHOWN = 1500  # of pip's last lines
# What pip says when the network or the disk is at fault, and the same may go well another time.
_NOT_ITS_DOING = ("connection broken by", "[Errno 28]", "[Errno 122]")
_PIP = (
    *("-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--no-warn-script-location"),
    *("--progress-bar", "off"),
)


def interpreter() -> str:
    """The Python that runs jobs: this one; within a job with packages of its own, the one that these were added to."""
    told = files.read(Path(sys.prefix) / _MADE)
    return str(told["python"]) if told else sys.executable


def check(requirements: Sequence[str]) -> None:
    """Refuses what can be told before anything is installed.

    Raises:
        InvalidRequest: Another version of what MMS runs on is required, or there is no pip.
    """
    if not requirements:
        return
    from importlib.util import find_spec

    from packaging.requirements import Requirement

    from mms_sdk.errors import InvalidRequest

    if find_spec("pip") is None:
        raise InvalidRequest(
            f"requirements are installed by pip, and {interpreter()} has none; install it there: "
            f"{interpreter()} -m ensurepip"
        )
    pinned = _pinned()
    for each in map(Requirement, requirements):
        version = pinned.get(normalised(each.name))
        if version is None or (each.marker is not None and not each.marker.evaluate()):
            continue
        if each.url is not None or not each.specifier.contains(version, prereleases=True):
            raise InvalidRequest(
                f"a job runs on what MMS runs on: {each.name} is {version} here, and another one is required: {each}; "
                f"leave it out, or submit with an MMS that is installed beside that version"
            )


def enter(root: Path, requirements: Sequence[str], words: Sequence[str]) -> None:
    """Goes on as the interpreter of an environment that has what is required, made if there is none yet.

    Does nothing in that interpreter itself.

    Args:
        root: The workspace.
        requirements: Checked.
        words: What the interpreter runs.

    Raises:
        RequirementsFailed: They could not be installed.
    """
    if (Path(sys.prefix) / _MADE).exists():
        return
    try:
        folder = _ready(root / FOLDER, requirements)
    except OSError as error:  # a full disk
        raise RequirementsFailed(str(error), "infra") from error
    python = str(folder / "bin" / "python")
    path = os.pathsep.join([str(folder / "bin"), os.environ.get("PATH", os.defpath)])
    sys.stdout.flush()
    os.execve(python, [python, *words], {**os.environ, "PATH": path, "VIRTUAL_ENV": str(folder)})


def _ready(root: Path, requirements: Sequence[str]) -> Path:
    key = _key(requirements)
    folder = root / key
    root.mkdir(mode=0o700, exist_ok=True)
    lock = _open_lock(root / f"{key}.lock")
    os.set_inheritable(lock, True)  # as long as anything of the job runs, it is in use
    while True:
        fcntl.flock(lock, fcntl.LOCK_SH)
        if (folder / _MADE).exists():
            os.utime(folder / _MADE)
            return folder
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / _MADE).exists():
            _remove_unused(root, but=key)
            _make(folder, requirements)


def _key(requirements: Sequence[str]) -> str:
    told = [sorted(set(requirements)), sys.version, sys.executable, _base(), installed()]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


def _base() -> list[str]:
    import site

    user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return [*user, *site.getsitepackages()]


def _make(folder: Path, requirements: Sequence[str]) -> None:
    before = signal.signal(signal.SIGTERM, _stop)  # so that what is half-made is removed
    try:
        _lay_out(folder)
        _install(folder, requirements)
        os.sync()
        files.create(folder / _MADE, {"python": sys.executable, "requirements": list(requirements)}, durable=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _lay_out(folder: Path) -> None:
    import venv

    shutil.rmtree(folder, ignore_errors=True)  # what was left by one that was killed
    venv.EnvBuilder(symlinks=True).create(folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A virtual environment of a virtual environment would see the packages of neither. Unlike paths by themselves, this
    # also reads what is installed there by a path.
    lines = [f"import site; site.addsitedir({place!r})\n" for place in _base()]
    (packages / "_base.pth").write_text("".join(lines))


def _install(folder: Path, requirements: Sequence[str]) -> None:
    pins = folder / "constraints.txt"
    pins.write_text("".join(f"{name}=={version}\n" for name, version in _pinned().items()))
    words = [str(folder / "bin" / "python"), "-P", *_PIP, "--constraint", str(pins), "--", *requirements]
    said: deque[bytes] = deque(maxlen=200)
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as pip:
        assert pip.stdout is not None
        try:
            for line in pip.stdout:
                said.append(line)
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
        except BaseException:
            pip.kill()
            raise
    if pip.returncode:
        raise _failed([line.decode(errors="replace").strip() for line in said], pip.returncode)


def _failed(said: Sequence[str], code: int) -> RequirementsFailed:
    lines = [line for line in said if line and not line.startswith("WARNING: Retrying")]
    first = next((at for at, line in enumerate(lines) if line.lower().startswith("error:")), 0)
    told = "; ".join(lines[first:][-_LINES:])[-_SHOWN:] or f"pip ended with exit code {code}"
    not_its_doing = code < 0 or any(sign in line for line in said for sign in _NOT_ITS_DOING)
    return RequirementsFailed(told, "infra" if not_its_doing else "user")


def _pinned() -> dict[str, str]:
    # What MMS needs, and what that needs, as it is here.
    from importlib.metadata import PackageNotFoundError, distribution

    from packaging.requirements import Requirement

    found: dict[str, str] = {}
    left = ["mms-sdk"]
    while left:
        name = left.pop()
        if name in found:
            continue
        try:
            here = distribution(name)
        except PackageNotFoundError:  # it is for another system, or an extra
            continue
        found[name] = here.version
        for needed in map(Requirement, here.requires or ()):
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                left.append(normalised(needed.name))
    return found


def remove_unused(root: Path, *, before: float, dry_run: bool) -> list[int]:
    """Removes environments that nobody uses, nor has used for long.

    Args:
        root: The workspace.
        before: Since when nobody may have begun to use one, in seconds since 1970.
        dry_run: Only look.

    Returns:
        The sizes of those that are gone, in bytes.
    """
    found = sorted(path for path in (root / FOLDER).iterdir() if path.is_dir()) if (root / FOLDER).is_dir() else []
    sizes = (_removed(path, before=before, dry_run=dry_run) for path in found)
    return [size for size in sizes if size is not None]


def _remove_unused(root: Path, *, but: str) -> None:
    found = {path: _used_at(path) for path in root.iterdir() if path.is_dir() and path.name != but}
    newest = sorted(found, key=found.__getitem__, reverse=True)[: _KEPT - 1]
    for folder, used_at in found.items():
        if folder not in newest or used_at <= time.time() - _KEPT_DAYS * 86400:
            _removed(folder, before=time.time())


def _removed(folder: Path, *, before: float, dry_run: bool = False) -> int | None:
    # Its size; None if somebody makes or uses it, or has used it since.
    lock = _open_lock(folder.with_name(f"{folder.name}.lock"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _used_at(folder) > before:
            return None
        size = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_symlink() or path.is_file())
        if not dry_run:
            (folder / _MADE).unlink(missing_ok=True)  # first: without it, the rest is half-made to all who see it
            shutil.rmtree(folder, ignore_errors=True)
        return size
    except BlockingIOError:
        return None
    finally:
        os.close(lock)


def _used_at(folder: Path) -> float:
    try:
        return (folder / _MADE).stat().st_mtime
    except FileNotFoundError:  # half-made
        return 0.0


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
