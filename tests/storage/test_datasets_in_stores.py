"""What a dataset promises, where it lies in an object store; what is the same on disk is tested there."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from faulty_proxy import FAULTS, faulty_proxy
from s3_buckets import make_bucket
from small_datasets import COLUMNS, IMAGE, Content, add, content_of

from ceph_server import CephServer
from mms_sdk.errors import Conflict, Damaged, InvalidRequest, NotWritable, Unavailable
from mms_sdk.schema.dataset import Column, Sealed
from mms_sdk.storage import parts, retention
from mms_sdk.storage.changes import Addition
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.edits import compact, delete_rows, write_column
from mms_sdk.storage.reader import Memory, Reader
from mms_sdk.storage.retention import collect_garbage, expire
from mms_sdk.storage.stores import cloud, remote
from mms_sdk.storage.stores.base import Store
from mms_sdk.storage.stores.opening import store_at
from torture import times

HERE = Path(__file__).parent


@pytest.fixture
def in_store(store: Store) -> Dataset:
    """An empty dataset on disk, in an imitation of S3 and on S3."""
    return Dataset.create(store.below("flowers"), "flowers")


@pytest.fixture
def s3_url(ceph: CephServer) -> str:
    """The URL of an empty folder on S3."""
    return make_bucket(ceph.endpoint).replace("?", "/flowers?", 1)


@pytest.fixture
def on_s3(s3_url: str, tmp_path: Path) -> Dataset:
    """An empty dataset there."""
    return Dataset.create(store_at(s3_url, copies=tmp_path / "copies"), "flowers")


def elsewhere(dataset: Dataset, copies: Path) -> Dataset:
    """The same dataset for a machine that has no copy of anything."""
    assert isinstance(dataset.store, remote.RemoteStore)
    _, (make, _, size, prefix) = dataset.store.__reduce__()
    return Dataset.open(remote.RemoteStore(make, copies=copies, max_bytes=size, prefix=prefix), dataset.name)


def assert_holds(dataset: Dataset, *contents: Content) -> None:
    snapshot = dataset.snapshot()
    rows = np.random.default_rng(0).permutation(snapshot.rows)
    for name in ("image", "label", "split"):
        expected = np.concatenate([content[name] for content in contents])
        np.testing.assert_array_equal(snapshot.gather(name, rows), expected[rows])
    sources = [source for content in contents for source in content["source"]]
    assert snapshot.gather("source", rows) == [sources[row] for row in rows]
    assert snapshot.verify() > 0


@pytest.mark.parametrize("profile", ["raw", "blosc", "zstd"])
def test_rows_come_back_as_they_went_in(in_store: Dataset, tmp_path: Path, profile: str, many_chunks: None) -> None:
    columns = (IMAGE.model_copy(update={"profile": profile}), *COLUMNS[1:])
    contents = [content_of(23, seed=1), content_of(17, seed=2)]
    for content in contents:
        add(in_store, content, columns=columns)
    assert_holds(in_store, *contents)
    if not in_store.store.local:
        assert_holds(elsewhere(in_store, tmp_path / "other"), *contents)


def test_edits_and_collection_are_as_on_disk(in_store: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = content_of(10, seed=1), content_of(7, seed=2)
    add(in_store, first)
    add(in_store, second)
    delete_rows(in_store, [0, 12], of=in_store.snapshot())
    twice = Column(name="twice", kind="number", dtype="int32")
    write_column(in_store, twice, lambda rows: 2 * rows["label"], inputs=["label"], of=in_store.snapshot())
    compact(in_store, of=in_store.snapshot())
    labels = np.delete(np.concatenate([first["label"], second["label"]]), [0, 12])
    np.testing.assert_array_equal(in_store.snapshot().values("twice"), 2 * labels)

    with in_store.writer(COLUMNS) as writer:
        writer.write(content_of(3))
        abandoned = writer.close()
    gone = expire(in_store)
    assert gone == [1, 2, 3, 4]
    assert collect_garbage(in_store).folders == 0
    later = time.time() + 49 * 3600
    monkeypatch.setattr(retention, "agreed_time", lambda _: later)
    # Of two parts the rows, what was deleted of them and the new column; and what nobody committed.
    assert collect_garbage(in_store).folders == 2 * 3 + 1
    assert abandoned.id not in in_store.store.names("parts")
    assert in_store.snapshot().verify() > 0
    np.testing.assert_array_equal(in_store.snapshot().values("twice"), 2 * labels)


def test_a_part_that_waited_too_long_is_not_committed(in_store: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    with in_store.writer(COLUMNS) as writer:
        writer.write(content_of(3))
        part = writer.close()
    later = time.time() + 25 * 3600
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(Conflict, match=r"25\.\d hours old"):
        in_store.commit(Addition(parts=[part], columns=COLUMNS), base=None, rebase=False)


@pytest.mark.parametrize("profile", ["raw", "zstd"])
def test_an_epoch_is_read_in_the_same_order_as_on_disk(
    store: Store, tmp_path: Path, profile: str, many_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "COMPRESSED_CHUNK_BYTES", 5 * IMAGE.row_bytes)  # type: ignore[operator]
    columns = (IMAGE.model_copy(update={"profile": profile}), *COLUMNS[1:])
    orders = []
    for place in (store, store_at(tmp_path / "disk")):
        dataset = Dataset.create(place.below("flowers"), "flowers")
        add(dataset, content_of(64, seed=1), columns=columns)
        memory = Memory(ram_bytes=0, window_bytes=40 * IMAGE.row_bytes)  # type: ignore[operator]
        reader = Reader(dataset.snapshot(), columns=["image", "label"], batch_size=8, seed=3, memory=memory)
        assert reader.rung == ("mmap" if profile == "raw" else "window")
        orders.append([batch.columns["image"] for _ in range(2) for batch in reader.epoch()])
    for here, there in zip(*orders, strict=True):
        np.testing.assert_array_equal(here, there)


@pytest.mark.slow
def test_four_processes_that_commit_50_times_each_on_s3_lose_no_commit(
    on_s3: Dataset, s3_url: str, tmp_path: Path
) -> None:
    add(on_s3, content_of(1))

    def sealed(seed: int) -> str:
        with on_s3.writer(COLUMNS) as writer:
            writer.write(content_of(1, seed=seed))
            return writer.close().model_dump_json()

    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(sealed, range(200)))
    start, running = tmp_path / "start", []
    for number in range(4):
        listed = tmp_path / f"parts-{number}"
        listed.write_text("\n".join(made[number::4]))
        command = [sys.executable, str(HERE / "commits_at_once.py"), s3_url, str(start), str(listed), "rebase"]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    start.touch()
    told = [process.communicate(timeout=120)[0].split() for process in running]
    took = time.monotonic() - began

    numbers = sorted(int(number) for lines in told for number in lines)
    assert numbers == list(range(2, 202))
    assert on_s3.snapshots() == list(range(1, 202))
    assert {part.id for part in on_s3.record().parts[1:]} == {Sealed.model_validate_json(line).id for line in made}
    print(f"4 processes × 50 commits on S3: {len(numbers)} acknowledged, 200 in the dataset, {took:.1f} s")


@pytest.mark.torture
def test_what_was_acknowledged_before_a_kill_is_there_after_it(s3_url: str, tmp_path: Path) -> None:
    rng = random.Random(0)
    acknowledged: list[int] = []
    held: list[int] = []
    tried = 0
    kills = times(20, full=50)
    for round_ in range(kills):
        command = [sys.executable, str(HERE / "appends_until_killed.py"), s3_url, str(tmp_path / "writer"), str(tried)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        told = [int(process.stdout.readline()) for _ in range(rng.randint(0, 6))]
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        told += [int(line) for line in process.communicate()[0].split()]
        acknowledged += told
        tried = max([tried, *told]) + 2  # the number after the last may or may not have been committed
        dataset = Dataset.open(store_at(s3_url, copies=tmp_path / f"reader-{round_ % 2}"), "numbers")
        if not acknowledged:
            continue
        held = dataset.snapshot().values("number").tolist()
        assert set(acknowledged) <= set(held)
        assert all(held.count(number) == 3 for number in set(held))
    dataset.verify()
    assert len(acknowledged) > kills
    print(f"{kills} kills: {len(acknowledged)} commits acknowledged, {len(set(held))} held, each whole; none lost")


@pytest.mark.slow
def test_200_flipped_bits_on_s3_are_found(on_s3: Dataset, tmp_path: Path, many_chunks: None) -> None:
    add(on_s3, content_of(9, seed=1))
    add(on_s3, content_of(4, seed=2))
    stored = [each for each in on_s3.store.walk("") if each.bytes and not each.key.endswith("/")]
    rng = random.Random(1)
    found = 0
    for _ in range(200):
        each = rng.choices(stored, [each.bytes for each in stored])[0]
        right = on_s3.store.read(each.key)
        bit = rng.randrange(8 * len(right))
        wrong = bytearray(right)
        wrong[bit // 8] ^= 1 << bit % 8
        on_s3.store.replace(each.key, bytes(wrong))
        try:
            elsewhere(on_s3, tmp_path / "none").verify()
        except Damaged as error:
            assert each.key.split("/")[0] in error.message or "manifest" in error.message.lower()
            found += 1
        on_s3.store.replace(each.key, right)
    print(f"200 flipped bits in objects on S3: {found} found")
    assert found == 200
    on_s3.verify()


@pytest.mark.parametrize("damage", ["deleted", "cut short"])
def test_an_object_that_is_gone_or_cut_short_is_found_on_opening(far_store: Store, tmp_path: Path, damage: str) -> None:
    dataset = Dataset.create(far_store.below("flowers"), "flowers")
    add(dataset, content_of(9))
    chunks = [each.key for each in dataset.store.walk("parts") if "/c/" in each.key]
    for key in chunks:
        whole = dataset.store.read(f"parts/{key}")
        dataset.store.delete(f"parts/{key}")
        if damage == "cut short":
            dataset.store.create(f"parts/{key}", whole[:-1])
        with pytest.raises(Damaged, match=r"is missing|bytes, its manifest says"):
            elsewhere(dataset, tmp_path / "other").snapshot()
        dataset.store.replace(f"parts/{key}", whole)


def test_copies_make_room_for_others_and_readers_read_on(far_store: Store, tmp_path: Path) -> None:
    dataset = Dataset.create(far_store.below("flowers"), "flowers")
    contents = [content_of(200, seed=seed) for seed in range(8)]
    for content in contents:
        add(dataset, content)
    small = elsewhere(dataset, tmp_path / "small")
    small.store._room._max_bytes = 100_000  # type: ignore[attr-defined]
    for _ in range(2):
        assert_holds(small, *contents)
    kept = sum(path.stat().st_size for path in (tmp_path / "small").rglob("*") if path.is_file())
    assert kept < 200_000 < sum(each.bytes for each in dataset.store.walk("parts"))


# Faults on the way ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_nothing_is_lost_or_done_twice_on_a_bad_network(ceph: CephServer, tmp_path: Path) -> None:
    rng = random.Random(0)
    lock = threading.Lock()

    def plan(request: str) -> str | None:
        with lock:
            return rng.choice(FAULTS) if rng.random() < 0.25 else None

    url = make_bucket(ceph.endpoint)
    with faulty_proxy(ceph.port, plan) as proxy:
        bad = store_at(url.replace(ceph.endpoint, proxy.endpoint), copies=tmp_path / "copies")
        dataset = Dataset.create(bad.below("flowers"), "flowers")
        contents = [content_of(6, seed=seed) for seed in range(20)]
        numbers = [add(dataset, content) for content in contents]
        assert_holds(dataset, *contents)
        met = dict(proxy.met)
    assert numbers == list(range(1, 21))
    good = Dataset.open(store_at(url, copies=tmp_path / "others").below("flowers"), "flowers")
    assert good.snapshots() == numbers
    assert_holds(good, *contents)
    assert set(met) == set(FAULTS)
    print(f"20 commits with a fault in every fourth request {met}: 20 acknowledged, 20 there, each once")


@pytest.mark.parametrize("fault", ["refused", "503", "torn", "lost"])
def test_a_store_that_does_not_answer_is_said_to_be_unavailable(
    moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(cloud, "_RETRIES", {"max_retries": 1})
    monkeypatch.setattr(cloud, "_WITHIN_S", 0.5)
    url = make_bucket(moto)
    with faulty_proxy(urlsplit(moto).port or 0, lambda _: None) as proxy:
        store = store_at(url.replace(moto, proxy.endpoint), copies=tmp_path / "copies")
        dataset = Dataset.create(store.below("flowers"), "flowers")
        add(dataset, content_of(3))
        snapshot = dataset.snapshot()
        proxy.plan = lambda _: fault
        with pytest.raises(Unavailable, match="check the address and the network"):
            add(dataset, content_of(3))
        with pytest.raises(Unavailable, match="check the address and the network"):
            elsewhere(dataset, tmp_path / "other").snapshot()
        assert len(snapshot.values("label")) == 3  # what was brought here is read on
        proxy.plan = lambda _: None
        assert add(dataset, content_of(3, seed=1)) == 2
        assert dataset.snapshot().verify() > 0


def test_the_store_says_why_it_refuses(ceph: CephServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = make_bucket(ceph.endpoint)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    store = store_at(url, copies=tmp_path)
    with pytest.raises(NotWritable, match=r"SignatureDoesNotMatch; check the URL, the credentials") as refused:
        store.create("a", b"x")
    assert "not-the-secret" not in str(refused.value)
    assert ceph.access_key not in str(refused.value)
    monkeypatch.undo()
    missing = store_at(url.replace("s3://mms-", "s3://mms-other-"), copies=tmp_path)
    for call in (lambda: missing.read("a"), lambda: missing.create("a", b""), lambda: missing.names("")):
        with pytest.raises(NotWritable, match="NoSuchBucket; check the URL"):
            call()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("s3://AKIA:secret@bucket/x", "holds no secrets"),
        ("ftp://host/x", "a store is a folder, or a URL of s3://"),
        ("s3:///x", "with a bucket or host"),
        ("s3://bucket?secret_access_key=x", "of options"),
    ],
)
def test_a_url_that_is_none_is_refused(tmp_path: Path, url: str, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told) as refused:
        store_at(url, copies=tmp_path)
    assert "secret@" not in str(refused.value)
