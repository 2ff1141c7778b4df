from __future__ import annotations

import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pyarrow.parquet as pq
import pytest
import soundfile
from made_artifacts import edit_card, seal_again

import mms_sdk as mms
import small_kinds
from mms_sdk.compute.data.load import Loader
from mms_sdk.compute.inference.bulk import Output, predict_folder, predict_snapshot
from mms_sdk.compute.inference.predictor import Predictor
from mms_sdk.compute.training.trainer import Result
from mms_sdk.errors import ColumnNotFound, InvalidInput, InvalidRequest
from mms_sdk.schema.dataset import Column
from mms_sdk.schema.sources import ImageFolder
from mms_sdk.storage.reader import Position
from mms_sdk.storage.workspace import Workspace
from small_kinds import LABELS, RATE_HZ, SmallRows, trainer

CHANCE = 1 / len(LABELS)
KINDS = [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in ("text", "table"))) for kind in small_kinds.KINDS]


@dataclass(frozen=True)
class Trained:
    """A model of a kind of rows, and what it was trained on."""

    kind: str
    data: SmallRows
    result: Result
    predictor: Predictor
    folder: Path

    def raw(self, count: int) -> list[Any]:
        """The first test rows as a person would send them."""
        snapshot = self.data.open()
        rows = snapshot.split_rows("test")[:count]
        if self.kind == "table":
            columns = {name: snapshot.gather(name, rows).tolist() for name in ("size", "legs", "colour", "seen")}
            labels = snapshot.column("colour").labels
            assert labels is not None
            columns["colour"] = [None if code is None else labels[code] for code in columns["colour"]]
            columns["seen"] = [f"{np.datetime64(value, 'ms')}Z" for value in columns["seen"]]
            return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        stored = snapshot.gather(self.predictor.columns[0].name, rows)
        if self.kind == "text":
            return [row.decode() for row in stored]
        if self.kind == "audio":
            return [wav(row) for row in stored]
        return [row.tolist() for row in stored]


def wav(samples: Any, rate_hz: int = RATE_HZ) -> bytes:
    """The bytes of a WAV file, written by libsndfile."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format="WAV", subtype="PCM_16")
    return file.getvalue()


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train("table", tmp_path_factory.mktemp("one-table"), epochs=1)


def train(kind: str, folder: Path, **options: Any) -> Trained:
    data = small_kinds.make(folder / "workspace", kind)
    result = trainer(kind, **options).fit(data, progress="none")
    (folder / "artifact").mkdir()
    result.best.export(folder / "artifact")
    return Trained(kind, data, result, Predictor(folder / "artifact", buckets=(1, 8)), folder)


def test_it_learns_what_tells_the_classes_apart(trained: Trained) -> None:
    assert trained.result.evaluate("test")["test/accuracy"] >= 0.8 > 2 * CHANCE


def test_what_is_sent_is_prepared_bit_for_bit_as_in_training(trained: Trained) -> None:
    program = trained.result.best.program
    loader = Loader(
        trained.data.open(),
        "test",
        pipeline=program.pipeline,
        batch_size=8,
        seed=None,
        sharding=program.batch_sharding,
        inputs=program.inputs,
    )
    batch = next(iter(loader.epoch(Position())))
    prepared = np.stack([trained.predictor.prepare(item) for item in trained.raw(8)])

    assert prepared.dtype == batch.inputs.dtype
    np.testing.assert_array_equal(prepared, batch.inputs)
    assert np.abs(prepared.astype(np.float64)).sum() > 0


def test_the_version_says_what_the_checkpoint_says(trained: Trained) -> None:
    program, state = trained.result.best.program, trained.result.best.state
    rows = np.stack([trained.predictor.prepare(item) for item in trained.raw(8)])

    @jax.jit
    def scores(params: Any, rest: Any, batch: Any) -> Any:
        outputs, _ = program.model.apply(params, rest, program.pipeline.on_batch(batch), None)
        return program.task.scores(outputs)

    np.testing.assert_array_equal(trained.predictor.scores(rows), scores(state.params, state.rest, rows))
    best = [prediction.label for prediction in trained.predictor.predict(trained.raw(8))]
    assert best == [LABELS[code] for code in trained.predictor.scores(rows).argmax(1)]


def test_a_dataset_is_predicted_row_by_row(trained: Trained, tmp_path: Path) -> None:
    snapshot = trained.data.open()
    rows = snapshot.split_rows("test")
    told = predict_snapshot(
        trained.predictor,
        snapshot,
        "test",
        to=Output(path=tmp_path / "out.parquet", top=1),
        tell=lambda _progress: None,
    )
    table = pq.read_table(tmp_path / "out.parquet").to_pylist()

    assert told["rows"] == len(rows)
    assert told["errors"] == 0
    assert told["accuracy"] == pytest.approx(trained.result.evaluate("test")["test/accuracy"])
    assert [row["row"] for row in table] == rows.tolist()
    assert [row["label"] for row in table] == [LABELS[code] for code in snapshot.values("label")[rows]]
    assert [row["predicted"] for row in table[:8]] == [one.label for one in trained.predictor.predict(trained.raw(8))]


def test_the_least_that_can_be_sent_has_an_answer(trained: Trained) -> None:
    least = {
        "text": "",
        "table": dict.fromkeys(("size", "legs", "colour", "seen")),
        "audio": wav(np.zeros((8, 1), np.int16)),
        "series": [[0.0, 0.0]],
        "embedding": [0.0] * 6,
    }
    (told,) = trained.predictor.predict([least[trained.kind]])

    assert sum(score for _, score in told.top(3)) == pytest.approx(1, abs=1e-5)


def test_a_model_without_labels_answers_numbers(table: Trained, tmp_path: Path) -> None:
    shutil.copytree(table.folder / "artifact", tmp_path / "numbers")
    edit_card(tmp_path / "numbers", lambda card: card.update(task="regression", labels=[]))
    seal_again(tmp_path / "numbers")
    predictor = Predictor(tmp_path / "numbers", buckets=(1, 8))
    scores = table.predictor.scores(np.stack([table.predictor.prepare(item) for item in table.raw(8)]))

    answers = [one.values for one in predictor.predict(table.raw(8))]
    told = predict_snapshot(
        predictor, table.data.open(), "test", to=Output(path=tmp_path / "out.parquet"), tell=lambda _progress: None
    )
    written = pq.read_table(tmp_path / "out.parquet")

    np.testing.assert_array_equal(answers, scores)
    np.testing.assert_array_equal(written["values"].to_pylist()[:8], scores)
    assert written.column_names == ["row", "source", "label", "values", "error"]
    assert "accuracy" not in told


@pytest.mark.parametrize("kind", ["table", pytest.param("text", marks=pytest.mark.slow)])
def test_a_continued_run_is_as_one_that_never_stopped(kind: str, tmp_path: Path) -> None:
    data = small_kinds.make(tmp_path, kind)
    whole = trainer(kind, epochs=2).fit(data, progress="none")
    part = trainer(kind, epochs=1).fit(data, progress="none")
    continued = trainer(kind, epochs=2).fit(data, resume=part.job, progress="none")

    assert continued.history == whole.history
    for path, value in whole.last.state.params.items():
        np.testing.assert_array_equal(value, continued.last.state.params[path])


def test_a_row_without_one_of_the_columns_is_refused_by_name(table: Trained) -> None:
    row = table.raw(1)[0]
    with pytest.raises(InvalidInput, match=r"for each of \['size', 'legs', 'colour', 'seen'\] .* without \['legs'\]"):
        table.predictor.prepare({name: value for name, value in row.items() if name != "legs"})
    with pytest.raises(InvalidInput, match=r"got one also \['wings'\]"):
        table.predictor.prepare({**row, "wings": 2})
    with pytest.raises(InvalidInput, match="'legs' is a number; got str: 'six'"):
        table.predictor.prepare({**row, "legs": "six"})
    with pytest.raises(InvalidInput, match="'colour' is a category, a text; got int: 3"):
        table.predictor.prepare({**row, "colour": 3})
    with pytest.raises(InvalidInput, match=r"'seen' is a time such as .*; got 'yesterday'"):
        table.predictor.prepare({**row, "seen": "yesterday"})
    with pytest.raises(InvalidInput, match="column 'size' has inf"):
        table.predictor.prepare({**row, "size": float("inf")})


def test_an_unknown_category_counts_as_a_missing_one(table: Trained) -> None:
    row = table.raw(1)[0]
    unknown, missing = (table.predictor.prepare({**row, "colour": value}) for value in ("green", None))

    np.testing.assert_array_equal(unknown, missing)
    assert unknown[-1] == 0


def test_codes_of_another_dataset_are_read_by_their_names(table: Trained, tmp_path: Path) -> None:
    snapshot = table.data.open()
    rows = np.arange(snapshot.rows)
    values = {name: snapshot.gather(name, rows) for name in ("size", "legs", "colour", "seen")}
    turned = np.ma.MaskedArray(2 - np.ma.getdata(values["colour"]), np.ma.getmaskarray(values["colour"]))
    columns = [snapshot.column(name) for name in values]
    columns[2] = columns[2].model_copy(update={"labels": ("white", "blue", "red")})
    other = small_kinds.write(table.data.workspace, "turned", columns, {**values, "colour": turned})
    for number, opened in enumerate((snapshot, other.open())):
        to = tmp_path / f"{number}.parquet"
        predict_snapshot(table.predictor, opened, "test", to=Output(path=to), tell=lambda _progress: None)

    assert pq.read_table(tmp_path / "0.parquet").equals(pq.read_table(tmp_path / "1.parquet"))


def test_a_dataset_of_other_columns_and_a_folder_are_refused(table: Trained, tmp_path: Path) -> None:
    words = small_kinds.make(tmp_path, "text").open()
    with pytest.raises(ColumnNotFound, match="has no column 'size'"):
        predict_snapshot(
            table.predictor, words, None, to=Output(path=tmp_path / "x.parquet"), tell=lambda _progress: None
        )
    with pytest.raises(InvalidRequest, match="a folder holds pictures; this model takes rows of kind table"):
        predict_folder(
            table.predictor, ImageFolder(tmp_path), to=Output(path=tmp_path / "x.parquet"), tell=lambda _progress: None
        )


def test_a_stored_row_that_cannot_be_prepared_gets_its_reason_and_the_others_their_answer(
    table: Trained, tmp_path: Path
) -> None:
    snapshot = table.data.open()
    rows = np.arange(snapshot.rows)
    values: dict[str, Any] = {name: snapshot.gather(name, rows) for name in ("size", "legs", "colour", "seen")}
    first = int(snapshot.split_rows("test")[0])
    values["size"] = values["size"].filled(1.0)
    values["size"][first] = np.inf
    columns = [snapshot.column(name) for name in values]
    columns[0] = Column(name="size", kind="number", dtype="float64")
    other = small_kinds.write(table.data.workspace, "infinite", columns, values).open()
    told = predict_snapshot(
        table.predictor, other, "test", to=Output(path=tmp_path / "out.parquet"), tell=lambda _progress: None
    )
    written = pq.read_table(tmp_path / "out.parquet").to_pylist()

    assert told["errors"] == 1
    assert "column 'size' has inf" in written[0]["error"]
    assert all(row["predicted"] in LABELS for row in written[1:])


@pytest.mark.parametrize("varies", [False, True], ids=["of one length", "of many lengths"])
def test_a_forecast_is_asked_with_the_steps_before_and_says_those_after(varies: bool, tmp_path: Path) -> None:
    count, horizon = sum(small_kinds.ROWS.values()), 4
    kind: Any = "series" if varies else "embedding"
    column = Column(name="walk", kind=kind, dtype="float64", shape=(None if varies else 20, 1))
    walks = np.random.default_rng(0).normal(size=(count, 20, 1)).cumsum(1)
    stored = [walk[row % 2 :] for row, walk in enumerate(walks)] if varies else walks
    data = small_kinds.write(Workspace(tmp_path / "workspace"), "walks", [column], {"walk": stored})
    trainer = mms.Trainer(
        model=(
            lambda key, shape: {"bias": jax.numpy.zeros((1, 1, 1))},
            lambda params, x: x[:, -horizon:] + params["bias"],
        ),
        task=mms.Forecasting(horizon=horizon),
        optimizer=optax.sgd(0.0),
        preprocess=[mms.series.Window(20)] if varies else [],
        epochs=1,
    )
    (tmp_path / "artifact").mkdir()
    trainer.fit(data, progress="none").best.export(tmp_path / "artifact")
    predictor = Predictor(tmp_path / "artifact", buckets=(1, 8))

    # The model repeats what it saw last.
    (told,) = predictor.predict([walks[0, :16].tolist()])
    predict_snapshot(
        predictor, data.open(), "test", to=Output(path=tmp_path / "out.parquet"), tell=lambda _progress: None
    )
    written = pq.read_table(tmp_path / "out.parquet")

    np.testing.assert_allclose(np.array(told.values), walks[0, 12:16], rtol=1e-6)
    rows = written["row"].to_numpy()
    np.testing.assert_allclose(np.array(written["values"].to_pylist()), walks[rows, 16:, 0], rtol=1e-6)
    if not varies:
        with pytest.raises(InvalidInput, match=r"shape \(16, 1\); got float64 of shape \(20, 1\)"):
            predictor.predict([walks[0].tolist()])
