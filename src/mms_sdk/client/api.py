"""Requests and answers: JSON in, models out, and the server's errors raised as they were there."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from pydantic import TypeAdapter, ValidationError

from mms_sdk.client.messages import Message, messages
from mms_sdk.errors import InvalidRequest, MmsError, Unavailable, from_problem
from mms_sdk.storage import files

_T = TypeVar("_T")
_AWAY_S = 60.0  # a server that is restarted or replaced is back by then
_AGAIN_S = 0.5
_SILENT_S = 45.0  # three times what a server lets pass before it says that there is nothing new


class Api:
    """The REST API behind a transport.

    Args:
        base_url: Where it is, e.g. `http://127.0.0.1:8765`.
        token: Sent as a bearer token.
        transport: In-process for an embedded workspace; None for HTTP.
    """

    def __init__(self, base_url: str, token: str, transport: httpx2.BaseTransport | None = None) -> None:
        # No timeout on reading: some answers, a deployment's for one, come when the work is done.
        timeout = httpx2.Timeout(10.0, read=None)
        headers = {"authorization": f"Bearer {token}"}
        self._http = httpx2.Client(base_url=base_url, headers=headers, timeout=timeout, transport=transport)

    def __repr__(self) -> str:
        return f"<api at {self._http.base_url}>"

    def get(self, path: str, kind: type[_T], /, **query: Any) -> _T:
        """Reads one thing."""
        known = {name: value for name, value in query.items() if value is not None}
        return self._decoded(self._ask("GET", path, params=known), kind)

    def send(self, method: str, path: str, kind: type[_T], body: Any = None) -> _T:
        """Creates or changes one thing; `body` is JSON."""
        return self._decoded(self._ask(method, path, json=body), kind)

    def delete(self, path: str) -> None:
        """Removes one thing."""
        self._ask("DELETE", path)

    def send_bytes(
        self, method: str, path: str, content: bytes, kind: type[_T], *, headers: Mapping[str, str], **query: Any
    ) -> _T:
        """Sends bytes."""
        return self._decoded(self._ask(method, path, content=content, headers=headers, params=query), kind)

    def read(self, path: str, *, accept: str = "*/*", **query: Any) -> bytes:
        """Reads bytes of a kind."""
        known = {name: value for name, value in query.items() if value is not None}
        return self._ask("GET", path, params=known, headers={"accept": accept}).content

    def download(self, path: str, to: Path, **query: Any) -> None:
        """Streams a file into `to`, which appears whole or not at all."""
        draft = to.with_name(f".{to.name}.partial")
        known = {name: value for name, value in query.items() if value is not None}
        try:
            with files.writing(to), self._reaching(), self._http.stream("GET", path, params=known) as answer:
                if answer.status_code >= 400:
                    answer.read()
                    raise _error(answer)
                with draft.open("wb") as file:
                    for piece in answer.iter_bytes():
                        file.write(piece)
            with files.writing(to):
                draft.replace(to)
        finally:
            draft.unlink(missing_ok=True)

    def follow(self, path: str, **query: Any) -> Iterator[Message]:
        """Messages of a stream as they come; where the connection ends, it is asked for what follows.

        It ends when this API is closed; who reads knows which message is the last.

        Raises:
            Unavailable: The server was away for a minute.
        """
        known = {name: value for name, value in query.items() if value is not None}
        seen, away_since = "", math.inf
        while True:
            try:
                for message in self._messages(path, known, seen):
                    yield message
                    seen, away_since = message.id, math.inf
                away_since = math.inf
            except Unavailable:
                away_since = min(away_since, time.monotonic())
                if time.monotonic() - away_since > _AWAY_S:
                    raise
            time.sleep(_AGAIN_S)
            if self._http.is_closed:
                return

    def _messages(self, path: str, query: Mapping[str, Any], seen: str) -> Iterator[Message]:
        headers = {"accept": "text/event-stream", **({"last-event-id": seen} if seen else {})}
        timeout = httpx2.Timeout(10.0, read=_SILENT_S)
        with self._reaching(), self._http.stream("GET", path, params=query, headers=headers, timeout=timeout) as answer:
            if answer.status_code >= 400:
                answer.read()
                raise _error(answer)
            yield from messages(answer.iter_bytes())

    def close(self) -> None:
        """Ends the connections, and an embedded application."""
        self._http.close()

    def _ask(self, method: str, path: str, **options: Any) -> httpx2.Response:
        try:
            request = self._http.build_request(method, path, **options)
        except (TypeError, ValueError, httpx2.InvalidURL) as error:  # what has no place in JSON or an address
            raise InvalidRequest(
                f"what is asked for is made of texts, finite numbers, lists and mappings of texts to those: {error}; "
                f"look at what was given"
            ) from error
        with self._reaching():
            answer = self._http.send(request)
        if answer.status_code >= 400:
            raise _error(answer)
        return answer

    def _decoded(self, answer: httpx2.Response, kind: type[_T]) -> _T:
        try:
            return TypeAdapter(kind).validate_json(answer.content or b"null")
        except ValidationError as error:
            raise MmsError(
                f"the server at {self._http.base_url} answered {answer.status_code} with something else than was asked "
                f"for; is it an MMS server of this version?"
            ) from error

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except httpx2.TransportError as error:
            raise Unavailable(
                f"the server at {self._http.base_url} does not answer ({error or type(error).__name__}); see that it "
                f"runs: mms serve"
            ) from error


def _error(answer: httpx2.Response) -> MmsError:
    try:
        return from_problem(answer.json())
    except (ValueError, AttributeError):
        return MmsError(f"the server answered {answer.status_code} and no reason; is it an MMS server?")
