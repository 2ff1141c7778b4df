"""P6: every request is answered or refused in time, whatever comes and whatever the model does; and with its own."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest

import tiny_model
from asgi_calls import Answer, Service, check_problem
from mms_sdk.service import dataplane
from tiny_model import Tiny

INFER = "/v2/models/tiny/infer"
PREDICT = "/v1/models/tiny:predict"
LENGTH = "inference-header-content-length"


def batcher_of(service: Service) -> Any:
    return service.app._app._deployments.get("tiny").batcher


async def infer(service: Service, picture: Any, *, deadline_ms: int = 30_000) -> Answer:
    """One picture, in binary."""
    tensor = {
        "name": "image",
        "datatype": "UINT8",
        "shape": [1, *picture.shape],
        "parameters": {"binary_data_size": picture.size},
    }
    outputs = [{"name": "scores", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
    headers = [
        ("content-type", "application/octet-stream"),
        (LENGTH, str(len(head))),
        ("x-mms-deadline-ms", str(deadline_ms)),
    ]
    return await service.asking("POST", INFER, headers=headers, body=head + picture.tobytes(), role="predict")


def scores_in(answer: Answer) -> Any:
    assert answer.status == 200, answer
    return np.frombuffer(answer.body[int(answer.headers[LENGTH]) :], "<f4")


@pytest.mark.slow
def test_of_fifty_thousand_requests_none_gets_the_answer_of_another(service: Service, tiny: Tiny) -> None:
    pictures = tiny_model.pictures_of(50_000, seed=31)
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)
    found = np.full((len(pictures), 3), np.nan, np.float32)
    left = iter(range(len(pictures)))

    async def client() -> None:
        for at in left:
            found[at] = scores_in(await infer(service, pictures[at]))

    async def everybody() -> None:
        await asyncio.gather(*(client() for _ in range(200)))

    service.runner.run(everybody())

    expected = tiny.scores(pictures)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    order = expected[np.lexsort(expected.T)]
    apart = np.abs(np.diff(order, axis=0)).max(1)
    assert np.median(apart) > 2e-5  # a swap would show
    assert service.ask("GET", "/v1/deployments/tiny").json()["compiles_after_ready"] == 0


@pytest.mark.slow
def test_under_ten_times_what_the_device_can_do_it_does_what_it_can_and_refuses_the_rest(
    service: Service, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher, deadline_s, batch_s, lasts_s = batcher_of(service), 0.5, 0.05, 4.0
    right = batcher._scores
    monkeypatch.setattr(batcher, "_scores", lambda rows: time.sleep(batch_s) or right(rows))
    pictures = tiny_model.pictures_of(500, seed=32)
    expected = tiny.scores(pictures)

    async def peak() -> float:
        began, answered = time.monotonic(), 0
        while (elapsed := time.monotonic() - began) < 2:
            answers = await asyncio.gather(*(infer(service, pictures[at]) for at in range(32)))
            answered += sum(answer.status == 200 for answer in answers)
        return answered / elapsed

    async def one(at: int) -> tuple[int, float]:
        began = time.monotonic()
        answer = await infer(service, pictures[at], deadline_ms=round(1000 * deadline_s))
        if answer.status == 200:
            np.testing.assert_allclose(scores_in(answer), expected[at], atol=2e-5)
        if answer.status == 503:
            assert int(answer.headers["retry-after"]) >= 1
        return answer.status, time.monotonic() - began

    async def storm(requests_s: float) -> tuple[list[tuple[int, float]], float]:
        began, sent = time.monotonic(), []
        while (now := time.monotonic() - began) < lasts_s:
            while len(sent) < now * requests_s:
                sent.append(asyncio.ensure_future(one(len(sent) % len(pictures))))
            await asyncio.sleep(0.005)
        return await asyncio.gather(*sent), time.monotonic() - began

    before = service.runner.run(peak())
    ends, took_s = service.runner.run(storm(10 * before))

    statuses = Counter(status for status, _ in ends)
    assert set(statuses) <= {200, 503, 504}
    assert statuses[200] + statuses[503] + statuses[504] == len(ends)
    assert len(ends) > 5 * before * lasts_s  # it was an overload
    goodput = statuses[200] / took_s
    late = max(seconds for status, seconds in ends if status == 200)
    print(
        f"peak {before:.0f}/s; sent {len(ends)} in {took_s:.1f} s; {dict(statuses)}; goodput {goodput:.0f}/s "
        f"({goodput / before:.2f} of the peak); slowest answer {late:.2f} s of {deadline_s} s"
    )
    assert goodput >= 0.8 * before
    assert late < deadline_s + 0.25  # what a busy loop takes to hand it over


def _raises(rows: Any) -> Any:
    raise ZeroDivisionError("boom")


# what the model does → status, words
SPOILT: dict[str, tuple[Any, int, tuple[str, ...]]] = {
    "raises": (_raises, 503, ("failed on this input", "boom")),
    "too few rows": (lambda rows: np.zeros((0, 3), np.float32), 503, ("0 answers to 1 rows",)),
    "one number": (lambda rows: np.float32(1), 503, ("failed on this input",)),
    "nothing": (lambda rows: None, 503, ("failed on this input",)),
    "words": (lambda rows: np.array(["x"] * len(rows)), 503, ("failed on this input",)),
    "NaN": (lambda rows: np.full((len(rows), 3), np.nan), 422, ("not finite",)),
    "infinity": (lambda rows: np.full((len(rows), 3), np.inf), 422, ("not finite",)),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_model_that_fails_is_told_apart_from_a_server_that_does(
    service: Service, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    scores, status, words = SPOILT[what]
    picture = tiny_model.pictures_of(1)
    with monkeypatch.context() as patch:
        patch.setattr(batcher_of(service), "_scores", scores)

        answer = service.ask("POST", PREDICT, json={"instances": picture.tolist()})

    check_problem(answer, status, *words)
    assert ("retry-after" in answer.headers) == (status == 503)
    np.testing.assert_allclose(
        scores_in(service.runner.run(infer(service, picture[0]))), tiny.scores(picture)[0], atol=1e-5
    )


def test_a_model_that_hangs_is_not_ready_and_its_requests_end_in_time(
    service: Service, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher, go = batcher_of(service), threading.Event()
    right = batcher._scores
    monkeypatch.setattr(batcher, "_scores", lambda rows: go.wait(60) and right(rows))
    monkeypatch.setattr(dataplane, "STUCK_AFTER_S", 0.05)
    picture = tiny_model.pictures_of(1)[0]
    try:
        began = time.monotonic()
        check_problem(service.runner.run(infer(service, picture, deadline_ms=100)), 504, "within 0.1 s")
        assert time.monotonic() - began < 5
        check_problem(service.ask("GET", "/v2/models/tiny/ready"), 503, "has computed one batch for", "restart")
    finally:
        go.set()
    assert service.runner.run(infer(service, picture)).status == 200
    assert service.ask("GET", "/v2/models/tiny/ready").status == 200
