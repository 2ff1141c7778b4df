"""Files of the web come in within bounds, from public addresses only, and each that does not says why."""

from __future__ import annotations

import datetime as dt
import errno
import io
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from web_server import WebServer, web_server

from mms_sdk import settings
from mms_sdk.compute.data.ingest import ingest
from mms_sdk.compute.data.sources import addresses, fetching
from mms_sdk.compute.data.sources.fetching import Fetcher, address_problem
from mms_sdk.errors import DataError, InvalidInput, InvalidRequest, NothingToIngest, StorageFull
from mms_sdk.schema.cleaning import DropUnreadable
from mms_sdk.schema.sources import HTTP
from mms_sdk.schema.specs import IngestSpec, Split
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.stores.local import LocalStore

ALL = Split(train=1, val=0, test=0)


def png(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 5, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


PICTURES = {f"{seed}.png": png(seed) for seed in range(12)}


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine allows its own loopback; and nobody waits long between two tries."""
    monkeypatch.setenv("MMS_FETCH_NETWORKS", "127.0.0.0/8")
    monkeypatch.setattr(fetching, "_FIRST_WAIT_S", 0.01)


@pytest.fixture(scope="module")
def served() -> Iterator[WebServer]:
    with web_server(PICTURES) as server:
        yield server


@pytest.fixture
def server(served: WebServer) -> WebServer:
    served.asked.clear()
    served.heads.clear()
    return served


@pytest.fixture
def bring(tmp_path: Path) -> Any:
    """Ingests a list into one dataset; returns the snapshot."""
    job = tmp_path / "job"
    job.mkdir()

    def bring(source: HTTP, *clean: Any) -> Any:
        dataset = Dataset.open_or_create(LocalStore(tmp_path / "rows"), "rows")
        spec = IngestSpec(source=source, clean=clean, split=ALL)
        ingest(dataset, spec, job="j", folder=job, tell=bring.told.append)
        return dataset.snapshot()

    bring.told = []
    bring.rejects = lambda: {
        told["source"]: told["reason"] for told in map(json.loads, (job / "rejects.jsonl").read_text().splitlines())
    }
    return bring


def fetched(server: WebServer, path: str, **options: Any) -> bytes:
    asked = {"networks": settings.fetch_networks(), "timeout_s": 5.0, "max_bytes": 10**6, "kind": "image", **options}
    fetcher = Fetcher(**asked)
    pieces: list[bytes] = []

    def begin() -> Any:
        pieces.clear()
        return pieces.append

    try:
        fetcher.fetch(path if "://" in path else server.url + path, begin)
    finally:
        fetcher.close()
    return b"".join(pieces)


# What comes in --------------------------------------------------------------------------------------------------


def test_pictures_of_a_list_come_in_with_their_labels(server: WebServer, bring: Any) -> None:
    urls = [f"{server.url}/{name}" for name in PICTURES]

    snapshot = bring(HTTP(urls, labels=["cat", "dog"] * 6))

    expected = [np.asarray(Image.open(io.BytesIO(data))) for data in PICTURES.values()]
    np.testing.assert_array_equal(snapshot.values("image"), np.stack(expected))
    assert [source.decode() for source in snapshot.gather("source", np.arange(12))] == urls
    assert snapshot.column("label").labels == ("cat", "dog")
    assert snapshot.values("label").tolist() == [0, 1] * 6
    assert set(server.asked.values()) == {1}
    assert [told.done for told in bring.told if told.what == "files fetched"][-1] == 12


@pytest.mark.parametrize("labelled", [True, False])
def test_a_list_may_be_a_file(server: WebServer, bring: Any, tmp_path: Path, labelled: bool) -> None:
    good = [f"{server.url}/0.png", f"{server.url}/1.png?size=1,2"]
    if labelled:
        path = tmp_path / "list.csv"
        lines = ["label,url", f"ant,{good[0]}", f',"{good[1]}"', f'"bee, or so","{good[1]}"', f"ant,{good[0]}", "ant"]
    else:
        path = tmp_path / "list.txt"
        lines = [*good, "", good[0], "http://user:secret@host/x.png"]
    path.write_text("\n".join([*lines, *(["ant,file:///etc/passwd"] if labelled else ["/etc/passwd"])]))

    snapshot = bring(HTTP(path))

    rejects = bring.rejects()
    assert snapshot.rows == 2
    assert "it is in the list already" in rejects[good[0]]
    if labelled:
        assert snapshot.column("label").labels == ("ant", "bee, or so")
        assert rejects[good[1]] == "it has no label"
        assert "it is none" in rejects["list.csv, row 5"]
        assert "it is none" in rejects["list.csv, row 6"]
    else:
        assert snapshot.record.column("label") is None
        assert "no user or password" in rejects["list.txt, line 5"]
        assert "secret" not in json.dumps(rejects)
        assert "it is none" in rejects["list.txt, line 6"]


@pytest.mark.parametrize("name", ["list.txt", "list.csv"])
def test_a_list_of_more_lines_than_are_taken_is_refused(
    tmp_path: Path, bring: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(addresses, "_MAX_LINES", 3)
    (tmp_path / name).write_text("url\n" + "a\n" * 4)
    with pytest.raises(InvalidRequest, match="has at most 3 lines"):
        bring(HTTP(tmp_path / name))


@pytest.mark.parametrize("name", ["X-Amz-Signature", "x-amz-security-token", "sig", "Signature", "access_token", "KEY"])
def test_an_address_with_a_signature_is_not_kept(server: WebServer, bring: Any, tmp_path: Path, name: str) -> None:
    signed = f"{server.url}/1.png?size=1&{name}=s3cret"
    with pytest.raises(InvalidRequest, match="address 0 is refused: an address has no signature") as caught:
        HTTP([signed])
    assert "s3cret" not in caught.value.message
    (tmp_path / "list.txt").write_text(f"{server.url}/0.png\n{signed}\n")

    assert bring(HTTP(tmp_path / "list.txt")).rows == 1
    assert "no signature, token or key" in bring.rejects()["list.txt, line 2"]
    assert "s3cret" not in json.dumps(bring.rejects())


def test_a_redirect_may_lead_to_a_signed_address_which_is_not_kept(server: WebServer) -> None:
    assert fetched(server, f"{server.url}/to/{server.url}/4.png?sig=s3cret") == PICTURES["4.png"]


def _killed(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_job_that_is_tried_again_fetches_only_what_is_missing(
    server: WebServer, bring: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = [f"{server.url}/{name}" for name in PICTURES]
    commit = Dataset.commit
    monkeypatch.setattr(Dataset, "commit", _killed)
    with pytest.raises(KeyboardInterrupt):
        bring(HTTP(urls[:5]))
    monkeypatch.setattr(Dataset, "commit", commit)
    folder = tmp_path / "job" / "spool" / "fetched"
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    (folder / "half.part").write_bytes(b"what a killed job left")
    server.asked.clear()

    snapshot = bring(HTTP(urls))

    assert snapshot.rows == 12
    assert sorted(server.asked) == sorted(f"/{name}" for name in list(PICTURES)[5:])
    assert not folder.exists()  # once all of it is in


def test_addresses_that_fail_are_listed_and_the_others_come_in(server: WebServer, bring: Any) -> None:
    bad = {
        "/status/404": "answers 404",
        "/status/403": "answers 403",
        "/type/text/html/0.png": "says that it is text/html; wanted is image",
        "/truncated/0.png": "the connection failed",
        "/huge/0.png": "more than max_bytes",
        "/endless/x": "more than max_bytes",
        "/packed/0.png": "sent as gzip",
        "/garbage": "the connection failed",
        "/to/http://10.1.2.3/x.png": "10.1.2.3 is not a public address",
        "/to/file:///etc/passwd": "redirects to what is not fetched",
        "/to/http://me:pw@127.0.0.1/x": "no user or password",
        "/round/6/0.png": "more than 5 redirects",
        "/slow/1.png": "longer than timeout_s=1",
        "/slow-head/1.png": "longer than timeout_s=1",
        "/silent/x": "longer than timeout_s=1",
    }
    good = ["/0.png", "/round/5/1.png", "/busy/2//2.png", "/type/image/png/3.png", f"/to/{server.url}/4.png"]
    begin = time.monotonic()

    snapshot = bring(HTTP([server.url + path for path in [*bad, *good]], timeout_s=1, max_bytes=10**5))

    assert snapshot.rows == len(good)
    rejects = bring.rejects()
    assert len(rejects) == len(bad)
    for path, reason in bad.items():
        assert reason in rejects[server.url + path], path
    assert f"{len(bad)} × left out" in snapshot.record.provenance["cleaning"]["notes"][0]
    assert time.monotonic() - begin < 15


def test_a_file_that_is_less_than_it_seems_is_no_picture(server: WebServer, bring: Any) -> None:
    source = HTTP([f"{server.url}/lying/0.png", f"{server.url}/1.png"])
    with pytest.raises(DataError, match=r"lying/0.png: this is not a readable picture"):
        bring(source)
    assert bring(source, DropUnreadable()).rows == 1


def test_a_list_of_which_nothing_comes_makes_no_dataset(server: WebServer, bring: Any, tmp_path: Path) -> None:
    with pytest.raises(NothingToIngest, match=r"of 2 none can: http://127.*answers 404"):
        bring(HTTP([f"{server.url}/status/404", f"{server.url}/status/410"]))
    assert not Dataset.open(LocalStore(tmp_path / "rows"), "rows").snapshots()


def test_more_than_was_allowed_in_all_ends_the_ingest(server: WebServer, bring: Any) -> None:
    total = sum(map(len, PICTURES.values()))
    urls = [f"{server.url}/{name}" for name in PICTURES]
    with pytest.raises(DataError, match=r"at most max_total_bytes=.*raise it, or divide"):
        bring(HTTP(urls, max_total_bytes=total - 1))
    assert bring(HTTP(urls, max_total_bytes=total)).rows == 12


def test_a_disk_that_fills_ends_the_ingest(
    server: WebServer, bring: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        if os.readlink(f"/proc/self/fd/{handle}").endswith(".part"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageFull, match="no space left"):
        bring(HTTP([f"{server.url}/{name}" for name in PICTURES]))
    assert list((tmp_path / "job" / "spool" / "fetched").iterdir()) == []


# Being asked again ----------------------------------------------------------------------------------------------


def test_a_busy_server_is_asked_again_when_it_says(server: WebServer) -> None:
    waits: list[float] = []

    assert fetched(server, "/busy/2/7/0.png", wait=waits.append, timeout_s=30) == PICTURES["0.png"]
    assert waits == [7, 7]


def test_a_server_that_wants_to_be_asked_again_too_late_is_not_waited_for(server: WebServer) -> None:
    waits: list[float] = []
    with pytest.raises(InvalidInput, match=r"again in 7 s; by the next try timeout_s=5 is over; raise it"):
        fetched(server, "/busy/2/7/0.png", wait=waits.append, timeout_s=5)
    assert (server.asked["/busy/2/7/0.png"], waits) == (1, [])


def test_all_tries_together_have_the_time_of_one_file(server: WebServer) -> None:
    with pytest.raises(InvalidInput, match=r"timeout_s=2"):
        fetched(server, "/late-and-busy/1.2", timeout_s=2)
    assert server.asked["/late-and-busy/1.2"] < 3


def test_a_name_that_nobody_answers_for_is_waited_for_no_longer_than_the_file_may_take(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait(20))
    began = time.monotonic()
    with pytest.raises(InvalidInput, match=r"nobody says in time which address 'example\.org' has; .*timeout_s=0\.3"):
        fetched(server, "http://example.org/x.png", timeout_s=0.3)
    assert time.monotonic() - began < 15
    answered.set()


def test_what_a_server_says_moves_no_cursor(server: WebServer, bring: Any) -> None:
    bring(HTTP([f"{server.url}/type/%9b31mred/0.png", f"{server.url}/0.png"]))
    assert "it is \\x9b31mred" in next(iter(bring.rejects().values()))


@pytest.mark.parametrize(
    ("told", "seconds"), [("0", 0), ("61", 61), ("9" * 50, 999_999_999), ("", None), ("-5", None), ("soon", None)]
)
def test_retry_after_is_read_as_rfc_9110_writes_it(told: str, seconds: float | None) -> None:
    assert fetching._seconds(told) == seconds


def test_retry_after_may_be_a_date() -> None:
    later = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=30)
    assert fetching._seconds(later.strftime("%a, %d %b %Y %H:%M:%S GMT")) == pytest.approx(30, abs=2)
    assert fetching._seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0


@pytest.mark.parametrize(("path", "asked"), [("/busy/9//0.png", 3), ("/busy/9/3600/0.png", 1), ("/status/404", 1)])
def test_a_server_that_stays_busy_is_left_alone(server: WebServer, path: str, asked: int) -> None:
    waits: list[float] = []
    with pytest.raises(InvalidInput, match="answers"):
        fetched(server, path, wait=waits.append)
    assert server.asked[path] == asked
    assert sum(waits) < 61


def test_a_server_learns_nothing_but_what_is_asked_for(server: WebServer) -> None:
    fetched(server, "/0.png")
    (head,) = server.heads
    assert sorted(head) == ["Accept", "Accept-Encoding", "Host", "User-Agent"]
    assert head["Accept-Encoding"] == "identity"


# Where nothing is fetched from ----------------------------------------------------------------------------------

PRIVATE = [
    *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
    *("192.0.2.1", "198.18.0.1", "203.0.113.7", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "fe80::1", "fe80::1%1", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1"),
    *("::ffff:8.8.8.8", "64:ff9b::7f00:1", "64:ff9b::808:808", "2002:7f00:1::", "2001:0:1::1", "::127.0.0.1"),
    *("fec0::1", "3fff::1", "5f00::1", "100::1", "192.88.99.1", "192.0.0.8", "192.0.0.9", "168.63.129.16"),
    *("2606:4700::5efe:7f00:1", "2606:4700::200:5efe:a00:1"),
]


@pytest.mark.parametrize("address", PRIVATE)
def test_no_address_that_is_not_public_is_asked(address: str) -> None:
    assert "is not a public address" in address_problem(address, ())


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4001:80f::200e"])
def test_public_addresses_are_asked(address: str) -> None:
    assert address_problem(address, ()) == ""


def test_a_machine_allows_its_own_networks_and_only_those(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMS_FETCH_NETWORKS", "10.1.0.0/16, fd00::/8")
    allowed = settings.fetch_networks()
    assert not address_problem("10.1.2.3", allowed)
    assert not address_problem("fd00::1", allowed)
    for address in ("10.2.0.1", "127.0.0.1", "::ffff:10.1.2.3", "::1"):
        assert address_problem(address, allowed)
    monkeypatch.setenv("MMS_FETCH_NETWORKS", "10.1.0.0/33")
    with pytest.raises(InvalidRequest, match="lists networks such as"):
        settings.fetch_networks()


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "0x7f.1", "2130706433", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_this_machine_is_never_asked_however_it_is_spelt(
    server: WebServer, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MMS_FETCH_NETWORKS")
    with pytest.raises(InvalidInput, match=r"is not a public address|has no address"):
        fetched(server, f"http://{host}:{server.server_address[1]}/0.png", wait=lambda _: None)
    assert not server.asked


def test_the_address_that_was_looked_at_is_the_one_that_is_asked(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["127.0.0.1", "10.0.0.1", "10.0.0.1"])
    names = []

    def rebinding(host: str, port: int, *args: Any, **options: Any) -> Any:
        if host != "rebinding.example":
            return resolve(host, port, *args, **options)  # the connection itself, by its address
        names.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    url = f"http://rebinding.example:{server.server_address[1]}/0.png"
    assert fetched(server, url) == PICTURES["0.png"]
    assert names == ["rebinding.example"]
    assert server.heads[0]["Host"] == f"rebinding.example:{server.server_address[1]}"
    with pytest.raises(InvalidInput, match=r"10\.0\.0\.1 is not a public address"):
        fetched(server, url)


def test_of_several_addresses_only_those_that_may_be_asked_are(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in ("10.0.0.1", "127.0.0.1")]
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: found if host == "both" else resolve(host, *rest, **more)
    )
    assert fetched(server, f"http://both:{server.server_address[1]}/0.png", timeout_s=2) == PICTURES["0.png"]


def test_proxies_of_the_environment_are_not_used(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert fetched(server, "/0.png") == PICTURES["0.png"]


def test_the_name_in_a_certificate_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - dt.timedelta(1)).not_valid_after(now + dt.timedelta(1))
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    builder = builder.add_extension(names, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    (tmp_path / "cert.pem").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with web_server(PICTURES, tls=context) as server:
        port = server.server_address[1]
        with pytest.raises(InvalidInput, match="certificate"):
            fetched(server, f"https://localhost:{port}/0.png")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        assert fetched(server, f"https://localhost:{port}/0.png") == PICTURES["0.png"]
        with pytest.raises(InvalidInput, match="certificate"):
            fetched(server, f"https://127.0.0.1:{port}/0.png")
        with pytest.raises(InvalidInput, match="from https to http"):
            fetched(server, f"https://localhost:{port}/to/http://127.0.0.1/x.png")


# What is said ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("urls", "error"),
    [
        (["ftp://host/x"], "it is none"),
        (["file:///etc/passwd"], "it is none"),
        (["host/x.png"], "it is none"),
        (["http://"], "it is none"),
        (["http://0177.0.0.1/x"], "it is none"),
        (["http://ho\nst/x"], "it is none"),
        (["http://host/" + "x" * 9000], "it is none"),
        ([""], "it is none"),
        (["https://me:secret@host/x"], "no user or password"),
        (["https://secret@host/x"], "no user or password"),
        ([], "at least one"),
    ],
)
def test_what_is_no_address_is_refused_without_being_repeated(urls: list[str], error: str) -> None:
    with pytest.raises(InvalidRequest, match=error) as refused:
        HTTP(urls)
    assert "secret" not in str(refused.value)


def test_a_source_is_a_list_an_address_or_a_file(tmp_path: Path) -> None:
    assert HTTP("https://host/x.png").urls == ("https://host/x.png",)
    assert HTTP(tmp_path / "x.txt").path == str(tmp_path / "x.txt")
    with pytest.raises(InvalidRequest, match="each address has its label; got 1 and 2"):
        HTTP(["https://host/x.png"], labels=("a", "b"))
    with pytest.raises(InvalidRequest, match="as a list of at least one, or as the path"):
        HTTP(["https://host/x.png"], path="x.txt")


@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        ("gone.txt", None, "is a file of at most"),
        ("/dev/zero", None, "is a file of at most"),
        ("x.txt", b"\xff\xfe\x00", "cannot be read"),
        ("x.csv", b"a,b\n1,2\n", "has a column url"),
        ("x.csv", b"", "has a column url"),
        ("x.csv", b'url\n"http://x/' + b"y" * 200_000 + b'"\n', "cannot be read"),
        ("x.csv", b'url\n"unclosed\n', "cannot be read"),
    ],
)
def test_a_file_that_is_no_list_is_refused(
    tmp_path: Path, bring: Any, name: str, data: bytes | None, error: str
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InvalidRequest, match=error):
        bring(HTTP(tmp_path / name))
