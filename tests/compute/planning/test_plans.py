"""Plans: exact where arithmetic is, near XLA where it is an estimate, and refusals that say what would do."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mms_sdk import told
from mms_sdk.compute.data.preprocess.image import Normalize, RandomFlip
from mms_sdk.compute.models import MLP, ConvNet
from mms_sdk.compute.planning import devices
from mms_sdk.compute.planning.devices import DEVICES, Device, parse_target
from mms_sdk.compute.planning.plan import Plan
from mms_sdk.compute.sharding.rules import PartitionRules
from mms_sdk.compute.training.trainer import Trainer
from mms_sdk.errors import DataError, InvalidRequest, SplitNotFound
from mms_sdk.schema.dataset import SPLITS, Column
from mms_sdk.storage.changes import Addition
from mms_sdk.storage.reader import Reader
from mms_sdk.storage.snapshots import OpenSnapshot
from mms_sdk.storage.workspace import Workspace

SHAPE, ROWS = (8, 8, 3), 96
MEGATRON = PartitionRules(
    (
        ("layers/0/kernel", (None, "tensor")),
        ("layers/0/bias", ("tensor",)),
        ("layers/1/kernel", ("tensor", None)),
    )
)
BASE = Trainer(model=MLP(num_classes=3, widths=(64, 32)), batch_size=32, epochs=4)


class Dataset:
    """A dataset whose values nobody may read."""

    def __init__(self, workspace: Workspace, name: str) -> None:
        self.workspace = workspace
        self.name = name

    def open(self) -> OpenSnapshot:
        return self.workspace.dataset(self.name).snapshot()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    workspace = Workspace(tmp_path_factory.mktemp("plans") / "workspace")
    for name, labels, split in (("many", ("a", "b", "c"), 0), ("one", ("a",), 0), ("untrained", ("a", "b"), 2)):
        columns = (
            Column(name="image", kind="image", dtype="uint8", shape=SHAPE, color="rgb"),
            Column(name="label", kind="label", dtype="int32", labels=labels),
            Column(name="split", kind="split", dtype="uint8", labels=SPLITS),
        )
        dataset = workspace.open_or_create_dataset(name)
        with dataset.writer(columns) as writer:
            writer.write(
                {
                    "image": np.zeros((ROWS, *SHAPE), np.uint8),
                    "label": np.zeros(ROWS, np.int32),
                    "split": np.full(ROWS, split, np.uint8),
                }
            )
            part = writer.close()
        addition = Addition(parts=(part,), columns=columns, splits={SPLITS[split]: ROWS}, classes={labels[0]: ROWS})
        dataset.commit(addition, base=None, rebase=False)
    return Dataset(workspace, "many")


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is always as fast."""
    fixed = replace(DEVICES["h100"], name="local", linked=8)
    monkeypatch.setattr(devices, "local_device", lambda: fixed)


def compiled(trainer: Trainer, data: Dataset) -> Any:
    program = trainer._for(data.open())._program(data.open())
    state = jax.tree.map(
        lambda value, sharding: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding),
        program.abstract,
        program.shardings,
    )
    rows, place = trainer.batch_size, program.batch_sharding
    batch = (
        jax.ShapeDtypeStruct((rows, *SHAPE), jnp.uint8, sharding=place),
        jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=place),
        jax.ShapeDtypeStruct((rows,), jnp.float32, sharding=place),
    )
    totals = jax.ShapeDtypeStruct((4,), jnp.float32, sharding=program.shardings.step)
    return program.step.lower(program.flat(state), totals, *batch).compile()


@pytest.mark.parametrize("mesh", [{"data": 8}, {"data": 2, "fsdp": 4}, {"fsdp": 8}, {"data": 2, "tensor": 4}])
def test_bytes_of_state_and_batch_are_those_of_the_compiled_step(data: Dataset, mesh: dict[str, int]) -> None:
    trainer = replace(BASE, mesh=mesh, rules=MEGATRON if "tensor" in mesh else PartitionRules())

    own = trainer.plan(data).device_bytes

    step_and_totals = 4 + 4 * 4
    arguments = compiled(trainer, data).memory_analysis().argument_size_in_bytes
    assert own.parameters + own.optimizer + own.batch // 3 + step_and_totals == arguments


def bytes_exchanged(text: str, kind: str) -> int:
    # Shapes of what comes out of each such operation of a compiled program.
    found = re.findall(rf"= (.*?) {kind}(?:-start)?\(", text)
    shapes = re.findall(r"f32\[([\d,]*)\]", " ".join(found))
    return sum(4 * prod(int(size) for size in shape.split(",") if size) for shape in shapes)


def test_what_data_parallel_devices_exchange_is_what_xla_makes_them_exchange(data: Dataset) -> None:
    trainer = replace(BASE, mesh={"data": 8})

    plan = trainer.plan(data)

    summed = bytes_exchanged(compiled(trainer, data).as_text(), "all-reduce")
    metrics = 64  # the sums of loss, accuracy and weight
    assert {each.kind for each in plan.exchanges} == {"all-reduce"}
    assert summed - metrics <= sum(each.bytes for each in plan.exchanges) <= summed
    assert plan.sent_bytes == pytest.approx(2 * 7 / 8 * 4 * plan.parameters)


def test_fsdp_gathers_parameters_twice_and_scatters_gradients_once(data: Dataset) -> None:
    plan = replace(BASE, mesh={"fsdp": 8}).plan(data)

    whole = {each.kind: each.bytes for each in plan.exchanges}
    divided = 4 * (192 * 64 + 64 + 64 * 32 + 32 + 32 * 3)  # all but the last bias, of 3
    assert whole == {"all-gather": 2 * divided, "reduce-scatter": divided, "all-reduce": 4 * 3}


def test_tensor_parallel_layers_sum_activations_forward_and_gradients_backward(data: Dataset) -> None:
    plan = replace(BASE, mesh={"data": 2, "tensor": 4}, rules=MEGATRON).plan(data)

    sums = [each for each in plan.exchanges if each.axes == ("tensor",)]
    # Rows of one device times the 32 outputs of the second layer; the first layer's input needs no gradient.
    assert [(each.kind, each.bytes) for each in sums] == [("all-reduce", 4 * 16 * 32)]


def test_tensor_parallel_devices_share_the_products_of_the_layers_that_are_divided(data: Dataset) -> None:
    plan = replace(BASE, mesh={"data": 2, "tensor": 4}, rules=MEGATRON).plan(data)

    rows = 16
    first, second, head = 192 * 64, 64 * 32, 32 * 3
    assert plan.work.products == rows * (4 * first / 4 + 6 * second / 4 + 6 * head)
    assert plan.model_flops == 2 * rows * (4 * first + 6 * second + 6 * head)


def test_parts_of_a_batch_do_the_same_work_in_less_room(data: Dataset) -> None:
    whole = replace(BASE, mesh={"data": 8}, batch_size=64).plan(data)

    parts = whole.replan(accumulate=4)

    assert parts.model_flops == whole.model_flops
    assert parts.device_bytes.activations < whole.device_bytes.activations
    assert parts.device_bytes.gradients == 2 * whole.device_bytes.gradients


def test_nothing_is_read_and_no_target_needs_to_be_there(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a plan reads no data and starts nothing")

    for owner, name in (
        (OpenSnapshot, "gather"),
        (OpenSnapshot, "values"),
        (OpenSnapshot, "split_rows"),
        (Reader, "__init__"),
        (jax, "device_put"),
    ):
        monkeypatch.setattr(owner, name, refuse)

    plan = replace(BASE, preprocess=(Normalize(), RandomFlip()), mesh={"data": 16, "fsdp": 4}, batch_size=64).plan(
        data, "v5p:4x4x4"
    )

    assert plan.devices == 64
    assert plan.steps == 4 * 2


@pytest.mark.parametrize("target", ["a100:8", "h100:8", "h200:8", "b200:8", "v4:2x2x2", "v5e:2x4", "v6e:2x4", "local"])
def test_every_kind_of_target_is_planned(data: Dataset, target: str) -> None:
    plan = replace(BASE, mesh={"data": -1}).plan(data, target)

    assert (plan.devices, plan.fits) == (8, True)
    assert 0 < plan.step_s[0] < plan.step_s[1]
    assert 0 < plan.mfu[0] < plan.mfu[1] <= 1
    assert plan.run_s == (plan.step_s[0] * 12, plan.step_s[1] * 12)


def test_a_plan_costs_devices_times_hours_times_the_price(data: Dataset) -> None:
    plan = BASE.plan(data, "h100:8", prices={"h100": 2.5, "v5e": 1.2})

    assert plan.cost == pytest.approx([8 * 2.5 * time / 3600 for time in plan.run_s])
    assert BASE.plan(data, "a100:8", prices={"h100": 2.5}).cost is None


def test_what_is_small_is_told_in_figures_and_not_as_nothing(data: Dataset) -> None:
    plan = BASE.plan(data, "h100:8", prices={"h100": 2.5})

    facts = plan.facts()

    low, high = (float(part.strip().removesuffix("%")) / 100 for part in facts["a step"].split("MFU")[1].split("to"))
    assert 0 < low < high
    assert (low, high) == pytest.approx(plan.mfu, rel=0.5)  # of one figure
    assert plan.cost
    assert [float(part) for part in facts["cost"].split(" to ")] == pytest.approx(plan.cost, rel=0.05)


def narrow(monkeypatch: pytest.MonkeyPatch, memory_bytes: int) -> None:
    """An H100 with hardly any memory."""
    small: Device = replace(DEVICES["h100"], memory_bytes=memory_bytes)
    monkeypatch.setattr(devices, "DEVICES", {**DEVICES, "h100": small})


def test_what_does_not_fit_comes_with_changes_that_were_planned(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = replace(BASE, mesh={"data": 8}, batch_size=2048, model=MLP(num_classes=3, widths=(1024,)))
    narrow(monkeypatch, 5 * 2**20)

    plan = trainer.plan(data, "h100:8")

    assert not plan.fits
    assert {name for each in plan.suggestions for name in each.change} >= {"mesh", "accumulate", "batch_size"}
    for each in plan.suggestions:
        assert each.plan.device_bytes.total < plan.device_bytes.total
        assert each.plan.device_bytes == plan.replan(**each.change).device_bytes
    assert any(each.plan.fits for each in plan.suggestions), str(plan)


def test_a_change_that_saves_next_to_nothing_is_not_suggested(data: Dataset) -> None:
    plan = replace(BASE, mesh={"data": 8}, model=MLP(num_classes=3, widths=(60_000, 60_000))).plan(data, "h100:8")

    assert not plan.fits
    assert [each.change for each in plan.suggestions if each.plan.fits] == [{"mesh": {"fsdp": 8}}]
    assert all(each.plan.device_bytes.total <= 0.99 * plan.device_bytes.total for each in plan.suggestions)


def test_the_best_mesh_fits_where_the_one_asked_for_does_not(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = replace(BASE, mesh={"data": 8}, model=MLP(num_classes=3, widths=(2048,)))
    narrow(monkeypatch, 6 * 2**20)
    plan = trainer.plan(data, "h100:8")

    choice = plan.choose()

    assert not plan.fits
    assert choice.best.fits
    assert choice.best.options.mesh["fsdp"] > 1
    assert {prod(each.options.mesh.values()) for each in choice.tried} == {8}
    assert choice.verdict in str(choice)
    assert choice.verdict.startswith(f"the best of {len(choice.tried)} for h100:8 is {choice.rows()[0]['mesh']}")
    assert {"data=8", "data=4,fsdp=2", "data=2,fsdp=4", "fsdp=8"} <= {row["mesh"] for row in choice.rows()}
    fitting = [each for each in choice.tried if each.fits]
    assert choice.best.step_s[1] == min(each.step_s[1] for each in fitting)


def test_where_no_mesh_fits_the_choice_says_so_and_what_the_nearest_lacks(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow(monkeypatch, 2**20)

    choice = replace(BASE, mesh={"data": 8}, model=MLP(num_classes=3, widths=(2048,))).plan(data, "h100:8").choose()

    lacking = choice.best.device_bytes.total - 0.9 * 2**20
    assert not any(each.fits for each in choice.tried)
    assert choice.best.device_bytes.total == min(each.device_bytes.total for each in choice.tried)
    assert f"none of {len(choice.tried)} fits h100:8" in str(choice)
    assert f"needs {told.size(round(lacking))} less" in choice._repr_html_()


def test_a_plan_of_a_wide_model_counts_rows_and_not_parameters_as_activations(data: Dataset) -> None:
    rows, width = 8, 4096
    trainer = replace(BASE, mesh={"data": 8}, batch_size=8 * rows, model=MLP(num_classes=3, widths=(width, width)))

    plan = trainer.plan(data, "h100:8")

    # Each layer's values forward and their gradient backward, and the rows themselves, float32.
    assert plan.device_bytes.activations <= 4 * rows * (4 * width + 2 * prod(SHAPE) + 16)
    halved = plan.replan(precision="bf16").device_bytes
    copies = 2 * plan.parameters  # of the parameters, in the numbers that are computed with
    assert halved.activations <= copies + plan.device_bytes.activations


def test_a_model_is_made_once_to_be_planned(data: Dataset) -> None:
    made = []

    class Counted(MLP):
        def build(self, input_shape: tuple[int, ...], *, rngs: Any) -> Any:
            made.append(input_shape)
            return super().build(input_shape, rngs=rngs)

    plan = replace(BASE, mesh={"data": 8}, model=Counted(num_classes=3, widths=(64, 32))).plan(data, "h100:8")
    plan.choose()
    plan.replan(precision="bf16")

    assert made == [SHAPE]


def test_choosing_tries_the_axes_that_rules_name(data: Dataset) -> None:
    choice = replace(BASE, mesh={"data": 8, "tensor": 1}, rules=MEGATRON).plan(data, "h100:8").choose()

    assert any(each.options.mesh.get("tensor") == 4 for each in choice.tried)


def test_a_plan_is_text_json_and_html(data: Dataset) -> None:
    plan = BASE.plan(data, "h100:8", prices={"h100": 2.5})

    read = json.loads(json.dumps(plan.to_json()))
    assert read["device_bytes"]["total"] == plan.device_bytes.total
    assert read["cost"] == list(plan.cost or ())
    assert "h100:8: 8 devices" in str(plan)
    assert "the run" in str(plan)
    assert "computed in fp32" in str(plan)
    assert "plan for h100:8" in plan._repr_html_()
    assert "<table" in plan.choose()._repr_html_()
    assert json.loads(json.dumps(plan.choose().to_json()))["best"]["target"] == "h100:8"
    with pytest.raises(AttributeError):
        plan.steps = 1  # type: ignore[misc]


def broken(params: Any, batch: jax.Array) -> jax.Array:
    if batch.mean() > 0:  # a value, where there are only shapes
        return batch
    return batch @ params["w"]


@pytest.mark.parametrize(
    ("changed", "target", "options", "said"),
    [
        ({}, "tpu", {}, "one of a100, h100, h200"),
        ({}, "h100:2x4", {}, "h100:8"),
        ({}, "h100:0", {}, "got 'h100:0'"),
        ({}, "h100:-1", {}, "got 'h100:-1'"),
        ({}, "h100:", {}, "got 'h100:'"),
        ({}, 8, {}, "a target is a text"),
        ({}, "v5e:0", {}, "got 'v5e:0'"),
        ({}, "v5e:3x5", {}, "a slice of v5e is 1x1, 2x2, 2x4"),
        ({}, "v5e:8", {}, "got 'v5e:8'; give one of these"),
        ({}, "v5p:8x4x4", {}, "in ascending order such as 4x4x8; got 'v5p:8x4x4'"),
        ({}, "h100:8", {"prices": 2.5}, "prices are by device"),
        ({"mesh": {"data": 3}}, "h100:8", {}, "a mesh uses every device"),
        ({"mesh": {"rows": -1}}, "h100:8", {}, "mesh axes are data"),
        ({"batch_size": 30}, "h100:8", {}, "30 rows over 8 devices"),
        ({}, "h100:8", {"prices": {"h100": -1.0}}, "a price is a number from 0"),
        ({}, "h100:8", {"prices": {"h100": float("nan")}}, "a price is a number from 0"),
        ({}, "h100:8", {"prices": {"h900": 1.0}}, "got 'h900'"),
        ({"model": (lambda key, shape: {"w": jnp.ones((3, 3))}, broken)}, "h100:8", {}, "traced"),
        ({"model": MLP(num_classes=5)}, "h100:8", {}, "set its num_classes to 3"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_the_rule(
    data: Dataset, changed: dict[str, Any], target: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(said)):
        replace(BASE, **changed).plan(data, target, **options)


def test_data_that_cannot_be_trained_on_is_refused(data: Dataset) -> None:
    with pytest.raises(DataError, match="at least two classes"):
        BASE.plan(Dataset(data.workspace, "one"), "h100")
    with pytest.raises(SplitNotFound, match="split 'train'"):
        BASE.plan(Dataset(data.workspace, "untrained"), "h100")
    with pytest.raises(InvalidRequest, match="a plan is for a dataset"):
        BASE.plan("flowers", "h100")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lr": 1}, "a plan is changed in mesh, batch_size"),
        ({"precision": "fp4"}, "fp32, bf16, fp16"),
        ({"accumulate": 3}, "in 3 parts"),
        ({"accumulate": 0}, "in 0 parts"),
    ],
)
def test_a_plan_is_not_changed_in_what_it_does_not_have(data: Dataset, changes: dict[str, Any], said: str) -> None:
    plan: Plan = BASE.plan(data, "h100:8")

    with pytest.raises(InvalidRequest, match=re.escape(said)):
        plan.replan(**changes)


def test_without_the_compiler_a_plan_says_how_to_get_it(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    plan = BASE.plan(data, "v5e:2x2", compile=True)

    assert not plan.compiled
    assert any("pip install" in note for note in plan.notes)
    assert any("only programs for v5e" in note for note in BASE.plan(data, "h100", compile=True).notes)


def test_where_convolutions_would_run_on_one_core_a_plan_says_how_they_run_on_all(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(trainer: Trainer, target: str = "local") -> list[str]:
        return [note for note in trainer.plan(data, target).notes if "JAX_NUM_CPU_DEVICES" in note]

    convolving = replace(BASE, model=ConvNet(num_classes=3, widths=(8,)))
    assert not told(convolving)  # the tests' devices are several

    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    (note,) = told(convolving)
    assert "one core of 6; JAX_NUM_CPU_DEVICES=6" in note
    assert not told(convolving, "h100")
    assert not told(BASE)


@pytest.mark.slow
def test_a_step_is_compiled_for_a_tpu_that_is_not_there(data: Dataset) -> None:
    from importlib.util import find_spec

    if find_spec("libtpu") is None:
        pytest.skip("needs libtpu, the compiler for TPUs: pip install libtpu")

    plan = replace(BASE, mesh={"data": 2, "fsdp": 2}).plan(data, "v5e:2x2", compile=True)

    assert plan.compiled
    assert plan.fits
    estimated = replace(BASE, mesh={"data": 2, "fsdp": 2}).plan(data, "v5e:2x2").device_bytes
    assert (plan.device_bytes.parameters, plan.device_bytes.optimizer) == (estimated.parameters, estimated.optimizer)
    assert BASE.plan(data, "v5e", compile=True).compiled  # one chip


def test_the_device_at_hand_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    device = devices.local_device()

    assert device is devices.local_device()
    assert device.flops_rate("float32") > 1e8
    assert device.memory_rate > 1e7
    assert device.memory_bytes > 2**20
    assert parse_target("local").count == jax.device_count()


def test_an_optimizer_counts_what_it_keeps(data: Dataset, tmp_path: Path) -> None:
    plain, adam = (replace(BASE, optimizer=each).plan(data, "h100") for each in (optax.sgd(0.1), optax.adam(0.1)))

    assert plain.device_bytes.optimizer == 0
    assert adam.device_bytes.optimizer == 2 * 4 * adam.parameters + 4  # two moments, and the count of steps


def test_the_options_of_a_step_are_planned_as_they_are_trained(data: Dataset) -> None:
    plain = BASE.plan(data)

    frozen = replace(BASE, freeze="layers", ema=0.9).plan(data)
    halved = replace(BASE, precision="bf16", accumulate=2, remat="dots", batch_size=64).plan(data)

    head = 4 * (32 * 3 + 3)
    assert frozen.device_bytes.gradients == head
    assert frozen.device_bytes.parameters == plain.device_bytes.parameters + head  # the average of what is learnt
    assert frozen.device_bytes.optimizer < plain.device_bytes.optimizer / 4
    assert (halved.options.precision, halved.options.accumulate, halved.options.remat) == ("bf16", 2, "dots")
    assert halved.device_bytes.gradients == 2 * plain.device_bytes.gradients


def test_what_a_plan_suggests_are_options_of_a_trainer(data: Dataset) -> None:
    plan = replace(BASE, mesh={"data": 8}).plan(data, "h100:8")

    for change in (suggestion.change for suggestion in plan.suggestions):
        replace(BASE, **change)
    assert replace(BASE, mesh={"data": 8}, batch_size=64, remat="dots").plan(data, "h100:8").options.remat == "dots"
