"""What a job ran in: the revision of its code, the interpreter, the packages, the devices and the seeds."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from mms_sdk.schema.base import Schema

MAX_DIFF_CHARS = 100_000  # however it is spelled in JSON, a request has room for it
MAX_UNTRACKED = 20  # they stand in each list of jobs
MAX_NAME_CHARS = 250
_Name = Annotated[str, Field(max_length=MAX_NAME_CHARS)]


class Revision(Schema):
    """Where code came from: a commit of a git repository, and whether it was changed since.

    Attributes:
        commit: Its full name; None before the first one, or if git did not say.
        branch: None where none was checked out.
        dirty: Whether anything in the folder differs from the commit; what git ignores does not count.
        untracked: Files and folders there that git neither knows nor ignores, the first twenty of them.
        cut: Whether the changes are more than what was kept of them.
        unknown: Why git did not say, in its words.
    """

    commit: Annotated[str, Field(pattern="^[0-9a-f]{40,64}$")] | None = None
    branch: _Name | None = None
    dirty: bool = False
    untracked: Annotated[tuple[_Name, ...], Field(max_length=MAX_UNTRACKED)] = ()
    cut: bool = False
    unknown: _Name = ""


class Environment(Schema):
    """What an attempt at a job ran in.

    Attributes:
        attempt: Its number; 0 while there is none.
        revision: Of the code, when it was submitted; None if it lay in no repository.
        diff: What was changed since that commit in the folder it lay in.
        python: Implementation and version.
        executable: The interpreter.
        platform: System, release and machine.
        packages: Versions of all packages that it could import when it began, by name.
        requirements: Packages that were required beside those of the interpreter.
        given: What of the machine it was given: cores, names of GPUs, and bytes of memory.
        hash_seed: `PYTHONHASHSEED`, by which the order of sets is the same again; None if it had none.
        seeds: Of the trainings within the job, by their ids.
    """

    attempt: int
    revision: Revision | None = None
    diff: str = ""
    python: str = ""
    executable: str = ""
    platform: str = ""
    packages: dict[str, str] = {}
    requirements: tuple[str, ...] = ()
    given: dict[str, Any] = {}
    hash_seed: str | None = None
    seeds: dict[str, int] = {}
