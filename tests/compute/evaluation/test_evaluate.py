"""Versions of every task that is measured, on small datasets; and data that does not fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest

from mms_sdk.compute.data.kinds.rows import kind_of
from mms_sdk.compute.data.preprocess.pipeline import Pipeline, to_json
from mms_sdk.compute.data.preprocess.text import Bytes
from mms_sdk.compute.evaluation.evaluate import Version, evaluate
from mms_sdk.compute.evaluation.slicing import slices_of
from mms_sdk.compute.inference.predictor import BULK_BUCKETS, Predictor, bulk_buckets
from mms_sdk.errors import ColumnNotFound, DataError, InvalidRequest
from mms_sdk.schema.dataset import Column
from mms_sdk.schema.evaluation import EvaluateJob, Evaluation
from mms_sdk.schema.model import Lineage, ModelCard, Signature, TensorSpec
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.workspace import Workspace
from small_kinds import LABELS, classes_of, write

COUNT = 180
VECTOR = Column(name="vector", kind="embedding", dtype="float32", shape=(4,))


class Linear:
    """A version whose scores are its input times a matrix, and what else the task does to that."""

    buckets = (7,)
    input_shape = (4,)
    input_dtype = np.dtype("float32")

    def __init__(
        self, task: str, target: str | None, labels: Sequence[str] = (), threshold: float | None = None
    ) -> None:
        outputs = (len(labels),) if labels else (1,)
        self.columns = (VECTOR,)
        self.kind = kind_of(self.columns)
        self._pipeline = Pipeline(host=())
        self.asked: list[Any] = []
        self.card = ModelCard(
            task=task,
            kind="embedding",
            columns=self.columns,
            target=target,
            signature=Signature(
                inputs=(TensorSpec(name="embedding", dtype="float32", shape=(4,)),),
                outputs=(TensorSpec(name="scores", dtype="float32", shape=outputs),),
            ),
            host=(),
            device=(),
            labels=tuple(labels),
            options={} if threshold is None else {"threshold": threshold},
            metrics={},
            lineage=Lineage(dataset="any@1", job="J", step=1),
            platforms=("cpu",),
            parameters=0,
            created_at="",
        )

    prepare_stored = Predictor.prepare_stored

    def scores(self, rows: Any) -> Any:
        if self.card.task == "regression":
            return rows[:, :1] * 2
        logits = np.take(rows, [*range(len(self.card.labels))], axis=1).astype(np.float64)
        raised = np.exp(3 * logits)
        if self.card.task == "multi-label":
            return (raised / (1 + raised)).astype(np.float32)
        return (raised / raised.sum(1, keepdims=True)).astype(np.float32)


def ask(
    version: Any, snapshot: OpenSnapshot, split: str | None = None, *, against: Any = None, **asked: Any
) -> Evaluation:
    def named(ref: str, each: Any) -> Version:
        return Version(ref=ref, predictor=cast(Predictor, each))

    return evaluate(
        named("v@1", version),
        snapshot,
        split,
        asked=EvaluateJob(model="v@1", dataset="d", resamples=100, **asked),
        against=None if against is None else named("v@2", against),
        job="J",
        tell=lambda _: None,
    )


def vectors(seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(COUNT, 4)).astype(np.float32)
    found[np.arange(COUNT), classes_of(COUNT)] += 1
    return found


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> OpenSnapshot:
    rng = np.random.default_rng(9)
    values = vectors()
    price = values[:, 0] * 2.0 + rng.normal(size=COUNT)
    masked = rng.random(COUNT) < 0.2
    columns = [
        VECTOR,
        Column(name="tags", kind="number", dtype="uint8", shape=(3,), labels=LABELS),
        Column(name="price", kind="number", dtype="float64", nullable=True),
        Column(name="stars", kind="number", dtype="int8"),
        Column(name="seen", kind="timestamp", dtype="int64", unit="ms"),
        Column(name="words", kind="text", dtype="uint8", shape=None),
        Column(name="animal", kind="category", dtype="int32", labels=("cat", "ant", "dog", "bee"), nullable=True),
        Column(name="broken", kind="embedding", dtype="float32", shape=(4,)),
        Column(name="never", kind="number", dtype="float64", nullable=True),
    ]
    stored = {
        "vector": values,
        "tags": (values[:, :3] + rng.normal(size=(COUNT, 3)) > 0.5).astype(np.uint8),
        "price": np.ma.MaskedArray(price, masked),
        "stars": rng.integers(1, 5, COUNT).astype(np.int8),
        "seen": np.arange(COUNT) * 86_400_000,
        "words": [b"x"] * COUNT,
        "animal": np.ma.MaskedArray(rng.integers(0, 4, COUNT).astype(np.int32), masked),
        "broken": np.full((COUNT, 4), np.nan, np.float32),
        "never": np.ma.MaskedArray(price, True),
    }
    return write(Workspace(tmp_path_factory.mktemp("evaluate") / "ws"), "kinds", columns, stored).open()


def test_numbers_are_measured_on_rows_that_have_one(snapshot: OpenSnapshot) -> None:
    told = ask(Linear("regression", "price"), snapshot, "test")

    rows = snapshot.split_rows("test")
    price = snapshot.values("price")[rows]
    off = snapshot.gather("vector", rows)[:, 0] * 2.0 - price
    assert told.rows == off.count()
    assert told.left_out == {"without a target": int(np.ma.count_masked(price))}
    assert told.metrics["mae"].value == pytest.approx(np.abs(off).mean())
    assert told.metrics["rmse"].value == pytest.approx(np.sqrt((off**2).mean()))
    assert told.residuals["50%"] == pytest.approx(np.quantile(off.compressed(), 0.5))
    assert told.mistakes[0].score == pytest.approx(np.abs(off).max())
    assert told.mistakes[0].row == rows[np.ma.argmax(np.abs(off))]
    assert (told.classes, told.confusion, told.calibration) == ((), (), ())
    assert told.notes == ()


def test_several_classes_at_once_are_measured_by_the_threshold_of_the_training(snapshot: OpenSnapshot) -> None:
    version = Linear("multi-label", "tags", LABELS, threshold=0.7)

    told = ask(version, snapshot, "val")

    rows = snapshot.split_rows("val")
    targets = snapshot.values("tags")[rows] == 1
    said = version.scores(snapshot.gather("vector", rows)) >= 0.7
    assert told.metrics["accuracy"].value == np.mean((said == targets).all(1))
    assert told.metrics["recall_micro"].value == pytest.approx(said[targets].mean())
    assert [each.rows for each in told.classes] == targets.sum(0).tolist()
    assert told.notes == ("a class counts as said from a probability of 0.7",)


def test_classes_are_known_by_their_names_and_those_that_are_not_are_counted(snapshot: OpenSnapshot) -> None:
    version = Linear("classification", "animal", LABELS)

    told = ask(version, snapshot, "test")

    rows = snapshot.split_rows("test")
    codes = snapshot.values("animal")[rows]
    names = ["" if code is np.ma.masked else ("cat", "ant", "dog", "bee")[code] for code in codes]
    dogs, none = names.count("dog"), names.count("")
    assert told.unknown_classes == {"dog": dogs}
    assert told.left_out == {"without a target": none, "of a class that the version does not know": dogs}
    known = [at for at, name in enumerate(names) if name in LABELS]
    said = version.scores(snapshot.gather("vector", rows[known])).argmax(1)
    right = [LABELS[code] == names[at] for code, at in zip(said, known, strict=True)]
    assert told.rows == len(known)
    assert told.metrics["accuracy"].value == np.mean(right)
    assert "does not know some classes of the data, which count nowhere here (rows): dog" in told.notes[0]


def test_classes_without_rows_are_named(snapshot: OpenSnapshot) -> None:
    told = ask(Linear("classification", "label", (*LABELS, "dodo")), snapshot, "test")
    assert told.absent_classes == ("dodo",)
    assert told.classes[3].recall is None


def test_two_versions_with_their_classes_in_another_order_are_compared_by_name(snapshot: OpenSnapshot) -> None:
    class Turned(Linear):
        def scores(self, rows: Any) -> Any:
            return Linear("classification", "label", LABELS).scores(rows)[:, ::-1]

    told = ask(
        Linear("classification", "label", LABELS),
        snapshot,
        "test",
        against=Turned("classification", "label", LABELS[::-1]),
    )

    assert told.comparison is not None
    assert {each.value for each in told.comparison.differences.values()} == {0.0}


def test_a_better_version_differs_and_the_test_says_so(snapshot: OpenSnapshot) -> None:
    class Worse(Linear):
        def scores(self, rows: Any) -> Any:
            return super().scores(rows[:, [1, 2, 0, 3]])

    told = ask(
        Linear("classification", "label", LABELS), snapshot, against=Worse("classification", "label", LABELS)
    ).comparison

    assert told is not None
    assert told.differences["accuracy"].low is not None
    assert told.differences["accuracy"].low > 0
    assert told.mcnemar is not None
    assert told.mcnemar.p_value < 1e-6
    assert told.mcnemar.only_first > told.mcnemar.only_second


@pytest.mark.parametrize(
    ("version", "error", "match"),
    [
        (Linear("classification", "none", LABELS), ColumnNotFound, "no column 'none'"),
        (Linear("classification", "price", LABELS), InvalidRequest, "'price' is one class a row; in kinds@1 it is of"),
        (Linear("classification", "animal", ("dodo", "emu")), DataError, "are of classes that the version does not"),
        (Linear("classification", "broken", LABELS), InvalidRequest, "of kind embedding"),
        (Linear("regression", "words"), InvalidRequest, "is a number a row; in kinds@1 it is of kind text"),
        (Linear("regression", "label"), InvalidRequest, "is a number a row; in kinds@1 it is of kind label"),
        (Linear("regression", "never"), DataError, "of 30 rows 30 have none"),
        (Linear("regression", "vector"), InvalidRequest, "says 1 numbers a row, and 'vector' has 4 here"),
        (Linear("multi-label", "label", LABELS), InvalidRequest, "one 0 or 1 for each class"),
        (Linear("multi-label", "vector", ("0", "1")), InvalidRequest, "one 0 or 1 for each class; .*it holds"),
        (Linear("multi-label", "tags", ("ant", "emu")), InvalidRequest, r"classes \['emu'\], which 'tags' of kinds@1"),
        (
            Linear("custom", "label", LABELS),
            InvalidRequest,
            "trained for custom, whose loss is code that a version does",
        ),
        (Linear("embedding", "price"), InvalidRequest, "'price' is one class a row"),
    ],
)
def test_data_that_does_not_fit_is_refused(
    snapshot: OpenSnapshot, version: Linear, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        ask(version, snapshot, "test")


class Told(Linear):
    """A version of a task whose answers are a function of its inputs."""

    def __init__(self, task: str, says: Callable[[Any], Any], *, target: str | None = None, **options: Any) -> None:
        super().__init__(task, target)
        self.says = says
        self.card = self.card.model_copy(update={"options": options})

    def scores(self, rows: Any) -> Any:
        return self.says(rows)


def test_forecasts_are_measured_on_the_steps_that_the_version_does_not_see(snapshot: OpenSnapshot) -> None:
    version = Told("forecasting", lambda rows: rows[:, -1:], horizon=1, quantiles=[0.5])
    version.input_shape = (3,)

    told = ask(version, snapshot, "test", slices=("stars",))

    vectors = snapshot.gather("vector", snapshot.split_rows("test"))
    assert told.metrics["mae"].value == pytest.approx(np.abs(vectors[:, 3] - vectors[:, 2]).mean(), rel=1e-5)
    assert told.metrics["relative_mae"].value == pytest.approx(1)
    assert (told.rows, told.target, len(told.steps), told.notes) == (30, "", 1, ())
    assert {"mae", "rmse", "mase", "relative_mae"} == set(told.slices[0].metrics)


def test_vectors_are_measured_by_their_neighbours_of_any_class(snapshot: OpenSnapshot) -> None:
    told = ask(Told("embedding", lambda rows: rows / np.linalg.norm(rows, axis=1)[:, None], target="label"), snapshot)

    vectors = snapshot.gather("vector", np.arange(COUNT))
    cosines = vectors @ vectors.T / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vectors, axis=1)[:, None]
    np.fill_diagonal(cosines, -2)
    labels = snapshot.values("label")
    assert told.metrics["recall_at_1"].value == np.mean(labels[cosines.argmax(1)] == labels)
    assert told.metrics["recall_at_1"].interval == "wilson"
    assert told.mistakes[0].target != told.mistakes[0].predicted


def test_reconstructions_are_measured_against_the_inputs_and_compared(snapshot: OpenSnapshot) -> None:
    near, far = (Told("reconstruction", lambda rows, by=by: rows * by) for by in (0.9, 0.5))

    told = ask(near, snapshot, "test", against=far)

    vectors = snapshot.gather("vector", snapshot.split_rows("test"))
    assert told.metrics["mae"].value == pytest.approx(0.1 * np.abs(vectors).mean(), rel=1e-5)
    assert told.comparison is not None
    assert told.comparison.differences["mae"].value == pytest.approx(-0.4 * np.abs(vectors).mean(), rel=1e-5)
    assert told.mistakes[0].score == told.row_errors["100%"]


def test_texts_are_measured_by_token(snapshot: OpenSnapshot) -> None:
    step = Bytes(6)
    version = Told("language-modelling", lambda rows: np.zeros((*rows.shape, step.vocabulary), np.float32), pad_id=0)
    version.columns = (snapshot.column("words"),)
    version.kind, version._pipeline = kind_of(version.columns), Pipeline(host=(step,))
    version.input_shape, version.input_dtype = (6,), np.dtype("int32")
    version.card = version.card.model_copy(update={"host": (to_json(step),)})

    told = ask(version, snapshot, "test")

    assert told.metrics["perplexity"].value == pytest.approx(step.vocabulary)
    assert told.metrics["bits_per_byte"].value is None  # each text is one byte, which nothing says
    assert told.mistakes[0].target == "1 token"


@pytest.mark.parametrize(
    ("task", "first", "second"),
    [
        ("forecasting", {"horizon": 1, "quantiles": [0.5]}, {"horizon": 2, "quantiles": [0.5]}),
        ("reconstruction", {}, {"device": ({"step": "series.standardize", "mean": [0.0], "std": [2.0]},)}),
    ],
)
def test_versions_that_are_measured_in_something_else_are_not_compared(
    snapshot: OpenSnapshot, task: str, first: dict[str, Any], second: dict[str, Any]
) -> None:
    one, other = (Told(task, lambda rows: rows, **options) for options in (first, second))
    other.card = other.card.model_copy(update={"device": second.get("device", ())})
    with pytest.raises(InvalidRequest, match=f"those of {task} share horizon, tokens and what"):
        ask(one, snapshot, "test", against=other)


def test_batches_are_the_smaller_the_larger_answers_are() -> None:
    card = Linear("regression", "price").card
    large = Signature(
        inputs=card.signature.inputs, outputs=(TensorSpec(name="s", dtype="float32", shape=(2**10, 2**12)),)
    )
    assert bulk_buckets(card) == BULK_BUCKETS
    assert bulk_buckets(card.model_copy(update={"signature": large})) == (4,)


def test_scores_that_are_no_numbers_are_refused(snapshot: OpenSnapshot) -> None:
    class Diverged(Linear):
        def scores(self, rows: Any) -> Any:
            scores = super().scores(rows)
            scores[3:4] = np.nan
            return scores

    rows = snapshot.split_rows("test")
    with pytest.raises(DataError, match=f"finite scores; of 30 rows 4 have others, e.g. row {rows[3]}; look"):
        ask(Diverged("classification", "label", LABELS), snapshot, "test")


def test_data_of_another_kind_is_refused(snapshot: OpenSnapshot) -> None:
    version = Linear("classification", "label", LABELS)
    version.columns = (VECTOR.model_copy(update={"name": "words"}),)
    with pytest.raises(InvalidRequest, match="the model takes rows of kind embedding"):
        ask(version, snapshot, "test")


@pytest.mark.parametrize(
    ("other", "match"),
    [
        (Linear("regression", "price"), "classification of 'label', v@2 for regression of 'price'"),
        (Linear("classification", "animal", LABELS), "v@2 for classification of 'animal'"),
        (Linear("classification", "label", (*LABELS[:2], "dog")), r"only one of v@1 and v@2 knows \['cat', 'dog'\]"),
    ],
)
def test_versions_that_answer_something_else_are_not_compared(
    snapshot: OpenSnapshot, other: Linear, match: str
) -> None:
    with pytest.raises(InvalidRequest, match=match):
        ask(Linear("classification", "label", LABELS), snapshot, "test", against=other)


def test_rows_are_told_apart_by_value_by_quarters_and_by_having_none(snapshot: OpenSnapshot) -> None:
    rows = snapshot.split_rows("train")
    for name in ("label", "animal", "price", "stars", "seen"):
        found = slices_of(snapshot, name, rows)
        together = np.concatenate([each.places for each in found])
        assert sorted(together.tolist()) == list(range(len(rows))), name  # each row once
    stars = snapshot.values("stars")[rows]
    assert {each.value: len(each.places) for each in slices_of(snapshot, "stars", rows)} == {
        str(value): int((stars == value).sum()) for value in np.unique(stars)
    }
    price = snapshot.values("price")[rows]
    *quarters, none = slices_of(snapshot, "price", rows)
    assert (len(quarters), none.value, len(none.places)) == (4, "no value", np.ma.count_masked(price))
    sizes = [len(each.places) for each in quarters]
    assert max(sizes) - min(sizes) <= 2
    highest = [price[each.places].max() for each in quarters]
    assert highest == sorted(highest)
    assert slices_of(snapshot, "seen", rows)[0].value.startswith("1970-01-0")
    with pytest.raises(InvalidRequest, match="'words' of kinds@1 is of kind text"):
        slices_of(snapshot, "words", rows)


def test_slices_measure_the_rows_that_were_answered(snapshot: OpenSnapshot) -> None:
    told = ask(Linear("regression", "price"), snapshot, "test", slices=("stars", "animal"))
    by_stars = [each for each in told.slices if each.column == "stars"]
    assert sum(each.rows for each in by_stars) == told.rows
    total = sum(each.rows * (each.metrics["mae"].value or 0) for each in by_stars)
    assert total / told.rows == pytest.approx(told.metrics["mae"].value)
    assert set(by_stars[0].metrics) == {"mae", "rmse", "bias"}
