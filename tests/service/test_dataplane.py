"""`:predict`: one picture in many shapes, one answer; and nothing that is no picture gets a 5xx."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import time
from typing import Any
from urllib.parse import quote

import httpx2
import jax
import numpy as np
import pytest
from PIL import Image

import tiny_model
from asgi_calls import Answer, Service, ask, check_problem
from tiny_model import LABELS, SHAPE, Tiny

PREDICT = "/v1/models/tiny:predict"
JSON = ("content-type", "application/json")


def as_png(picture: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG")
    return out.getvalue()


def scores_in(answer: Answer) -> np.ndarray[Any, Any]:
    """Scores in the order of the labels, shape (rows, classes)."""
    assert answer.status == 200, answer
    rows = [{each["label"]: each["score"] for each in one["ranked"]} for one in answer.json()["predictions"]]
    return np.array([[row[label] for label in LABELS] for row in rows])


def answers_still(service: Service, tiny: Tiny) -> None:
    picture = tiny_model.pictures_of(1, seed=99)
    answer = service.ask("POST", PREDICT, json={"instances": picture.tolist()}, role="predict")
    np.testing.assert_allclose(scores_in(answer), tiny.scores(picture), atol=1e-5)


class TestOnePictureInManyShapes:
    def test_bytes_base64_and_lists_say_what_the_trained_module_says(self, service: Service, tiny: Tiny) -> None:
        pictures = tiny_model.pictures_of(8)
        expected = tiny.scores(pictures)
        encoded = [{"b64": base64.b64encode(as_png(picture)).decode()} for picture in pictures]

        as_bytes = [
            service.ask("POST", PREDICT, headers=[("content-type", kind)], body=as_png(picture), role="predict")
            for picture, kind in zip(pictures, ["image/png", "application/octet-stream"] * 4, strict=True)
        ]
        as_base64 = service.ask("POST", PREDICT, json={"instances": encoded}, role="predict")
        as_lists = service.ask("POST", PREDICT, json={"instances": pictures.tolist()}, role="predict")
        as_floats = service.ask("POST", PREDICT, json={"instances": pictures.astype(float).tolist()}, role="predict")

        np.testing.assert_allclose(np.concatenate([scores_in(each) for each in as_bytes]), expected, atol=1e-5)
        np.testing.assert_allclose(scores_in(as_base64), expected, atol=1e-5)
        np.testing.assert_allclose(scores_in(as_lists), expected, atol=1e-5)
        np.testing.assert_allclose(scores_in(as_floats), expected, atol=1e-5)

    def test_the_order_of_many_instances_is_kept(self, service: Service, tiny: Tiny) -> None:
        pictures = tiny_model.pictures_of(8, seed=2)
        turned = pictures[::-1]

        answer = service.ask("POST", PREDICT, json={"instances": turned.tolist()})

        np.testing.assert_allclose(scores_in(answer), tiny.scores(pictures)[::-1], atol=1e-5)

    def test_classes_are_ranked_by_falling_score_and_the_scores_add_up_to_one(self, service: Service) -> None:
        answer = service.ask("POST", PREDICT, json={"instances": tiny_model.pictures_of(8).tolist()}).json()

        assert (answer["deployment"], answer["model"], answer["version"]) == ("tiny", "tiny", 1)
        for one in answer["predictions"]:
            scores = [each["score"] for each in one["ranked"]]
            assert scores == sorted(scores, reverse=True)
            assert sum(scores) == pytest.approx(1, abs=1e-6)
            assert {each["label"] for each in one["ranked"]} == set(LABELS)

    @pytest.mark.parametrize(("top", "kept"), [(0, 3), (1, 1), (2, 2), (3, 3), (100, 3)])
    def test_top_is_how_many_of_the_best_come_back(self, service: Service, top: int, kept: int) -> None:
        body = {"instances": tiny_model.pictures_of(2).tolist()}
        whole = service.ask("POST", PREDICT, json=body).json()["predictions"]

        cut = service.ask("POST", f"{PREDICT}?top={top}", json=body).json()["predictions"]

        assert [one["ranked"] for one in cut] == [one["ranked"][:kept] for one in whole]

    @pytest.mark.parametrize("top", ["-1", "1.5", "all", "", "1e3", "1000000000", "٣", "1&top=x"])
    def test_top_is_a_number(self, service: Service, top: str) -> None:
        body = {"instances": tiny_model.pictures_of(1).tolist()}

        check_problem(service.ask("POST", f"{PREDICT}?top={quote(top, safe='&=')}", json=body), 400, "top")

    @pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
    def test_a_picture_of_another_mode_is_converted(self, service: Service, tiny: Tiny, mode: str) -> None:
        picture = Image.fromarray(tiny_model.pictures_of(1)[0]).convert(mode)
        out = io.BytesIO()
        picture.save(out, "TIFF" if mode == "CMYK" else "PNG")
        seen = np.asarray(picture.convert("RGB"))

        answer = service.ask("POST", PREDICT, headers=[("content-type", "image/x")], body=out.getvalue())

        np.testing.assert_allclose(scores_in(answer), tiny.scores(seen[None]), atol=1e-5)

    def test_the_role_predict_may_ask_and_nothing_else_is_needed(self, service: Service) -> None:
        body = {"instances": tiny_model.pictures_of(1).tolist()}

        assert service.ask("POST", PREDICT, json=body, role="predict").status == 200
        check_problem(service.ask("POST", PREDICT, json=body, role=None), 401)


def _one(change: Any) -> Any:
    picture = tiny_model.pictures_of(1)[0].tolist()
    change(picture)
    return [picture]


def _set(value: Any) -> Any:
    def change(picture: Any) -> None:
        picture[3][2][1] = value

    return _one(change)


GOOD = tiny_model.pictures_of(1)[0]
# what → (instances, status, words of the reason)
BAD: dict[str, tuple[Any, int, tuple[str, ...]]] = {
    "no instance": ([], 422, ("at least one instance",)),
    "not a list": (5, 400, ("instances",)),
    "an empty instance": ([[]], 422, ()),
    "an instance of nothing": ([[[]]], 422, ()),
    "a number": ([5], 422, ("uint8", "shape ()")),
    "a row": ([GOOD[0, 0].tolist()], 422, ("shape (3,)",)),
    "one channel": ([GOOD[..., 0].tolist()], 422, ("(height, width, channels)", "(8, 6)")),
    "two channels": ([GOOD[..., :2].tolist()], 422, ("(8, 6, 3)", "(8, 6, 2)")),
    "turned": ([GOOD.transpose(1, 0, 2).tolist()], 422, ("(8, 6, 3)", "(6, 8, 3)", "resize")),
    "too tall": ([np.zeros((9, 6, 3), int).tolist()], 422, ("(9, 6, 3)",)),
    "a batch in an instance": ([GOOD[None].tolist()], 422, ("(1, 8, 6, 3)",)),
    "a ragged row": (_one(lambda picture: picture[2].pop()), 422, ("equal lengths",)),
    "a ragged pixel": (_one(lambda picture: picture[2][1].pop()), 422, ("equal lengths",)),
    "two of different shapes": ([GOOD.tolist(), GOOD[:7].tolist()], 422, ("(7, 6, 3)",)),
    "256": (_set(256), 422, ("0 to 255", "256")),
    "-1": (_set(-1), 422, ("0 to 255", "-1")),
    "a fraction": (_set(0.5), 422, ("whole numbers",)),
    "a fraction near a whole": (_set(1.0000001), 422, ("whole numbers",)),
    "pixels from 0 to 1": ([(GOOD / 255).tolist()], 422, ("whole numbers",)),
    "a large number": (_set(2**63), 422, ("0 to 255",)),
    "a larger number": (_set(2**64), 422, ()),
    "the largest float": (_set(1.7e308), 422, ("0 to 255",)),
    "a string": (_set("5"), 422, ("numbers only",)),
    "all strings": ([GOOD.astype(str).tolist()], 422, ("numbers only",)),
    "null": (_set(None), 422, ("numbers only",)),
    "all true": ([np.ones(SHAPE, bool).tolist()], 422, ("numbers only", "bool")),
    "an object": (_set({}), 422, ("numbers only",)),
    "a list too deep": (_set([1]), 422, ("equal lengths",)),
    "another field": ([{"b65": "x"}], 422, ("b64",)),
    "two fields": ([{"b64": "x", "url": "http://127.0.0.1/"}], 422, ("b64",)),
    "a number as base64": ([{"b64": 5}], 422, ("b64",)),
    "no base64": ([{"b64": "%%%"}], 422, ("RFC 4648",)),
    "base64 that is not ASCII": ([{"b64": "ü"}], 422, ("RFC 4648",)),
    "base64 of no picture": ([{"b64": "AAAA"}], 422, ("readable", "PNG")),
    "empty base64": ([{"b64": ""}], 422, ("it is empty",)),
    "lists and pictures": ([GOOD.tolist(), {"b64": "AAAA"}], 422, ("do not mix",)),
    "a file path": (["/etc/passwd"], 422, ("numbers only",)),
    "nine rows where eight fit": (
        tiny_model.pictures_of(9).tolist(),
        400,
        ("at most 8 rows", "[1, 2, 3, 4, 6, 8]", "got 9", "bulk"),
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_input_is_refused_with_rule_and_value_and_the_next_good_one_works(
    service: Service, tiny: Tiny, what: str
) -> None:
    instances, status, words = BAD[what]

    check_problem(service.ask("POST", PREDICT, json={"instances": instances}, role="predict"), status, *words)

    answers_still(service, tiny)


def _with(number: str) -> bytes:
    return json.dumps({"instances": _set(777)}).replace("777", number).encode()


BAD_BODIES = {
    "nothing": b"",
    "no JSON": b"x",
    "half of it": b'{"instances": [[[',
    "no instances": b"{}",
    "a list": b"[]",
    "another field": b'{"instances": [[[0]]], "parameters": {}}',
    "NaN": _with("NaN"),
    "Infinity": _with("-Infinity"),
    "1e999": _with("1e999"),
    "-1e999": _with("-1e999"),
    "5,000 digits": _with("9" * 5000),
    "400 digits": _with("9" * 400),
    "a trailing comma": _with("1,"),
    "hexadecimal": _with("0x1"),
    "trailing garbage": _with("1") + b"}",
    "bad UTF-8": b'{"instances": [{"b64": "\xff"}]}',
    "bad UTF-8 in a name": b'{"\xff": 1}',
    "100,000 deep": b'{"instances": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "70 deep": b'{"instances": ' + b"[" * 70 + b"1" + b"]" * 70 + b"}",
    "a million empty instances": b'{"instances": [' + b"[]," * 1_000_000 + b"[]]}",
    "UTF-16": '{"instances": [[[0]]]}'.encode("utf-16"),
}


@pytest.mark.parametrize("what", BAD_BODIES)
def test_a_body_that_is_no_request_is_refused_and_the_next_good_one_works(
    service: Service, tiny: Tiny, what: str
) -> None:
    answer = service.ask("POST", PREDICT, headers=[JSON], body=BAD_BODIES[what])

    assert answer.status in (400, 422), answer
    check_problem(answer, answer.status)
    assert len(answer.body) < 3000
    answers_still(service, tiny)


@pytest.mark.parametrize("kind", ["", "text/plain", "multipart/mixed", "application/x-npy", "application/pickle"])
def test_another_content_type_is_refused(service: Service, kind: str) -> None:
    answer = service.ask("POST", PREDICT, headers=[("content-type", kind)], body=b"x")

    check_problem(answer, 415, "application/json", "image/*")


class TestPictures:
    @pytest.mark.parametrize(
        ("what", "words"),
        [
            (b"", ("it is empty",)),
            (b"\x89PNG\r\n\x1a\n", ("readable",)),
            (as_png(GOOD)[:60], ("readable",)),
            (as_png(GOOD)[:-40], ("readable",)),
            (b"GIF89a" + b"\xff" * 100, ("readable",)),
            (b"%PDF-1.7 x", ("readable",)),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n", ("readable",)),
            (b"<svg xmlns='http://www.w3.org/2000/svg'/>", ("readable",)),
            (bytes(1000), ("readable",)),
        ],
    )
    def test_what_does_not_decode_is_refused(
        self, service: Service, tiny: Tiny, what: bytes, words: tuple[str, ...]
    ) -> None:
        answer = service.ask("POST", PREDICT, headers=[("content-type", "image/png")], body=what)

        check_problem(answer, 422, *words)
        assert b"BytesIO" not in answer.body
        answers_still(service, tiny)

    def test_a_flipped_bit_gives_an_answer_or_a_reason_and_never_a_5xx(self, service: Service) -> None:
        png = as_png(GOOD)
        rng = np.random.default_rng(0)
        for _ in range(100):
            damaged = bytearray(png)
            damaged[rng.integers(len(png))] ^= 1 << int(rng.integers(8))

            answer = service.ask("POST", PREDICT, headers=[("content-type", "image/png")], body=bytes(damaged))

            assert answer.status in (200, 422), answer

    def test_a_picture_of_another_size_is_refused_with_both(self, service: Service) -> None:
        png = as_png(np.zeros((9, 7, 3), np.uint8))

        answer = service.ask("POST", PREDICT, headers=[("content-type", "image/png")], body=png)

        check_problem(answer, 422, "(8, 6, 3)", "(9, 7, 3)")

    @pytest.mark.parametrize(("side", "pixels"), [(8_000, "64,000,000"), (12_000, "144000000"), (30_000, "900000000")])
    def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded(
        self, service: Service, tiny: Tiny, side: int, pixels: str
    ) -> None:
        out = io.BytesIO()
        Image.new("1", (side, side)).save(out, "PNG")
        assert len(out.getvalue()) < 500_000

        answer = service.ask("POST", PREDICT, headers=[("content-type", "image/png")], body=out.getvalue())

        check_problem(answer, 422, "50,000,000", pixels)
        answers_still(service, tiny)


def form(*parts: bytes, boundary: str = "xyz", end: str = "--") -> bytes:
    """As browsers and curl write it."""
    head = b'\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    lines = [b"--" + boundary.encode() + head + part + b"\r\n" for part in parts]
    return b"".join(lines) + f"--{boundary}{end}\r\n".encode()


def as_form(service: Service, body: bytes, kind: str = "multipart/form-data; boundary=xyz") -> Answer:
    return service.ask("POST", PREDICT, headers=[("content-type", kind)], body=body, role="predict")


class TestForms:
    def test_the_pictures_of_a_form_are_answered_in_their_order(self, service: Service, tiny: Tiny) -> None:
        pictures = tiny_model.pictures_of(8, seed=11)

        answer = as_form(service, form(*map(as_png, pictures)), 'multipart/form-data; charset=utf-8; boundary="xyz"')

        np.testing.assert_allclose(scores_in(answer), tiny.scores(pictures), atol=1e-5)

    def test_a_form_as_an_http_library_writes_it(self, service: Service, tiny: Tiny) -> None:
        pictures = tiny_model.pictures_of(3, seed=12)
        files = [("picture", (f"{at}.png", as_png(picture), "image/png")) for at, picture in enumerate(pictures)]
        request = httpx2.Request("POST", "http://localhost/", files=files)

        answer = as_form(service, request.read(), request.headers["content-type"])

        np.testing.assert_allclose(scores_in(answer), tiny.scores(pictures), atol=1e-5)

    @pytest.mark.parametrize(
        ("body", "kind", "status", "word"),
        [
            (form(as_png(GOOD)), "multipart/form-data", 400, "boundary"),
            (form(as_png(GOOD)), "multipart/form-data; boundary=", 400, "boundary"),
            (form(as_png(GOOD)), "multipart/form-data; boundary=" + "x" * 71, 400, "boundary"),
            (form(as_png(GOOD)), "multipart/form-data; boundary=abc", 400, "ends with its boundary"),
            (form(as_png(GOOD), end=""), "multipart/form-data; boundary=xyz", 400, "ends with its boundary"),
            (form(as_png(GOOD))[:60], "multipart/form-data; boundary=xyz", 400, "ends with its boundary"),
            (b"", "multipart/form-data; boundary=xyz", 400, "ends with its boundary"),
            (b"--xyz--", "multipart/form-data; boundary=xyz", 400, "at least one part"),
            (b"--xyz\r\n\r\nx\r\n--xyz--", "multipart/form-data; boundary=xyz", 400, "Content-Disposition"),
            (b"--xyz\r\nContent-Disposition: x\r\n--xyz--", "multipart/form-data; boundary=xyz", 400, "empty line"),
            (form(*[b"x"] * 9), "multipart/form-data; boundary=xyz", 400, "at most 8 rows"),
            (form(*[b""] * 100_000), "multipart/form-data; boundary=xyz", 400, "got 100000"),
            (form(as_png(GOOD), b"no picture"), "multipart/form-data; boundary=xyz", 422, "readable"),
        ],
        ids=lambda value: value[:20] if isinstance(value, str) else None,
    )
    def test_what_is_no_form_of_pictures_is_refused(
        self, service: Service, tiny: Tiny, body: bytes, kind: str, status: int, word: str
    ) -> None:
        check_problem(as_form(service, body, kind), status, word)
        answers_still(service, tiny)


class TestDeadlines:
    @pytest.mark.parametrize("deadline", ["1", "250", "9999999"])
    def test_a_deadline_is_read(self, service: Service, deadline: str) -> None:
        body = {"instances": tiny_model.pictures_of(1).tolist()}

        answer = service.ask("POST", PREDICT, json=body, headers=[("x-mms-deadline-ms", deadline)])

        assert answer.status in ((200,) if deadline != "1" else (200, 504)), answer

    @pytest.mark.parametrize("deadline", ["0", "-1", "1.5", "abc", "", "10000000", " 5", "1e3", "²", "9" * 5000])
    def test_what_is_no_deadline_is_refused(self, service: Service, deadline: str) -> None:
        body = {"instances": tiny_model.pictures_of(1).tolist()}

        answer = service.ask("POST", PREDICT, json=body, headers=[("x-mms-deadline-ms", deadline)])

        check_problem(answer, 400, "X-MMS-Deadline-Ms")

    def test_an_answer_that_is_not_ready_in_time_is_a_504(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batcher = _batcher(service)
        right = batcher._scores
        monkeypatch.setattr(batcher, "_scores", lambda rows: time.sleep(0.3) or right(rows))
        body = {"instances": tiny_model.pictures_of(1).tolist()}

        answer = service.ask("POST", PREDICT, json=body, headers=[("x-mms-deadline-ms", "50")])

        check_problem(answer, 504, "within 0.05 s", "X-MMS-Deadline-Ms")

    def test_a_full_queue_is_a_503_that_says_when_to_come_again(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_batcher(service), "_max_queue_rows", 0)
        body = {"instances": tiny_model.pictures_of(1).tolist()}

        answer = service.ask("POST", PREDICT, json=body)

        check_problem(answer, 503, "rows waiting")
        assert int(answer.headers["retry-after"]) >= 1

    @pytest.mark.parametrize(
        ("priority", "role", "status"),
        [
            ("low", "predict", 200),
            ("normal", "predict", 200),
            ("high", "predict", 403),
            ("high", "viewer", 403),
            ("high", "editor", 200),
            ("HIGH", "editor", 400),
            ("1", "predict", 400),
            ("", "predict", 400),
        ],
    )
    def test_a_priority_is_one_of_three_and_only_editors_go_before_others(
        self, service: Service, priority: str, role: str, status: int
    ) -> None:
        body = {"instances": tiny_model.pictures_of(1).tolist()}

        answer = service.ask("POST", PREDICT, json=body, role=role, headers=[("x-mms-priority", priority)])

        assert answer.status == status, answer
        if status != 200:
            check_problem(answer, status, "X-MMS-Priority" if status == 400 else "editor")

    def test_scores_that_are_no_numbers_are_refused(
        self, service: Service, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(_batcher(service), "_scores", lambda rows: np.full((len(rows), 3), np.nan, np.float32))

            answer = service.ask("POST", PREDICT, json={"instances": tiny_model.pictures_of(1).tolist()})

        check_problem(answer, 422, "not finite")
        answers_still(service, tiny)


def test_a_thousand_requests_at_once_get_each_its_own_answer(service: Service, tiny: Tiny) -> None:
    pictures = tiny_model.pictures_of(1000, seed=5)
    expected = tiny.scores(pictures)
    before = service.ask("GET", "/v1/deployments/tiny").json()

    async def all_at_once() -> list[Answer]:
        asked = [service.asking("POST", PREDICT, json={"instances": [one.tolist()]}) for one in pictures]
        return await asyncio.gather(*asked)

    answers = service.runner.run(all_at_once())

    np.testing.assert_allclose(np.concatenate([scores_in(each) for each in answers]), expected, atol=1e-5)
    told = service.ask("GET", "/v1/deployments/tiny").json()
    assert told["requests"] - before["requests"] == 1000
    assert told["rows"] - before["rows"] == 1000
    assert told["compiles_after_ready"] == 0


def test_nothing_is_compiled_however_many_rows_come(service: Service) -> None:
    compiled: list[str] = []

    def note(event: str, duration_s: float, **_: Any) -> None:
        if "compile" in event:
            compiled.append(event)

    rng = np.random.default_rng(3)
    sizes = [*range(1, 9), *rng.integers(1, 9, 40).tolist()]
    pictures = tiny_model.pictures_of(8).tolist()
    jax.monitoring.register_event_duration_secs_listener(note)
    try:

        async def some_at_once() -> list[Answer]:
            asked = [service.asking("POST", PREDICT, json={"instances": pictures[:size]}) for size in sizes]
            return await asyncio.gather(*asked)

        for size in sizes:
            assert service.ask("POST", PREDICT, json={"instances": pictures[:size]}).status == 200
        assert {answer.status for answer in service.runner.run(some_at_once())} == {200}
        check_problem(service.ask("POST", PREDICT, json={"instances": pictures * 2}), 400, "[1, 2, 3, 4, 6, 8]")
    finally:
        jax.monitoring.unregister_event_duration_listener(note)

    assert compiled == []
    told = service.ask("GET", "/metrics").body.decode()
    assert 'mms_deployment_compiles_after_ready{deployment="tiny",version="1"} 0.0' in told
    counts = _batcher(service).counts
    assert f'mms_deployment_requests_total{{deployment="tiny",end="answered",version="1"}} {counts.requests}.0' in told
    assert f'mms_deployment_batches_total{{deployment="tiny",version="1"}} {counts.batches}.0' in told
    assert "mms_request_seconds_bucket" in told


class TestGone:
    """Clients that hang up before their answer."""

    def test_a_request_whose_client_hung_up_leaves_the_queue_and_costs_the_device_nothing(
        self, service: Service, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batcher = _batcher(service)
        right, asked, busy, go = batcher._scores, [], threading.Event(), threading.Event()

        def scores(rows: Any) -> Any:
            asked.extend(rows)
            busy.set()
            return go.wait(60) and right(rows)

        monkeypatch.setattr(batcher, "_scores", scores)
        kept, dropped = tiny_model.pictures_of(2, seed=7)
        left = batcher.counts.left

        async def hang_up() -> list[Any]:
            first = asyncio.ensure_future(service.asking("POST", PREDICT, json={"instances": [kept.tolist()]}))
            await asyncio.to_thread(busy.wait, 60)
            head = [("host", "localhost"), JSON, ("authorization", f"Bearer {service.tokens['predict']}")]
            gone = asyncio.Event()
            body = json.dumps({"instances": [dropped.tolist()]}).encode()
            second = asyncio.ensure_future(ask(service.app, "POST", PREDICT, headers=head, body=body, gone=gone))
            while not batcher.queued_rows():
                await asyncio.sleep(0.001)
            gone.set()
            ended = await second
            assert batcher.queued_rows() == 0
            go.set()
            return [await first, ended]

        answered, ended = service.runner.run(hang_up())

        np.testing.assert_allclose(scores_in(answered), tiny.scores(kept[None]), atol=1e-5)
        assert (ended.status, ended.body) == (499, b"")
        assert len(asked) == 1
        assert batcher.counts.left == left + 1

    def test_what_is_computed_already_is_not_harmed_by_one_that_hangs_up(
        self, service: Service, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batcher = _batcher(service)
        right = batcher._scores
        monkeypatch.setattr(batcher, "_scores", lambda rows: time.sleep(0.2) or right(rows))
        pictures = tiny_model.pictures_of(2, seed=8)

        async def hang_up() -> tuple[Answer, Answer]:
            head = [("host", "localhost"), JSON, ("authorization", f"Bearer {service.tokens['predict']}")]
            gone = asyncio.Event()
            bodies = [json.dumps({"instances": [picture.tolist()]}).encode() for picture in pictures]
            asking = asyncio.gather(
                ask(service.app, "POST", PREDICT, headers=head, body=bodies[0], gone=gone),
                ask(service.app, "POST", PREDICT, headers=head, body=bodies[1]),
            )
            await asyncio.sleep(0.1)
            gone.set()
            return await asking

        ended, answered = service.runner.run(hang_up())

        assert ended.status == 499
        np.testing.assert_allclose(scores_in(answered), tiny.scores(pictures[1:]), atol=1e-5)


def test_a_model_that_is_not_deployed_is_a_404_that_says_what_is(service: Service) -> None:
    answer = service.ask("POST", "/v1/models/other:predict", json={"instances": [[[0]]]})

    check_problem(answer, 404, "'other'", "'tiny'", "ws.deployments.create")


def _batcher(service: Service) -> Any:
    return service.app._app._deployments.get("tiny").batcher
