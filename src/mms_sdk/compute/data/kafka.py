"""Kafka as a stream: the offsets of all partitions are the position, and the broker keeps none of them."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import os
import re
import time
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

import orjson
from pydantic import Field, field_validator, model_validator

from mms_sdk.compute.data.streams import Record
from mms_sdk.errors import DataError, InvalidRequest, MissingExtra, Unavailable
from mms_sdk.schema.base import Asked
from mms_sdk.schema.dataset import Position

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Message

_ANSWER_S = 10.0
_POLL_S = 0.2
_MESSAGES = 500  # asked of the consumer at a time
_AHEAD_KIB = 16 * 1024  # that the consumer fetches before they are asked for
_PARTITIONS_S = 30.0  # between two looks whether there are more
_ADDRESS = re.compile(r"[A-Za-z0-9._\[\]:-]+:\d{1,5}")
_log = logging.getLogger("mms.streams")


class Kafka(Asked):
    """The messages of a Kafka topic, as a `Stream`. All partitions are read; new ones are noticed.

    Which messages were taken is told by the dataset alone: nothing is committed to the broker, and nobody shares the
    partitions. Messages of transactions that were not committed are passed over.

    Attributes:
        brokers: `host:port`, or several.
        topic: Which.
        group: Sent along as the consumer's group, for brokers that ask who reads.
        value: What a message's value is: `json` for an object with a value for each column; `text` or `bytes` for one
            column `value`.
        key: A column that is filled with the messages' keys, as text.
        timestamp: A column that is filled with the time that each message has.
        gaps: What is done if messages were deleted on the broker before they were read: `refuse` ends with an error,
            `pass` goes on with the oldest that are there.
        tls: Whether the connection is encrypted.
        ca: A file with the certificates that are trusted, if not those of the system.
        mechanism: How a user is authenticated.
        username_env: Environment variable with the user's name, read when the stream is.
        password_env: Environment variable with the password.
    """

    by_place = ("brokers", "topic")
    brokers: tuple[str, ...] = Field(min_length=1)
    topic: str = Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")
    group: str = Field(default="mms", min_length=1, max_length=249)
    value: Literal["json", "text", "bytes"] = "json"
    key: str | None = None
    timestamp: str | None = None
    gaps: Literal["refuse", "pass"] = "refuse"
    tls: bool = False
    ca: str | None = None
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    username_env: str | None = None
    password_env: str | None = None

    @field_validator("brokers", mode="before")
    @classmethod
    def _several(cls, brokers: Any) -> Any:
        return tuple(brokers.split(",")) if isinstance(brokers, str) else brokers

    @field_validator("brokers")
    @classmethod
    def _are_addresses(cls, brokers: tuple[str, ...]) -> tuple[str, ...]:
        if not all(map(_ADDRESS.fullmatch, brokers)):
            raise ValueError("brokers are host:port, without a user or a password: name environment variables for them")
        return brokers

    @model_validator(mode="after")
    def _is_safe(self) -> Kafka:
        if (self.username_env is None) != (self.password_env is None):
            raise ValueError("a user has a name and a password; give username_env= and password_env=, or neither")
        if self.username_env is not None and self.mechanism == "PLAIN" and not self.tls:
            raise ValueError("PLAIN sends the password as it is; give tls=True, or another mechanism=")
        return self

    @property
    def name(self) -> str:
        """`kafka:` and the topic."""
        return f"kafka:{self.topic}"

    async def records(self, after: Position) -> AsyncGenerator[Record, None]:
        """The messages behind the offsets of a position; all for None.

        Raises:
            MissingExtra: confluent-kafka is not installed.
            Unavailable: No broker answers.
            InvalidRequest: There is no such topic, a variable is not set, or it is another's position.
            DataError: Messages were deleted before they were read.
        """
        told, loop = _offsets(after, self.topic), asyncio.get_running_loop()
        # One thread for all calls: a consumer that is closed while it polls takes the process with it.
        with ThreadPoolExecutor(1, thread_name_prefix="mms-kafka") as thread:
            consumer = await loop.run_in_executor(thread, self._open)
            try:
                offsets = await loop.run_in_executor(thread, self._assign, consumer, told)
                looked = time.monotonic()
                while True:
                    for message in await loop.run_in_executor(thread, consumer.consume, _MESSAGES, _POLL_S):
                        if message.error() is not None:
                            self._refuse(message)
                        elif (record := self._next(message, offsets)) is not None:
                            yield record
                    if time.monotonic() - looked > _PARTITIONS_S:
                        looked = time.monotonic()
                        if await loop.run_in_executor(thread, self._partitions, consumer) - offsets.keys():
                            offsets = await loop.run_in_executor(thread, self._assign, consumer, offsets)
            finally:
                await loop.run_in_executor(thread, consumer.close)

    def _open(self) -> Consumer:
        try:
            from confluent_kafka import Consumer, KafkaException
        except ImportError as error:
            raise MissingExtra("confluent-kafka", extra="kafka") from error
        try:
            return Consumer(self._settings(), logger=_log)
        except KafkaException as error:
            raise InvalidRequest(
                f"a consumer begins with settings that fit; {error.args[0].str()}; mend them"
            ) from error

    def _settings(self) -> dict[str, Any]:
        protocol = ("SASL_" if self.username_env else "") + ("SSL" if self.tls else "PLAINTEXT")
        told = {
            "bootstrap.servers": ",".join(self.brokers),
            "group.id": self.group,
            "client.id": "mms",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest" if self.gaps == "pass" else "error",
            "max.poll.interval.ms": 24 * 3600 * 1000,  # it is not asked for more while a batch is being written
            "queued.max.messages.kbytes": _AHEAD_KIB,
            "security.protocol": protocol,
        }
        if self.ca is not None:
            told["ssl.ca.location"] = self.ca
        if self.username_env is not None and self.password_env is not None:
            told["sasl.mechanism"] = self.mechanism
            told["sasl.username"] = _secret(self.username_env)
            told["sasl.password"] = _secret(self.password_env)
        return told

    def _partitions(self, consumer: Consumer) -> set[str]:
        from confluent_kafka import KafkaError, KafkaException

        try:
            found = consumer.list_topics(self.topic, timeout=_ANSWER_S).topics[self.topic]
            if found.error is not None:
                raise KafkaException(found.error)
        except KafkaException as error:
            if error.args[0].code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
                raise InvalidRequest(
                    f"a stream reads a topic that is there; {self.topic!r} is not at {self._where}; make it first"
                ) from error
            raise Unavailable(
                f"the brokers at {self._where} do not tell of {self.topic!r}: {error.args[0].str()}"
            ) from error
        return {str(partition) for partition in found.partitions}

    def _assign(self, consumer: Consumer, offsets: Mapping[str, int]) -> dict[str, int]:
        from confluent_kafka import TopicPartition

        begin = {
            partition: self._first(consumer, int(partition), offsets.get(partition))
            for partition in sorted(self._partitions(consumer) | offsets.keys(), key=int)
        }
        consumer.assign([TopicPartition(self.topic, int(each), offset) for each, offset in begin.items()])
        return begin

    def _first(self, consumer: Consumer, partition: int, offset: int | None) -> int:
        from confluent_kafka import KafkaException, TopicPartition

        try:
            low, high = consumer.get_watermark_offsets(TopicPartition(self.topic, partition), timeout=_ANSWER_S)
        except KafkaException as error:
            raise Unavailable(
                f"the broker of partition {partition} of {self.topic!r} at {self._where} does not answer: "
                f"{error.args[0].str()}"
            ) from error
        if offset is not None and offset > high:
            raise DataError(
                f"a topic only grows; partition {partition} of {self.topic!r} ends at {high}, and it was read up to "
                f"{offset}, so it was made anew; follow it under another name, with named="
            )
        if offset is not None and offset < low:
            self._refuse_gap(partition, f"it was read up to {offset}, and the oldest is {low}")
        return max(low, offset or 0)

    def _refuse(self, message: Message) -> None:
        from confluent_kafka import KafkaError

        error = message.error()
        assert error is not None
        if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            self._refuse_gap(message.partition(), error.str())
        elif error.fatal() or not error.retriable():
            raise Unavailable(f"{self.topic!r} cannot be read from {self._where} any more: {error.str()}")

    def _refuse_gap(self, partition: int | None, told: str) -> None:
        gap = f"messages of partition {partition} of {self.topic!r} were deleted before they were read: {told}"
        if self.gaps == "refuse":
            raise DataError(f"{gap}; keep them longer on the broker, and go on without them by gaps='pass'")
        _log.warning("%s; going on without them", gap)

    def _next(self, message: Message, offsets: dict[str, int]) -> Record | None:
        # Counts the message in; after a new assignment some may come again.
        partition, offset = str(message.partition()), message.offset()
        assert offset is not None
        if offset < offsets.get(partition, 0):
            return None
        offsets[partition] = offset + 1
        name = f"partition {partition}, offset {offset}"
        try:
            values = self._values(message)
        except ValueError as error:
            return Record(dict(offsets), None, name, str(error))
        return Record(dict(offsets), values, name)

    def _values(self, message: Message) -> dict[str, Any]:
        data = message.value()
        if data is None:
            raise ValueError("the message has no value")
        values: dict[str, Any] = _object(data) if self.value == "json" else {"value": data}
        if self.value == "text":
            values = {"value": _as_text(data, "value")}
        if self.key is not None:
            key = message.key()
            values[self.key] = None if key is None else _as_text(key, "key")
        if self.timestamp is not None:
            values[self.timestamp] = _time(*message.timestamp())
        return values

    @property
    def _where(self) -> str:
        return ", ".join(self.brokers)


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def _object(data: Any) -> dict[str, Any]:
    try:
        values = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"the value is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"the value is a JSON object; got {type(values).__name__}")
    return values


def _time(kind: int, since_ms: int) -> dt.datetime | None:
    try:
        return _EPOCH + dt.timedelta(milliseconds=since_ms) if kind else None
    except OverflowError as error:
        raise ValueError(f"the message's time is {since_ms} ms, beyond the year 9999") from error


def _as_text(data: Any, what: str) -> str:
    try:
        return data if isinstance(data, str) else bytes(data).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"the {what} is no UTF-8: {error}") from error


def _secret(variable: str) -> str:
    try:
        return os.environ[variable]
    except KeyError as error:
        raise InvalidRequest(f"credentials come from the environment; {variable} is not set; set it first") from error


def _offsets(after: Position, topic: str) -> dict[str, int]:
    told = {} if after is None else after
    if not isinstance(told, dict) or not all(
        str(partition).isdecimal() and isinstance(offset, int) and offset >= 0 for partition, offset in told.items()
    ):
        raise InvalidRequest(
            f"a position of {topic!r} has an offset for each partition; got {str(after)[:200]}, another stream's; give "
            f"this one another name, with named="
        )
    return dict(told)
