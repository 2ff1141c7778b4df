"""Kafka as a stream, against librdkafka's own cluster: every message once, in a snapshot or among the rejects."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition
from kafka_cluster import KafkaCluster
from small_streams import NUMBER, numbers

from mms_sdk.compute.data.follow import Batches, Following, follow
from mms_sdk.compute.data.kafka import Kafka
from mms_sdk.errors import DataError, InvalidRequest, MissingExtra, Unavailable
from mms_sdk.schema.dataset import Column
from mms_sdk.storage.datasets import Dataset
from mms_sdk.storage.stores.local import LocalStore
from mms_sdk.testing.streams import StreamConformance
from torture import times

DRIVER = Path(__file__).with_name("follows_kafka.py")


@pytest.fixture(scope="module")
def cluster():
    return KafkaCluster()


@pytest.fixture
def take(cluster, tmp_path):
    """Follows a topic into one dataset until it has brought or left out so many messages."""
    dataset = Dataset.create(LocalStore(tmp_path / "rows"), "rows")

    def take(kafka, count, *, columns=(NUMBER,)):
        stop, seen = threading.Event(), 0

        def tell(_):
            nonlocal seen
            seen += dataset.record().provenance["cleaning"]["found"]
            if seen >= count:
                stop.set()

        asked = Following(columns=columns, batches=Batches(rows=100, seconds=0.2))
        asyncio.run(asyncio.wait_for(follow(dataset, kafka, asked, job="j", folder=tmp_path, tell=tell, stop=stop), 60))
        return dataset.snapshot()

    return take


class TestKafka(StreamConformance):
    count = 10

    @pytest.fixture
    def stream(self, cluster):
        found = Kafka(cluster.brokers, "conformance", key="key")
        if "conformance" not in cluster.producer.list_topics(timeout=10).topics:
            cluster.produce("conformance", [*numbers(9), b"no json"])
        return found


def test_messages_come_in_with_key_and_time_and_what_is_no_record_is_listed(cluster, take, tmp_path) -> None:
    columns = (
        NUMBER,
        Column(name="key", kind="text", dtype="uint8", shape=None),
        Column(name="at", kind="timestamp", dtype="int64", unit="ms"),
    )
    odd = [b"{", b"[1]", b"\xff", None, {"number": "x"}, {}]
    cluster.produce("odd", [*numbers(6), *odd])

    snapshot = take(Kafka(cluster.brokers, "odd", key="key", timestamp="at"), 12, columns=columns)

    assert sorted(snapshot.values("number").tolist()) == list(range(6))
    for row in range(6):
        number = snapshot.values("number")[row]
        assert snapshot.gather("key", [row]) == [f"key {number}".encode()]
        assert snapshot.values("at")[row] == 10**12 + number
    listed = sorted((tmp_path / "rejects.jsonl").read_text().splitlines())
    assert len(listed) == 6
    for reason in ("is no JSON", "is a JSON object; got list", "has no value", "no value in 'number'", "got 'x'"):
        assert sum(reason in line for line in listed) == (2 if reason == "is no JSON" else 1)
    assert '"source":"partition 2, offset 1"' in "".join(listed)
    assert snapshot.record.positions == {"kafka:odd": {"0": 3, "1": 3, "2": 3, "3": 3}}


@pytest.mark.parametrize("value", ["text", "bytes"])
def test_values_that_are_no_json_become_a_column(cluster, take, value) -> None:
    cluster.produce(f"plain-{value}", ["å".encode(), b"", b"\x00"])
    column = Column(name="value", kind=value, dtype="uint8", shape=None)
    snapshot = take(Kafka(cluster.brokers, f"plain-{value}", value=value), 3, columns=(column,))
    assert sorted(snapshot.gather("value", range(3))) == [b"", b"\x00", "å".encode()]


def test_it_goes_on_where_the_dataset_ends_and_tells_the_broker_nothing(cluster, take) -> None:
    kafka = Kafka(cluster.brokers, "grows", group="watched")
    cluster.produce("grows", numbers(20))
    take(kafka, 20)
    cluster.produce("grows", numbers(30, begin=20), begin=20)
    snapshot = take(kafka, 30)
    assert sorted(snapshot.values("number").tolist()) == list(range(50))
    asking = Consumer({"bootstrap.servers": cluster.brokers, "group.id": "watched"})
    committed = asking.committed([TopicPartition("grows", each) for each in range(4)], timeout=10)
    asking.close()
    assert [each.offset for each in committed] == [-1001] * 4  # none


def test_partitions_that_are_added_are_noticed_and_nothing_comes_twice(cluster, take, monkeypatch) -> None:
    cluster.produce("wider", numbers(400))
    known, asked = Kafka._partitions, []

    def partitions(self, consumer):  # only two of the four, the first times it is asked
        asked.append(1)
        return {"0", "1"} if len(asked) <= 2 else known(self, consumer)

    monkeypatch.setattr(Kafka, "_partitions", partitions)
    monkeypatch.setattr("mms_sdk.compute.data.kafka._PARTITIONS_S", 0.1)
    snapshot = take(Kafka(cluster.brokers, "wider"), 400)
    assert sorted(snapshot.values("number").tolist()) == list(range(400))
    assert len(asked) > 2


def test_a_topic_that_was_made_anew_is_refused(cluster) -> None:
    cluster.produce("anew", numbers(4))

    async def read():
        async for _ in Kafka(cluster.brokers, "anew").records({"0": 5}):
            pass

    with pytest.raises(
        DataError, match="partition 0 of 'anew' ends at 1, and it was read up to 5, so it was made anew"
    ):
        asyncio.run(read())


def test_messages_that_were_deleted_before_they_were_read_end_it_or_are_passed(cluster, caplog) -> None:
    cluster.produce("short", [b"%d" % number * 900_000 for number in range(9) for _ in range(4)])  # it keeps 5 MiB
    low, _ = cluster.ends("short", 2)
    assert low > 1

    async def first(kafka):
        async with contextlib.aclosing(kafka.records({"0": 9, "1": 9, "2": 1, "3": 9})) as records:
            return await anext(records)

    gone = (
        rf"of partition 2 of 'short' were deleted before they were read: it was read up to 1, and the oldest is {low}"
    )
    with pytest.raises(DataError, match=gone):
        asyncio.run(first(Kafka(cluster.brokers, "short", value="bytes")))
    record = asyncio.run(first(Kafka(cluster.brokers, "short", value="bytes", gaps="pass")))
    assert record.name == f"partition 2, offset {low}"
    assert "going on without them" in caplog.text


@pytest.mark.parametrize("after", [7, "x", [1], {"a": 1}, {"0": -1}, {"0": "1"}, {"0": 1.5}, {"next": 3}])
def test_a_position_of_another_stream_is_refused(cluster, after) -> None:
    async def read():
        async for _ in Kafka(cluster.brokers, "conformance").records(after):
            pass

    with pytest.raises(InvalidRequest, match="a position of 'conformance' has an offset for each partition"):
        asyncio.run(read())


def test_a_topic_that_is_not_there_and_brokers_that_do_not_answer_are_told(cluster, monkeypatch) -> None:
    async def read(kafka):
        async for _ in kafka.records(None):
            pass

    with pytest.raises(InvalidRequest, match="a stream reads a topic that is there; 'nowhere' is not at"):
        asyncio.run(read(Kafka(cluster.brokers, "nowhere")))
    monkeypatch.setattr("mms_sdk.compute.data.kafka._ANSWER_S", 0.5)
    with pytest.raises(Unavailable, match=r"the brokers at 127\.0\.0\.1:1 do not tell of 'x'"):
        asyncio.run(read(Kafka("127.0.0.1:1", "x")))
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(MissingExtra, match=r'pip install "mms-sdk\[kafka\]"'):
        asyncio.run(read(Kafka("127.0.0.1:1", "x")))


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"brokers": "user:secret@host:9092"}, "brokers are host:port, without a user"),
        ({"brokers": "kafka://host:9092"}, "brokers are host:port"),
        ({"brokers": "host"}, "brokers are host:port"),
        ({"brokers": ()}, "brokers"),
        ({"topic": "a/b"}, "topic"),
        ({"topic": ""}, "topic"),
        ({"topic": "^all.*"}, "topic"),
        ({"username_env": "WHO"}, "a user has a name and a password"),
        ({"username_env": "WHO", "password_env": "WORD", "mechanism": "PLAIN"}, "sends the password as it is"),
        ({"value": "avro"}, "value"),
        ({"password": "secret"}, "password"),
    ],
)
def test_what_does_not_fit_is_refused(fields, rule) -> None:
    with pytest.raises(InvalidRequest, match=rule) as raised:
        Kafka(**{"brokers": "host:9092", "topic": "x", **fields})
    assert "secret" not in str(raised.value) or "password" in fields


def test_credentials_come_from_the_environment_and_are_not_in_what_is_kept(monkeypatch) -> None:
    kafka = Kafka("host:9092", "x", tls=True, username_env="WHO", password_env="WORD")
    with pytest.raises(InvalidRequest, match="credentials come from the environment; WHO is not set"):
        kafka._settings()
    monkeypatch.setenv("WHO", "me")
    monkeypatch.setenv("WORD", "hush")
    told = kafka._settings()
    assert (told["security.protocol"], told["sasl.mechanism"]) == ("SASL_SSL", "SCRAM-SHA-512")
    assert (told["sasl.username"], told["sasl.password"]) == ("me", "hush")
    assert "hush" not in repr(kafka) + kafka.model_dump_json()


def _message(number: int) -> object:
    return b"no json %d" % number if number % 7 == 3 else {"number": number}


def _followers(cluster: KafkaCluster, folder: Path, topic: str, count: int, *, upto: int = 10**9) -> list:
    command = [sys.executable, str(DRIVER), cluster.brokers, topic, str(folder), str(upto)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    return started


def _assert_each_message_once(folder: Path, made: int) -> None:
    dataset = Dataset.open(LocalStore(folder / "rows"), "rows")
    dataset.verify()
    snapshot = dataset.snapshot()
    told = Counter(snapshot.values("number").tolist())
    for number in dataset.snapshots():
        provenance = dataset.record(number).provenance
        begin, end = provenance["rejects"]
        listed = (folder / "jobs" / provenance["job"] / "rejects.jsonl").read_bytes()[begin:end].splitlines()
        for line in listed:
            partition, offset = (int(word) for word in re.findall(rb"partition (\d+), offset (\d+)", line)[0])
            told[offset * 4 + partition] += 1  # messages were produced round the four partitions
    assert told == Counter(range(made))
    assert snapshot.rows == sum(number % 7 != 3 for number in range(made))


@pytest.mark.parametrize(
    ("kills", "followers"),
    [(2, 1), *(pytest.param(times(8, full=25), many, marks=pytest.mark.torture) for many in (1, 2))],
)
@pytest.mark.timeout(600)
def test_followers_killed_at_any_moment_bring_every_message_once(cluster, tmp_path, capsys, kills, followers) -> None:
    topic, drawn, made, left = f"kills-{kills}-{followers}", random.Random(7), 0, 0
    dataset = Dataset.create(LocalStore(tmp_path / "rows"), "rows")
    for _ in range(kills):
        count = drawn.randint(400, 800) if kills > 2 else 300
        cluster.produce(topic, map(_message, range(made, made + count)), begin=made)
        made += count
        processes = _followers(cluster, tmp_path, topic, followers)
        upto = len(dataset.snapshots()) + drawn.randint(0, 5)
        while len(dataset.snapshots()) < upto:
            time.sleep(0.01)
        time.sleep(drawn.uniform(0, 0.3))
        for process in processes:
            process.send_signal(signal.SIGKILL)
        assert [process.wait() for process in processes] == [-signal.SIGKILL] * followers
        for process in processes:
            process.stdout.close()
        left += not dataset.snapshots() or sum(dataset.record().positions[f"kafka:{topic}"].values()) < made
    [last] = _followers(cluster, tmp_path, topic, 1, upto=made)
    assert last.communicate(timeout=120)[0].endswith("done\n")
    assert last.returncode == 0

    _assert_each_message_once(tmp_path, made)
    with capsys.disabled():
        told = f"{left} times with messages left; {made:,} messages in {len(dataset.snapshots())} snapshots"
        print(f"\n{kills} × {followers} followers killed, {told}")
