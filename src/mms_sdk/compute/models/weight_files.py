"""Tensors of a weight file by their names, without running anything that is in it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mms_sdk.compute.models.layouts import Tensors
from mms_sdk.errors import Damaged, InvalidRequest, MissingExtra, NotFound
from mms_sdk.storage import files, manifest
from mms_sdk.storage.stores.local import LocalStore

_WRAPPED = ("state_dict", "model", "model_state", "model_state_dict")


def read(path: Path) -> Tensors:
    """All tensors of a file, or of a checkpoint's or an artefact's folder.

    Args:
        path: `.safetensors`; a PyTorch state dict, `.pt`, `.pth` or `.bin`; Keras's `.weights.h5` or `.keras`; the
            folder of an MMS checkpoint or model version.

    Returns:
        Arrays by name; those of folders by our paths.

    Raises:
        NotFound: There is no such file.
        InvalidRequest: It is of none of these kinds.
        Damaged: It does not read as what its name says.
        MissingExtra: The package that reads it is not installed.
    """
    _refuse_missing(path)
    if path.is_dir():
        return _folder(path)
    for suffixes, reader in _READERS.items():
        if path.name.endswith(suffixes):
            return reader(path)
    known = ", ".join(suffix for suffixes in _READERS for suffix in suffixes)
    raise InvalidRequest(
        f"weights are read from files that end in {known}, and from folders of MMS checkpoints and model versions; got "
        f"{path.name}; save them as safetensors"
    )


def digest(path: Path) -> str:
    """SHA-256 of a file, or of the manifest of a checkpoint's or an artefact's folder.

    Raises:
        NotFound: There is none.
        InvalidRequest: It is a folder of something else.
    """
    _refuse_missing(path)
    if path.is_dir() and not manifest.is_sealed(path):
        raise _no_folder_of_weights(path)
    return files.sha256_file(path / manifest.NAME if path.is_dir() else path)


def _refuse_missing(path: Path) -> None:
    if not path.exists():
        raise NotFound(f"weights lie in a file or a folder on this machine; there is none at {path}; check init_from")


def _no_folder_of_weights(path: Path) -> InvalidRequest:
    return InvalidRequest(
        f"a folder of weights is a complete MMS checkpoint or model version; {path} is neither; name "
        f"result.best.path or version.location"
    )


def _safetensors(path: Path) -> Tensors:
    try:
        import safetensors
    except ImportError as error:
        raise MissingExtra("safetensors", extra="llm") from error
    try:
        with safetensors.safe_open(path, "np") as file, safetensors.safe_open(path, "flax") as by_jax:
            # JAX reads what NumPy alone has no type for: bfloat16, and floats of 8 bits.
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (not a mapping)
            odd = {name for name, kind in kinds.items() if kind.startswith(("BF", "F8"))}
            return {name: np.asarray((by_jax if name in odd else file).get_tensor(name)) for name in kinds}
    except safetensors.SafetensorError as error:
        raise Damaged(f"{path} is not a whole safetensors file: {error}; copy it anew") from error


def _torch(path: Path) -> Tensors:
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("torch", extra="torch") from error
    import pickle

    try:
        # Tensors and plain containers only: a pickle could otherwise run what its author put into it.
        told = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InvalidRequest(
            f"of PyTorch's files only state dicts are read, for other pickles run code; {path.name} holds more; save "
            f"it anew with torch.save(model.state_dict(), …)"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise Damaged(f"{path} is not a whole PyTorch file: {error}; copy it anew") from error
    state = next(
        (told[key] for key in _WRAPPED if isinstance(told, Mapping) and isinstance(told.get(key), Mapping)), told
    )
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InvalidRequest(
            f"a PyTorch file of weights is a state dict, tensors by name; {path.name} holds {type(told).__name__}; "
            f"save it anew with torch.save(model.state_dict(), …)"
        )
    # What was trained in parallel has its whole model in one named `module`.
    parallel = all(name.startswith("module.") for name in state)
    return {name.removeprefix("module.") if parallel else name: _array(value) for name, value in state.items()}


def _array(tensor: Any) -> Any:
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _keras(path: Path) -> Tensors:
    try:
        import h5py
    except ImportError as error:
        raise MissingExtra("h5py", extra="keras") from error
    found: Tensors = {}

    def visit(name: str, entry: Any) -> None:
        if isinstance(entry, h5py.Dataset):
            found[name] = entry[()]

    try:
        with h5py.File(_h5(path), "r") as file:
            file.visititems(visit)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise Damaged(f"{path} is not a whole file of Keras weights: {error}; save it anew with Keras 3") from error
    return found


def _h5(path: Path) -> Path | io.BytesIO:
    if path.suffix != ".keras":
        return path
    with zipfile.ZipFile(path) as archive:  # its config.json could name code; only the weights are looked at
        return io.BytesIO(archive.read("model.weights.h5"))


def _folder(path: Path) -> Tensors:
    from orbax.checkpoint import v1 as ocp

    arrays = next((path / name for name in ("state", "weights") if (path / name).is_dir()), None)
    if arrays is None or not manifest.is_sealed(path):
        raise _no_folder_of_weights(path)
    manifest.check(LocalStore(path), what=f"the weights in {path}", content=True)
    loaded = _flat(ocp.load(arrays, _like(ocp.metadata(arrays).metadata)))
    kinds = ("params/", "rest/")
    return {name.split("/", 1)[1]: np.asarray(value) for name, value in loaded.items() if name.startswith(kinds)}


def _like(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {name: _like(value) for name, value in tree.items()}
    return np.empty(tree.shape, tree.dtype)


def _flat(tree: Any, before: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {before.removesuffix("/"): tree}
    return {path: leaf for name, below in tree.items() for path, leaf in _flat(below, f"{before}{name}/").items()}


_READERS: dict[tuple[str, ...], Callable[[Path], Tensors]] = {
    (".safetensors",): _safetensors,
    (".pt", ".pth", ".bin"): _torch,
    (".weights.h5", ".keras"): _keras,
}
