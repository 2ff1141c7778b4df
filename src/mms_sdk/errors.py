"""Every error MMS raises on purpose.

Each class keeps its builtin meaning, so code that knows nothing of MMS can still catch it, and knows its HTTP
status, so the server, the CLI and the magics say the same thing. A message holds the rule, the value seen and the
next step.

```
MmsError
├── InvalidRequest (ValueError)        400   a value that breaks a rule
│   ├── InvalidName                    400   a name MMS does not accept
│   └── InvalidInput                   422   a prediction input of the wrong shape, dtype or content
├── Unauthenticated (PermissionError)  401   no token, or one nobody knows
├── Forbidden (PermissionError)        403   a known token without the role, or a refused origin, host or path
├── NotFound (KeyError)                404
│   ├── DatasetNotFound, SnapshotNotFound, SplitNotFound, ColumnNotFound
│   ├── JobNotFound, CheckpointNotFound
│   └── ModelNotFound, DeploymentNotFound, BackupNotFound
├── MethodNotAllowed                   405
├── Conflict                           409   somebody else was first
│   └── SnapshotConflict
├── TooLarge (ValueError)              413
├── UnsupportedMediaType (ValueError)  415
├── DataError (ValueError)             422   data that cannot become a dataset or be trained on
│   └── NothingToIngest
├── Damaged (OSError)                  500   bytes on disk that are not the bytes written
├── NotWritable (OSError)              500   no permission, or a read-only place
├── Overloaded                         503   the queue is full; try again after `retry_after_s`
│   └── RateLimited                    429   you ask too much; try again after `retry_after_s`
├── Unavailable (ConnectionError)      503   a server that cannot be reached, or is not ready
├── DeadlineExceeded (TimeoutError)    504
├── StorageFull (OSError)              507
├── TrainingFailed (RuntimeError)      500   training met something it must not continue from
├── JobFailed (RuntimeError)           500   the job you waited for ended with an error
└── MissingExtra (ImportError)         500   an optional dependency, with the pip line
```
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar


class MmsError(Exception):
    """The root of everything MMS raises on purpose."""

    status: ClassVar[int] = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:  # KeyError would print the repr
        return self.message

    @classmethod
    def code(cls) -> str:
        """The error's name on the wire, e.g. `dataset-not-found`."""
        return re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()


class InvalidRequest(MmsError, ValueError):
    """A value that breaks a rule."""

    status = 400


class InvalidName(InvalidRequest):
    """A name MMS does not accept."""


class InvalidInput(InvalidRequest):
    """A prediction input of the wrong shape, dtype or content."""

    status = 422


class Unauthenticated(MmsError, PermissionError):
    """No token, or one nobody knows."""

    status = 401


class Forbidden(MmsError, PermissionError):
    """A known token without the role, or a refused origin, host or path."""

    status = 403


class NotFound(MmsError, KeyError):
    """Something that does not exist."""

    status = 404


class DatasetNotFound(NotFound):
    """No dataset of that name."""


class SnapshotNotFound(NotFound):
    """No snapshot of that number."""


class SplitNotFound(NotFound):
    """No split of that name in the snapshot."""


class ColumnNotFound(NotFound):
    """No column of that name in the snapshot."""


class JobNotFound(NotFound):
    """No job of that id."""


class CheckpointNotFound(NotFound):
    """No good checkpoint where one was asked for."""


class ModelNotFound(NotFound):
    """No model, version or alias of that name."""


class BackupNotFound(NotFound):
    """No backup of that id, or none at all."""


class DeploymentNotFound(NotFound):
    """No deployment of that name."""


class MethodNotAllowed(MmsError):
    """A path that exists, asked with a method it does not have.

    Args:
        message: Which methods it has, and the one asked with.
        allowed: Those it has.
    """

    status = 405

    def __init__(self, message: str, *, allowed: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.allowed = tuple(allowed)


class Conflict(MmsError):
    """Somebody else was first."""

    status = 409


class SnapshotConflict(Conflict):
    """Another commit took the snapshot this one was based on, and the two do not commute."""


class TooLarge(MmsError, ValueError):
    """More bytes than the limit."""

    status = 413


class UnsupportedMediaType(MmsError, ValueError):
    """A content type the route does not read."""

    status = 415


class DataError(MmsError, ValueError):
    """Data that cannot become a dataset or cannot be trained on."""

    status = 422


class NothingToIngest(DataError):
    """A source in which no usable row was found."""


class Damaged(MmsError, OSError):
    """Bytes on disk that are not the bytes that were written."""


class NotWritable(MmsError, OSError):
    """No permission to write, or a read-only place."""


class StorageFull(MmsError, OSError):
    """The disk, or the quota on it, is full."""

    status = 507


class Overloaded(MmsError):
    """The queue is full.

    Args:
        message: What is full and how full.
        retry_after_s: Seconds after which trying again makes sense.
    """

    status = 503

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(Overloaded):
    """More requests than the one who asks may make."""

    status = 429


class Unavailable(MmsError, ConnectionError):
    """A server that cannot be reached, or a part of it that is not ready."""

    status = 503


class DeadlineExceeded(MmsError, TimeoutError):
    """The answer would have come after the deadline."""

    status = 504


class TrainingFailed(MmsError, RuntimeError):
    """Training met something it must not continue from."""


class JobFailed(MmsError, RuntimeError):
    """The job that was waited for ended with an error."""


class MissingExtra(MmsError, ImportError):
    """An optional dependency that is not installed, with the pip line that installs it."""

    def __init__(self, package: str, *, extra: str) -> None:
        super().__init__(f'this needs {package}, which is not installed; run: pip install "mms-sdk[{extra}]"')


def _tree(root: type[MmsError]) -> dict[str, type[MmsError]]:
    found = {root.code(): root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


def to_problem(error: MmsError) -> dict[str, Any]:
    """An error as problem+json (RFC 9457), from which `from_problem` rebuilds it."""
    code = error.code()
    return {"type": f"urn:mms:{code}", "title": code.replace("-", " "), "status": error.status, "detail": error.message}


def from_problem(problem: dict[str, Any]) -> MmsError:
    """Rebuilds the error that a server wrote as problem+json (RFC 9457).

    Args:
        problem: The decoded body; `type` ends with the error's code, `detail` is its message.
    """
    code = str(problem.get("type", "")).rpartition(":")[2]
    message = str(problem.get("detail") or problem.get("title") or "the server gave no reason")
    kind = _tree(MmsError).get(code, MmsError)
    if kind is MissingExtra:
        return MmsError(message)
    return kind(message)
