"""What a job prints, without the secrets that it was given: they are masked before they are written anywhere.

Imports little, since a supervisor holds it for as long as its job runs.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection
from pathlib import Path
from threading import Thread

MASK = b"***"
_LEAST_BYTES = 4  # what is shorter stands in many words, and keeps nothing secret
_MOST_BYTES = 1000  # so much of a secret is looked for at once
_PIECE_BYTES = 2**16
_FINISH_S = 10.0


def hidden(values: Collection[bytes]) -> list[bytes]:
    """What is masked of secrets, the longest first: each line, and of a long line each part."""
    lines = [line.strip() for value in values for line in value.splitlines()]
    pieces = {line[start : start + _MOST_BYTES] for line in lines for start in range(0, len(line), _MOST_BYTES)}
    return sorted((piece for piece in pieces if len(piece) >= _LEAST_BYTES), key=lambda piece: (-len(piece), piece))


class Mask:
    """Masks what comes piece by piece, wherever the pieces are cut.

    Args:
        values: Of secrets.
    """

    def __init__(self, values: Collection[bytes]) -> None:
        self._hidden = hidden(values)
        self._any = re.compile(b"|".join(map(re.escape, self._hidden)) or b"(?!)")  # of the last, there is none
        self._held = b""

    def __call__(self, piece: bytes) -> bytes:
        """What may be shown by now; the beginning of a secret is held back until it is seen how it goes on."""
        whole = self._held + piece
        end = len(whole) - max((_begun(whole, secret) for secret in self._hidden), default=0)
        for found in self._any.finditer(whole):
            if found.start() < end < found.end():  # one whose end may be the beginning of another
                end = found.start()
        self._held = whole[end:]
        return self._any.sub(MASK, whole[:end])

    def rest(self) -> bytes:
        """What was held back, once nothing more comes."""
        held, self._held = self._held, b""
        return self._any.sub(MASK, held)


def _begun(text: bytes, secret: bytes) -> int:
    # How many bytes at the end of a text are the beginning of a secret, but not all of it.
    start = max(0, len(text) - len(secret) + 1)
    while (start := text.find(secret[:1], start)) >= 0:
        if secret.startswith(text[start:]):
            return len(text) - start
        start += 1
    return 0


class Log:
    """The file that a job prints to; with secrets, through a pipe that masks them.

    Args:
        path: The file.
        values: Of secrets.
    """

    def __init__(self, path: Path, values: Collection[bytes]) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._copies: Thread | None = None
        if not hidden(values):
            self.writes = self._file
            return
        self._reads, self.writes = os.pipe()
        self._copies = Thread(target=self._copy, args=(Mask(values),), daemon=True)
        self._copies.start()

    def started(self) -> None:
        """What prints has been started, or could not be: this process itself does not print."""
        os.close(self.writes)

    def finish(self) -> None:
        """Waits until all is written that was printed, once nothing is left that prints."""
        if self._copies is not None:
            self._copies.join(_FINISH_S)

    def _copy(self, mask: Mask) -> None:
        while piece := os.read(self._reads, _PIECE_BYTES):
            self._write(mask(piece))
        self._write(mask.rest())
        os.close(self._reads)
        os.close(self._file)

    def _write(self, text: bytes) -> None:
        # On a full disk what does not fit is lost, as it is of a job that prints to the file by itself.
        with contextlib.suppress(OSError):
            while text:
                text = text[os.write(self._file, text) :]
