"""What a job reads and makes: datasets and models, by reference."""

from __future__ import annotations

from typing import Literal, Self

from mms_sdk.errors import InvalidRequest
from mms_sdk.schema.base import Schema
from mms_sdk.schema.names import check_name, parse_dataset_ref, parse_model_ref

MODEL = "model:"
"""With what a reference to a model begins; one without is to a dataset."""
MAX_REFERENCES = 100
Way = Literal["input", "output"]


class Reference(Schema):
    """A dataset or a model, most often at a snapshot or version.

    Attributes:
        what: Which of the two.
        name: Its name.
        at: The snapshot or version, by number, or by tag or alias; None for any, or the newest.
        split: Of a dataset; None for all rows.
    """

    what: Literal["dataset", "model"]
    name: str
    at: int | str | None = None
    split: str | None = None

    @classmethod
    def of(cls, text: str) -> Self:
        """Reads `flowers`, `flowers@7/train`, `model:flowers` or `model:flowers@champion`.

        Raises:
            InvalidName: The text is none of these.
        """
        if isinstance(text, str) and text.startswith(MODEL):
            model = parse_model_ref(text.removeprefix(MODEL))
            return cls(what="model", name=model.name, at=model.version)
        dataset = parse_dataset_ref(text)
        return cls(what="dataset", name=dataset.name, at=dataset.snapshot, split=dataset.split)

    def __str__(self) -> str:
        return f"{MODEL if self.what == 'model' else ''}{self.plain}"

    @property
    def number(self) -> int | None:
        """Of the snapshot or version; None where it is not named by number."""
        return self.at if isinstance(self.at, int) else None

    @property
    def plain(self) -> str:
        """As it is written where it is clear what it is of, e.g. `flowers@7/train`."""
        at = "" if self.at is None else f"@{self.at}"
        return f"{self.name}{at}" + ("" if self.split is None else f"/{self.split}")


class JobLineage(Schema):
    """What a job reads and has made.

    Attributes:
        inputs: References by the labels they were given.
        outputs: What it has committed and registered, in that order.
    """

    inputs: dict[str, str] = {}
    outputs: tuple[str, ...] = ()


def check_references(asked: dict[str, str], *, way: Way) -> dict[str, str]:
    """Refuses labels that are none, and what is no reference; of outputs, one to a snapshot or version.

    Raises:
        InvalidRequest: There is such a one.
    """
    if len(asked) > MAX_REFERENCES:
        raise InvalidRequest(f"a job names at most {MAX_REFERENCES} {way}s; got {len(asked)}; leave some out")
    for label, text in asked.items():
        check_name(label, what=f"{way}'s")
        found = Reference.of(text)
        if way == "output" and (found.at is not None or found.split is not None):
            raise InvalidRequest(
                f"what a job is to make is named without a number, which it gets when it is made; got {text!r}; write "
                f"{str(Reference(what=found.what, name=found.name))!r}"
            )
    return asked
