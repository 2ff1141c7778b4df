"""Files sent to where the workspace is: whole or not at all, whatever happens on the way."""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from over_http import serving

import mms_sdk as mms
from mms_sdk.client import uploads as client
from mms_sdk.client.api import Api
from mms_sdk.errors import Conflict, Forbidden, InvalidRequest, NotFound, Unavailable
from mms_sdk.schema.upload import Upload, UploadedFile
from mms_sdk.service.app import create_app
from mms_sdk.settings import ServerSettings
from mms_sdk.storage import uploads as storage
from mms_sdk.storage.workspace import Workspace
from tiny_model import Tiny

Client = mms.WorkspaceClient
RNG = np.random.default_rng(0)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(client, "PIECE_BYTES", 1000)
    return 1000


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files of many sizes, in folders, with odd names."""
    root = tmp_path / "some files"
    for name, size in {
        "a/1.bin": 10,
        "a/empty.bin": 0,
        "a/b/exact.bin": 2000,
        "ü ☃/100%.bin": 4321,
        "x?y#z.bin": 999,
        ".hidden": 5,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(RNG.bytes(size))
    return root


def held(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def kept(folder: Path, upload: client.Upload) -> Path:
    return folder / "uploads" / upload.id / "files"


@pytest.mark.usefixtures("small_pieces")
def test_a_folder_arrives_byte_for_byte(ws: Client, folder: Path, tree: Path) -> None:
    sent = ws.uploads.send(tree)

    assert held(kept(folder, sent) / tree.name) == held(tree)
    assert (sent.files, sent.bytes) == (6, sum(map(len, held(tree).values())))
    assert sent.path == os.fspath(sent) == f"upload:{sent.id}/some files"
    assert repr(sent) == f"<upload {sent.path}: 6 files of 7,335 bytes, complete>"
    assert sent.id in repr(ws.uploads.list())
    assert all(path.stat().st_mode & 0o77 == 0 for path in kept(folder, sent).rglob("*"))
    sent.remove()
    assert not kept(folder, sent).parent.exists()
    with pytest.raises(NotFound, match="send it again"):
        sent.remove()


def test_sent_pictures_become_a_dataset_though_the_server_reads_no_such_folder(
    over_http: Client, embedded: Client, tiny: Tiny
) -> None:
    sent = over_http.uploads.send(tiny.photos)

    there = over_http.datasets.ingest("sent", mms.ImageFolder(sent), progress=False)
    here = embedded.datasets.ingest("unsent", mms.ImageFolder(tiny.photos), progress=False)

    assert (there.rows, there.num_classes) == (here.rows, here.num_classes)
    mine, theirs = embedded.datasets.get("sent").open(), here.open()
    rows = range(here.rows)
    np.testing.assert_array_equal(mine.gather("image", rows), theirs.gather("image", rows))
    assert over_http.jobs.list(2)[1].record.spec["source"]["path"] == str(
        kept(embedded.folder, sent) / tiny.photos.name
    )


def test_arrays_and_a_sent_table_become_the_same_dataset_over_http(over_http: Client, tmp_path: Path) -> None:
    arrays = {"x": RNG.random(40), "n": np.arange(40)}
    (tmp_path / "rows.csv").write_text("x,n\n" + "".join(f"{x!r},{n}\n" for x, n in zip(*arrays.values(), strict=True)))

    of_arrays = over_http.datasets.ingest("arrays-sent", arrays, progress=False)
    of_table = over_http.datasets.ingest("table-sent", over_http.uploads.send(tmp_path / "rows.csv"), progress=False)

    assert of_arrays.rows == of_table.rows == 40
    for made in (of_arrays, of_table):
        assert {"x", "n"} <= {column.name for column in made.info.columns}


def test_what_is_not_complete_or_gone_is_not_read(over_http: Client) -> None:
    begun = over_http._api.send("POST", "/v1/uploads", Upload, {"name": "photos"})
    with pytest.raises(Conflict, match="is complete"):
        over_http.datasets.ingest("x", mms.ImageFolder(begun.path), progress=False)
    with pytest.raises(Conflict, match="has none yet"):
        over_http._api.send("POST", f"/v1/uploads/{begun.id}:complete", Upload)
    with pytest.raises(NotFound, match="no upload"):
        over_http.datasets.ingest("x", mms.ImageFolder("upload:01J00000000000000000000000/photos"), progress=False)
    with pytest.raises((InvalidRequest, Forbidden, NotFound)):
        over_http.datasets.ingest("x", mms.ImageFolder(f"upload:{begun.id}/../../../etc"), progress=False)


def test_there_is_something_to_send(ws: Client, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="there is no"):
        ws.uploads.send(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Conflict, match="none yet"):
        ws.uploads.send(tmp_path / "empty")


@pytest.mark.usefixtures("small_pieces")
def test_one_that_was_cut_off_goes_on_where_it_was(
    ws: Client, folder: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sends, sent = Api.send_bytes, list[str]()

    def cut_off(api: Api, method: str, path: str, content: bytes, *rest: Any, **more: Any) -> Any:
        if len(sent) == 7:
            raise KeyboardInterrupt
        sent.append(path)
        return sends(api, method, path, content, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(client, "_AT_ONCE", 1)
        patch.setattr(Api, "send_bytes", cut_off)
        with pytest.raises(KeyboardInterrupt) as raised:
            ws.uploads.send(tree)
    (note,) = raised.value.__notes__
    (upload,) = [each.id for each in ws.uploads.list() if each.id in note]
    before = sum(map(len, held(folder / "uploads" / upload / "files").values()))
    assert before > 0

    again = list[int]()

    def counted(api: Api, method: str, path: str, content: bytes, *rest: Any, **more: Any) -> Any:
        again.append(len(content))
        return sends(api, method, path, content, *rest, **more)

    monkeypatch.setattr(Api, "send_bytes", counted)
    whole = ws.uploads.send(tree, resume=upload)

    assert whole.id == upload
    assert held(kept(folder, whole) / tree.name) == held(tree)
    assert sum(again) <= sum(map(len, held(tree).values())) - before
    with pytest.raises(InvalidRequest, match="path it began with"):
        ws.uploads.send(tree / "a", resume=upload)


@pytest.mark.usefixtures("small_pieces")
def test_a_piece_whose_answer_is_lost_or_whose_end_is_cut_off_is_there_once(
    ws: Client, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "one.bin"
    path.write_bytes(RNG.bytes(5500))
    sends, calls = Api.send_bytes, iter(range(1000))

    def unreliable(api: Api, method: str, url: str, content: bytes, *rest: Any, **more: Any) -> Any:
        number = next(calls)
        if number == 2:  # the server ends in the middle of writing it
            draft = folder / "uploads" / url.split("/")[3] / "partial" / "one.bin"
            with draft.open("ab") as file:
                file.write(content[:400])
            raise Unavailable("gone")
        answer = sends(api, method, url, content, *rest, **more)
        if number in (0, 5, 7, 8):
            raise Unavailable("the answer is lost")
        return answer

    monkeypatch.setattr(Api, "send_bytes", unreliable)
    monkeypatch.setattr(client, "_AGAIN_S", 0.0)
    sent = ws.uploads.send(path)

    assert held(kept(folder, sent)) == {"one.bin": path.read_bytes()}
    assert next(calls) > 8


@pytest.mark.usefixtures("small_pieces")
def test_a_server_that_is_away_for_a_moment_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(tmp_path / "workspace")
    token, path = workspace.catalog.tokens.issue("tests", "editor"), tmp_path / "one.bin"
    path.write_bytes(RNG.bytes(9000))
    monkeypatch.setattr(client, "_AGAIN_S", 0.02)
    sends, reached, back = Api.send_bytes, threading.Event(), threading.Event()

    def slowly(*told: Any, **more: Any) -> Any:
        if reached.is_set():
            back.wait(20)
        answer = sends(*told, **more)
        reached.set()
        return answer

    monkeypatch.setattr(Api, "send_bytes", slowly)
    sent = list[client.Upload]()
    with serving(create_app(workspace, ServerSettings())) as url:
        port = int(url.rpartition(":")[2])
        ws = mms.connect(url, token=token)
        sending = threading.Thread(target=lambda: sent.append(ws.uploads.send(path)))
        sending.start()
        assert reached.wait(20)
    back.set()
    with serving(create_app(workspace, ServerSettings()), port=port):
        sending.join(30)
        assert [held(kept(workspace.root, each)) for each in sent] == [{"one.bin": path.read_bytes()}]
        ws.close()
    workspace.close()


# Straight to the routes --------------------------------------------------------------------------------------------


def digest(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


@pytest.fixture
def begun(ws: Client) -> Iterator[Upload]:
    begun = ws._api.send("POST", "/v1/uploads", Upload, {"name": "x"})
    yield begun
    ws._api.delete(f"/v1/uploads/{begun.id}")


def put(ws: Client, begun: Upload, path: str, content: bytes, offset: int = 0, **headers: str) -> UploadedFile:
    told = {"content-type": "application/octet-stream", "content-digest": digest(content)}
    told |= {name.replace("_", "-"): value for name, value in headers.items()}
    url = f"/v1/uploads/{begun.id}/files/{path}"
    return ws._api.send_bytes("PUT", url, content, UploadedFile, headers=told, offset=offset)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("y/a", "below what it is called"),
        ("x/%2e%2e/a", "lie below its own folder"),
        ("x/a%5cb", "lie below its own folder"),
        ("x//a", "lie below its own folder"),
        ("x/a%00", "lie below its own folder"),
        (f"x/{'a' * 256}", "at most"),
        (f"x/{'a/' * 600}a", "at most"),
    ],
)
def test_a_path_that_leads_elsewhere_is_refused(ws: Client, begun: Upload, path: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        put(ws, begun, path, b"a", repr_digest=digest(b"a"))


@pytest.mark.parametrize("given", ["", "sha-256=abc", "md5=:AAAA:", f"sha-256=:{'=' * 44}:", digest(b"b")])
def test_a_piece_is_what_its_digest_says(ws: Client, begun: Upload, given: str) -> None:
    with pytest.raises(InvalidRequest, match="Content-Digest"):
        put(ws, begun, "x/a", b"a", content_digest=given)
    assert ws._api.get(f"/v1/uploads/{begun.id}", Upload).files == 0


def test_a_file_is_what_its_digest_says_and_is_sent_anew(ws: Client, begun: Upload) -> None:
    put(ws, begun, "x/a", b"one ")
    with pytest.raises(InvalidRequest, match="changed while it was sent"):
        put(ws, begun, "x/a", b"two", 4, repr_digest=digest(b"one three"))
    assert not ws._api.get(f"/v1/uploads/{begun.id}/files/x/a", UploadedFile).bytes
    put(ws, begun, "x/a", b"one two", repr_digest=digest(b"one two"))
    assert ws._api.get(f"/v1/uploads/{begun.id}/files/x/a", UploadedFile).complete


@pytest.mark.parametrize("offset", [1, 3, 5, 2**40])
def test_a_piece_begins_where_the_file_ends(ws: Client, begun: Upload, offset: int) -> None:
    put(ws, begun, "x/a", b"four")
    with pytest.raises(Conflict, match="has 4 bytes"):
        put(ws, begun, "x/a", b"more", offset)
    with pytest.raises(Conflict, match="is not whole"):
        ws._api.send("POST", f"/v1/uploads/{begun.id}:complete", Upload)


def test_no_file_is_in_the_way_of_a_folder(ws: Client, begun: Upload) -> None:
    put(ws, begun, "x/a", b"a", repr_digest=digest(b"a"))
    with pytest.raises(InvalidRequest, match="no file for it"):
        put(ws, begun, "x/a/b", b"b", repr_digest=digest(b"b"))
    put(ws, begun, "x/c/d", b"d", repr_digest=digest(b"d"))
    with pytest.raises(InvalidRequest, match="no file for it"):
        put(ws, begun, "x/c", b"c", repr_digest=digest(b"c"))


def test_nothing_is_added_to_what_is_complete(ws: Client, begun: Upload) -> None:
    put(ws, begun, "x", b"a", repr_digest=digest(b"a"))
    complete = ws._api.send("POST", f"/v1/uploads/{begun.id}:complete", Upload)
    assert (complete.complete, complete.files, complete.bytes) == (True, 1, 1)
    with pytest.raises(Conflict, match="nothing is added"):
        put(ws, begun, "x", b"b", repr_digest=digest(b"b"))
    assert ws._api.send("POST", f"/v1/uploads/{begun.id}:complete", Upload) == complete


@pytest.mark.parametrize("name", ["", "a/b", "..", ".", "a\\b", "a:b", "a\0", "x" * 256])
def test_an_upload_is_called_as_a_file_is(ws: Client, name: str) -> None:
    with pytest.raises(InvalidRequest):
        ws._api.send("POST", "/v1/uploads", Upload, {"name": name})


def test_of_two_who_send_one_piece_one_is_second(tmp_path: Path) -> None:
    uploads = storage.Uploads(tmp_path)
    begun, seen = uploads.begin("x"), list[str]()
    gate = threading.Barrier(8)

    def add() -> None:
        gate.wait()
        try:
            uploads.add(begun.id, "x/a", b"piece", offset=0, digest=hashlib.sha256(b"piece").digest(), whole=None)
            seen.append("added")
        except Conflict:
            seen.append("second")

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == ["added", *["second"] * 7]
    assert uploads.file(begun.id, "x/a").bytes == 5


def test_what_nobody_adds_to_goes_with_the_next_one(tmp_path: Path) -> None:
    uploads = storage.Uploads(tmp_path)
    old, new = uploads.begin("old"), uploads.begin("new")
    os.utime(tmp_path / old.id / "upload.json", (0, 0))
    assert uploads.get(old.id).expires_at < uploads.get(new.id).expires_at

    uploads.begin("next")

    assert [each.name for each in uploads.list()] == ["new", "next"]
