"""A Kafka cluster on loopback: librdkafka's own imitation, which a producer of the tests' process holds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition


class KafkaCluster:
    """Three brokers; a topic is made, with four partitions, when something is first produced to it."""

    def __init__(self) -> None:
        self.producer = Producer({"test.mock.num.brokers": 3, "linger.ms": 1, "log_level": 2})
        brokers = self.producer.list_topics(timeout=10).brokers.values()
        self.brokers = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)

    def produce(self, topic: str, values: Iterable[Any], *, begin: int = 0) -> None:
        """Produces values, round the partitions; what is no bytes as JSON."""
        for number, value in enumerate(values, begin):
            data = value if value is None or isinstance(value, bytes) else json.dumps(value).encode()
            self.producer.produce(topic, data, key=f"key {number}", partition=number % 4, timestamp=10**12 + number)
        assert self.producer.flush(10) == 0

    def ends(self, topic: str, partition: int) -> tuple[int, int]:
        """The oldest offset of a partition, and the one behind the newest."""
        asking = Consumer({"bootstrap.servers": self.brokers, "group.id": "asks"})
        low, high = asking.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
        asking.close()
        return low, high
