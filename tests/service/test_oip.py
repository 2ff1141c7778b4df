"""The Open Inference Protocol v2, with the binary tensor extension, as its specification writes it."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest

import tiny_model
from asgi_calls import Answer, Service, check_problem
from tiny_model import Tiny

INFER = "/v2/models/tiny/infer"
OCTETS = ("content-type", "application/octet-stream")
LENGTH = "inference-header-content-length"
BINARY_OUT = [{"name": "scores", "parameters": {"binary_data": True}}]


def tensor(pictures: Any, **changes: Any) -> dict[str, Any]:
    return {"name": "image", "datatype": "UINT8", "shape": list(pictures.shape), **changes}


def in_binary(service: Service, asked: Any, data: bytes, *, length: str | None = None) -> Answer:
    head = json.dumps(asked).encode()
    headers = [OCTETS, (LENGTH, str(len(head)) if length is None else length)]
    return service.ask("POST", INFER, headers=headers, body=head + data, role="predict")


def output(answer: Answer) -> np.ndarray[Any, Any]:
    """The scores of an answer in either form."""
    assert answer.status == 200, answer
    split = int(answer.headers.get(LENGTH, len(answer.body)))
    (told,) = json.loads(answer.body[:split])["outputs"]
    assert (told["name"], told["datatype"]) == ("scores", "FP32")
    if "data" in told:
        return np.array(told["data"], np.float32).reshape(told["shape"])
    data = answer.body[split:]
    assert told["parameters"] == {"binary_data_size": len(data)}
    return np.array(struct.unpack(f"<{len(data) // 4}f", data), np.float32).reshape(told["shape"])


class TestAboutTheModel:
    def test_the_server_and_the_model_are_ready(self, service: Service) -> None:
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/tiny/ready"):
            assert service.ask("GET", path, role="predict").status == 200
        check_problem(service.ask("GET", "/v2/models/other/ready", role="predict"), 404)

    def test_the_server_says_what_it_is(self, service: Service) -> None:
        told = service.ask("GET", "/v2", role="predict").json()

        assert told["name"] == "mms"
        assert "binary_tensor_data" in told["extensions"]

    def test_the_model_says_what_goes_in_and_what_comes_out(self, service: Service) -> None:
        told = service.ask("GET", "/v2/models/tiny", role="predict").json()

        assert told == {
            "name": "tiny",
            "versions": ["1"],
            "platform": "mms_stablehlo",
            "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 8, 6, 3]}],
            "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 3]}],
        }


class TestInfer:
    @pytest.mark.parametrize("rows", [1, 2, 5, 8])
    @pytest.mark.parametrize("flat", [True, False])
    def test_json_and_binary_say_what_the_trained_module_says(
        self, service: Service, tiny: Tiny, rows: int, flat: bool
    ) -> None:
        pictures = tiny_model.pictures_of(rows, seed=rows)
        expected = tiny.scores(pictures)
        data = (pictures.ravel() if flat else pictures).tolist()
        size = {"binary_data_size": pictures.size}
        in_json = {"inputs": [tensor(pictures, data=data)]}
        as_bytes = {"inputs": [tensor(pictures, parameters=size)]}

        answers = [
            service.ask("POST", INFER, json=in_json, role="predict"),
            service.ask("POST", INFER, json=in_json | {"outputs": BINARY_OUT}, role="predict"),
            service.ask("POST", INFER, json=in_json | {"parameters": {"binary_data_output": True}}, role="predict"),
            in_binary(service, as_bytes, pictures.tobytes()),
            in_binary(service, as_bytes | {"outputs": BINARY_OUT}, pictures.tobytes()),
        ]

        for answer in answers:
            np.testing.assert_allclose(output(answer), expected, atol=1e-5)
        assert [LENGTH in answer.headers for answer in answers] == [False, True, True, False, True]
        np.testing.assert_array_equal(output(answers[0]), output(answers[4]))

    def test_the_id_comes_back_and_the_version_is_told(self, service: Service) -> None:
        pictures = tiny_model.pictures_of(1)
        asked = {"id": "a-42", "inputs": [tensor(pictures, data=pictures.tolist())]}

        told = service.ask("POST", INFER, json=asked).json()

        assert (told["id"], told["model_name"], told["model_version"]) == ("a-42", "tiny", "1")
        assert "id" not in service.ask("POST", INFER, json={"inputs": asked["inputs"]}).json()


P = tiny_model.pictures_of(2)
DATA = P.tolist()
BAD: dict[str, tuple[Any, int, tuple[str, ...]]] = {
    "no input": ([], 422, ("'image'",)),
    "two inputs": ([tensor(P, data=DATA)] * 2, 422, ("one input",)),
    "another input": ([tensor(P, data=DATA, name="images")], 422, ("'images'",)),
    "FP32": ([tensor(P, data=DATA, datatype="FP32")], 422, ("UINT8", "FP32")),
    "a lower-case datatype": ([tensor(P, data=DATA, datatype="uint8")], 422, ("uint8",)),
    "a datatype that is a number": ([tensor(P, data=DATA, datatype=8)], 400, ()),
    "no shape": ([{"name": "image", "datatype": "UINT8", "data": DATA}], 400, ("shape",)),
    "an empty shape": ([tensor(P, data=DATA, shape=[])], 422, ("[-1, 8, 6, 3]",)),
    "no rows": ([tensor(P, data=[], shape=[0, 8, 6, 3])], 422, ("at least one row",)),
    "no batch": ([tensor(P, data=DATA, shape=[8, 6, 3])], 422, ("[8, 6, 3]",)),
    "turned": ([tensor(P, data=DATA, shape=[2, 6, 8, 3])], 422, ("[2, 6, 8, 3]",)),
    "a negative row": ([tensor(P, data=DATA, shape=[-2, 8, 6, 3])], 400, ()),
    "negative twice": ([tensor(P, data=DATA, shape=[2, -8, -6, 3])], 400, ()),
    "a fraction of a row": ([tensor(P, data=DATA, shape=[1.5, 8, 6, 3])], 400, ()),
    "more rows than values": ([tensor(P, data=DATA, shape=[3, 8, 6, 3])], 422, ("432 values", "288")),
    "fewer rows than values": ([tensor(P, data=DATA, shape=[1, 8, 6, 3])], 422, ("144 values",)),
    "two thousand million rows": ([tensor(P, data=DATA, shape=[2**31 - 1, 8, 6, 3])], 422, ()),
    "2^63 rows": ([tensor(P, data=DATA, shape=[2**63, 8, 6, 3])], 400, ()),
    "10^400 rows": ([tensor(P, data=DATA, shape=[10**400, 8, 6, 3])], 400, ()),
    "no data": ([tensor(P)], 422, ("values",)),
    "null data": ([tensor(P, data=None)], 422, ("values",)),
    "ragged data": ([tensor(P, data=[[1, 2], [3]])], 422, ("equal lengths",)),
    "strings": ([tensor(P, data=["1"] * 288)], 422, ("numbers only",)),
    "256": ([tensor(P, data=[256] * 288)], 422, ("0 to 255",)),
    "-1": ([tensor(P, data=[-1] * 288)], 422, ("0 to 255",)),
    "a fraction": ([tensor(P, data=[0.5] * 288)], 422, ("whole",)),
    "data of another kind": ([tensor(P, data={"b64": "x"})], 400, ()),
    "parameters of another kind": ([tensor(P, data=DATA, parameters=[1])], 400, ()),
    "too many rows": (
        [tensor(np.zeros((9, 8, 6, 3), np.uint8), data=np.zeros((9, 8, 6, 3), int).tolist())],
        400,
        ("at most 8 rows",),
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_tensor_of_this_model_is_refused_with_the_reason(service: Service, what: str) -> None:
    inputs, status, words = BAD[what]

    answer = service.ask("POST", INFER, json={"inputs": inputs}, role="predict")

    check_problem(answer, status, *words)
    assert answer.json()["error"] == answer.json()["detail"]  # where the protocol's clients look

    good = service.ask("POST", INFER, json={"inputs": [tensor(P, data=DATA)]}, role="predict")
    assert good.status == 200


@pytest.mark.parametrize(
    ("outputs", "status"),
    [([{"name": "logits"}], 422), ([{"name": "scores"}, {"name": "other"}], 422), ([{}], 400), ("scores", 400)],
)
def test_an_output_the_model_has_not_got_is_refused(service: Service, outputs: Any, status: int) -> None:
    answer = service.ask("POST", INFER, json={"inputs": [tensor(P, data=DATA)], "outputs": outputs})

    check_problem(answer, status)


@pytest.mark.parametrize(
    "sizes",
    [
        {"binary_data_size": 287},
        {"binary_data_size": 289},
        {"binary_data_size": -288},
        {"binary_data_size": 0},
        {"binary_data_size": "288"},
        {"binary_data_size": None},
        {"binary_data_size": 288.5},
        {"binary_data_size": [288]},
        {"binary_data_size": 10**30},
        {},
    ],
)
@pytest.mark.parametrize("sent", [287, 288, 289, 0])
def test_binary_bytes_are_as_many_as_declared_and_as_the_shape_has(
    service: Service, sizes: dict[str, Any], sent: int
) -> None:
    answer = in_binary(service, {"inputs": [tensor(P, parameters=sizes)]}, bytes(sent))

    check_problem(answer, 422)


def test_binary_bytes_and_data_in_the_json_exclude_one_another(service: Service) -> None:
    asked = {"inputs": [tensor(P, data=DATA, parameters={"binary_data_size": 288})]}

    check_problem(in_binary(service, asked, P.tobytes()), 422, "no data in it")
    check_problem(in_binary(service, {"inputs": [tensor(P, data=DATA)]}, b"x"), 422)


@pytest.mark.parametrize("length", ["-1", "", "abc", "1.5", "99999999", "9" * 5000, "²", "+5", "0x10"])
def test_a_header_length_that_is_none_is_refused(service: Service, length: str) -> None:
    asked = {"inputs": [tensor(P, parameters={"binary_data_size": 288})]}

    check_problem(in_binary(service, asked, P.tobytes(), length=length), 400, "Inference-Header-Content-Length")


@pytest.mark.parametrize("length", ["0", "1", "10"])
def test_a_header_length_in_the_middle_of_the_json_is_refused(service: Service, length: str) -> None:
    asked = {"inputs": [tensor(P, parameters={"binary_data_size": 288})]}

    check_problem(in_binary(service, asked, P.tobytes(), length=length), 400, "JSON")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"inputs": 5}', b'{"inputs": [5]}', b"\xff\xfe", b"[" * 200_000])
def test_a_body_that_is_no_request_is_refused(service: Service, body: bytes) -> None:
    answer = service.ask("POST", INFER, headers=[("content-type", "application/json")], body=body)

    check_problem(answer, 400)
