"""The revision of a folder of code, as git tells it; nothing that lies in the folder runs for it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from mms_sdk.schema.environment import MAX_DIFF_CHARS, MAX_NAME_CHARS, MAX_UNTRACKED, Revision

_WITHIN_S = 1.0  # for what was changed; a small repository takes a fiftieth of that
_COMMIT_WITHIN_S = 0.5  # which takes no longer in a large one
_LARGE_FOR_S = 60.0  # so long one that took longer is not asked again; perhaps only the machine was busy
_large: dict[str, float] = {}  # folders, and until when
_MOST_BYTES = 2**20
_KEPT = ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM")  # which repositories a person trusts
_SETTINGS = {
    "core.fsmonitor": "false",
    "core.hooksPath": os.devnull,
    "core.quotePath": "true",
}
_DIFF = (
    *("diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color", "--no-relative", "--ignore-submodules=dirty"),
    *("--src-prefix=a/", "--dst-prefix=b/", "--", "."),
)
_STATUS = (
    *("status", "--porcelain=v2", "--branch", "-z", "--untracked-files=normal", "--no-renames", "--no-ahead-behind"),
    *("--ignore-submodules=dirty", "--", "."),
)


class _Untold(Exception):
    """Git did not say, and why."""


class _TooLong(_Untold):
    """Git did not end in time."""


def revision_of(folder: Path) -> tuple[Revision | None, str]:
    """The commit that a folder is at, and what was changed in it since, as a diff.

    Whatever goes wrong is told in the revision, and nothing is raised. Of a repository so large that git takes long to
    find what was changed, the commit is told.

    Returns:
        None if the folder lies in no repository; and the diff.
    """
    if not _in_repository(folder):
        return None, ""
    asked = _Asked(folder)
    try:
        revision = _status(asked, os.path.realpath(folder))
    except _TooLong as error:
        return asked.commit().model_copy(update={"unknown": str(error)}), ""
    except _Untold as error:
        return Revision(unknown=str(error)[:MAX_NAME_CHARS]), ""
    if not revision.dirty or revision.commit is None:
        return revision, ""
    try:
        diff = asked.git(*_DIFF)
    except _Untold as error:
        return revision.model_copy(update={"cut": True, "unknown": str(error)[:MAX_NAME_CHARS]}), ""
    if len(diff) <= MAX_DIFF_CHARS:
        return revision, diff
    return revision.model_copy(update={"cut": True}), diff[: diff.rfind("\n", 0, MAX_DIFF_CHARS) + 1]


def _status(asked: _Asked, place: str) -> Revision:
    if time.monotonic() < _large.get(place, 0.0):
        raise _TooLong(_took_longer("status", _WITHIN_S))
    try:
        return _read(asked.git(*_STATUS))
    except _TooLong:
        _large[place] = time.monotonic() + _LARGE_FOR_S
        raise


def _in_repository(folder: Path) -> bool:
    try:
        place = Path(os.path.realpath(folder))
    except OSError:  # the folder that this process works in is gone
        return False
    return any(os.path.lexists(each / ".git") for each in (place, *place.parents))


def _read(told: str) -> Revision:
    # git-status(1), porcelain format 2: one record for each thing that differs, behind those of the branch.
    commit = branch = None
    untracked, changed = [], False
    for record in told.split("\0"):
        if record.startswith("# branch.oid "):
            name = record.rpartition(" ")[2]
            commit = None if name == "(initial)" else name
        elif record.startswith("# branch.head "):
            name = record.removeprefix("# branch.head ")
            branch = None if name == "(detached)" else name[:MAX_NAME_CHARS]
        elif record.startswith("? "):
            untracked.append(record[2:][:MAX_NAME_CHARS])
        else:
            changed |= record[:2] in ("1 ", "2 ", "u ")
    dirty = changed or bool(untracked)
    try:
        return Revision(commit=commit, branch=branch, dirty=dirty, untracked=tuple(untracked[:MAX_UNTRACKED]))
    except ValueError as error:
        raise _Untold(f"git names a commit in another way: {str(commit)[:60]!r}") from error


class _Asked:
    """Git, asked about one folder within a time of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._within(_WITHIN_S)
        self._settings = dict(_SETTINGS)
        with contextlib.suppress(_Untold):  # there is none, or what else is wrong is told by the next question
            named = self.git("config", "-z", "--name-only", "--get-regexp", r"^filter\.")
            self._settings |= dict(_without_filters(named))

    def _within(self, seconds: float) -> None:
        self._within_s, self._until = seconds, time.monotonic() + seconds

    def commit(self) -> Revision:
        """The commit and the branch alone, which take a moment however large the repository is."""
        self._within(_COMMIT_WITHIN_S)
        try:
            commit, _, branch = self.git("rev-parse", "HEAD", "--abbrev-ref", "HEAD").strip().partition("\n")
            return Revision(commit=commit, branch=None if branch == "HEAD" else branch[:MAX_NAME_CHARS])
        except (_Untold, ValueError):  # before the first commit
            return Revision()

    def git(self, *words: str) -> str:
        """What git says, at most so much of it.

        Raises:
            _TooLong: It did not end in time.
            _Untold: It is not there, or refused.
        """
        process = self._started(words)
        timer = threading.Timer(max(0.0, self._until - time.monotonic()), _end, [process])
        timer.start()
        assert process.stdout is not None
        assert process.stderr is not None
        with process:
            told = process.stdout.read(_MOST_BYTES)
            more = bool(process.stdout.read(1))
            if more:
                _end(process)
            said = process.stderr.read(_MOST_BYTES).decode(errors="replace").strip()
            code = process.wait()
            timer.cancel()
        if code == -signal.SIGKILL and not more:
            raise _TooLong(_took_longer(words[0], self._within_s))
        if code != 0 and not more:
            raise _Untold(said.partition("\n")[0] or f"git {words[0]} ended with exit code {code}")
        return told.decode(errors="replace")

    def _started(self, words: tuple[str, ...]) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                ["git", "--no-optional-locks", "--no-pager", *words],
                cwd=self._folder,
                env=_variables(self._settings),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise _Untold(f"git could not be started: {error.strerror}") from error


def _took_longer(word: str, seconds: float) -> str:
    return f"git {word} did not end within {seconds:g} s"


def _without_filters(names: str) -> Iterator[tuple[str, str]]:
    # Programs that a repository's configuration names for what some of its files are stored as.
    for driver in sorted({name.rpartition(".")[0] for name in names.split("\0") if name}):
        yield from ((f"{driver}.clean", ""), (f"{driver}.process", ""), (f"{driver}.required", "false"))


def _variables(settings: dict[str, str]) -> dict[str, str]:
    seen = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name in _KEPT}
    seen |= {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": ""}  # it fetches nothing, either
    for number, (name, value) in enumerate(settings.items()):
        seen |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    return seen | {"GIT_CONFIG_COUNT": str(len(settings))}


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
