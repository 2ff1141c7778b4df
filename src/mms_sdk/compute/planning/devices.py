"""What a device can do, by its data sheet; the device at hand is measured.

Peaks are of dense products, without sparsity. float32 products are those that JAX computes by default: three bytes of
mantissa are enough for it, so GPUs take TF32 and TPUs one pass of bfloat16.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

from mms_sdk.errors import InvalidRequest

_GB, _GIB, _T = 10**9, 2**30, 10**12
_TRIES = 12  # of which the fastest counts: others may be at work
TAKEN_ON_GPU = 0.75  # of a GPU's memory is what JAX takes for arrays, unless XLA_PYTHON_CLIENT_MEM_FRACTION says more


@dataclass(frozen=True, kw_only=True)
class Device:
    """One kind of device.

    Attributes:
        name: e.g. `h100`.
        peak: FLOP/s of dense products, by the dtype of what is multiplied.
        memory_bytes: Of its memory, those that arrays may take.
        memory_rate: Bytes/s from and to that memory.
        link_rate: Bytes/s in one direction to devices that it is linked with directly.
        linked: How many are linked so; beyond them, the network.
        network_rate: Bytes/s in one direction for one device over that network.
        efficiency: Shares of the peak that products reach, from the worst to the best that is likely.
        memory_efficiency: Shares of the memory's rate.
        kernel_s: Seconds that one kernel costs beside its work, at most; a tenth of it at least.
        source: Where the figures are from.
    """

    name: str
    peak: Mapping[str, float]
    memory_bytes: int
    memory_rate: float
    link_rate: float
    linked: int
    network_rate: float
    efficiency: tuple[float, float] = (0.3, 0.8)
    memory_efficiency: tuple[float, float] = (0.5, 0.95)
    kernel_s: float = 5e-6
    source: str = ""

    @property
    def tpu(self) -> bool:
        """Whether it is counted by the shape of a slice."""
        return self.name.startswith("v")

    @property
    def compiles(self) -> bool:
        """Whether libtpu compiles for it without one; of a v4 it describes two cores a chip, which JAX joins."""
        return self.tpu and self.name != "v4"

    def flops_rate(self, dtype: str) -> float:
        """FLOP/s of products of a dtype; of float32 where nothing is known of it."""
        return self.peak.get(dtype, self.peak["float32"])


@dataclass(frozen=True, kw_only=True)
class Target:
    """Devices of one kind.

    Attributes:
        device: The kind.
        count: How many.
        topology: Of a TPU slice, e.g. `(8, 8)`.
    """

    device: Device
    count: int
    topology: tuple[int, ...] = ()

    def __str__(self) -> str:
        shape = "x".join(map(str, self.topology)) or str(self.count)
        return f"{self.device.name}:{shape}"


def _gpu(
    name: str, *, bf16: float, tf32: float, gigabytes: int, rate: float, nvlink: float, network: float, source: str
) -> Device:
    # NVLink's figure is for both directions together; a ring uses one.
    return Device(
        name=name,
        peak={"bfloat16": bf16 * _T, "float16": bf16 * _T, "float32": tf32 * _T},
        memory_bytes=int(gigabytes * _GB * TAKEN_ON_GPU),
        memory_rate=rate * _T,
        link_rate=nvlink / 2 * _GB,
        linked=8,
        network_rate=network * _GB,
        source=f"NVIDIA's data sheet of the {source}; figures for a GPU are an estimate",
    )


def _tpu(name: str, *, bf16: float, gigabytes: int, rate: float, links: float, pod: int, source: str) -> Device:
    # The figure is of all links, in one direction; a ring along one axis of the torus has two of its four or six.
    return Device(
        name=name,
        peak={"bfloat16": bf16 * _T, "float32": bf16 * _T},
        memory_bytes=int(gigabytes * _GIB * 0.97),  # XLA keeps some for itself
        memory_rate=rate * _GB,
        link_rate=links / 8 / 2 * _GB,
        linked=pod,
        network_rate=3.1 * _GB,  # Data center network per pod of 256 v5e, divided: docs.cloud.google.com/tpu/docs/v5e
        efficiency=(0.35, 0.85),
        kernel_s=2e-6,
        source=source,
    )


_GOOGLE = "docs.cloud.google.com/tpu/docs"
DEVICES: Mapping[str, Device] = {
    each.name: each
    for each in (
        # NVIDIA A100 80GB Tensor Core GPU data sheet (SXM): 312/156 TFLOPS, 80 GB, 2,039 GB/s, NVLink 600 GB/s;
        # eight 200 Gb/s ports in a DGX A100.
        _gpu("a100", bf16=312, tf32=156, gigabytes=80, rate=2.039, nvlink=600, network=25, source="A100"),
        # NVIDIA H100 Tensor Core GPU data sheet (SXM), where TFLOPS are given with sparsity, twice the dense ones:
        # 1,979/989 TFLOPS, 80 GB, 3.35 TB/s, NVLink 900 GB/s; eight 400 Gb/s ports in a DGX H100.
        _gpu("h100", bf16=989.5, tf32=494.5, gigabytes=80, rate=3.35, nvlink=900, network=50, source="H100"),
        # NVIDIA H200 Tensor Core GPU data sheet (SXM): as H100, but 141 GB and 4.8 TB/s.
        _gpu("h200", bf16=989.5, tf32=494.5, gigabytes=141, rate=4.8, nvlink=900, network=50, source="H200"),
        # NVIDIA DGX B200 data sheet, for eight: 1,440 GB, 64 TB/s; NVIDIA HGX page: 2.25/1.1 PFLOPS dense each,
        # NVLink 1.8 TB/s; eight 400 Gb/s ports.
        _gpu("b200", bf16=2250, tf32=1100, gigabytes=180, rate=8.0, nvlink=1800, network=50, source="B200"),
        # .../v4: 275 TFLOPS, 32 GiB, 1,200 GB/s, six links of 50 GB/s: 2,400 Gb/s, pod of 4,096.
        _tpu("v4", bf16=275, gigabytes=32, rate=1200, links=2400, pod=4096, source=f"{_GOOGLE}/v4"),
        # .../v5e: 197 TFLOPS, 16 GB, 819 GB/s, 1,600 Gb/s, pod of 256.
        _tpu("v5e", bf16=197, gigabytes=16, rate=819, links=1600, pod=256, source=f"{_GOOGLE}/v5e"),
        # .../v5p: 459 TFLOPS, 95 GB, 2,765 GB/s, 4,800 Gb/s, pod of 8,960.
        _tpu("v5p", bf16=459, gigabytes=95, rate=2765, links=4800, pod=8960, source=f"{_GOOGLE}/v5p"),
        # .../v6e: 918 TFLOPS, 32 GB, 1,600 GB/s, 3,200 Gb/s, pod of 256.
        _tpu("v6e", bf16=918, gigabytes=32, rate=1600, links=3200, pod=256, source=f"{_GOOGLE}/v6e"),
    )
}


def parse_target(text: str) -> Target:
    """A target by its name.

    Args:
        text: `local` for the devices of this process, a GPU with how many, e.g. `h100:8`, or a TPU with the shape of
            the slice, e.g. `v5e:8x8`, `v5p:4x4x4`; alone, one device.

    Raises:
        InvalidRequest: There is no such device, or the shape is none.
    """
    if not isinstance(text, str):
        raise InvalidRequest(f"a target is a text such as 'local', 'h100:8' or 'v5e:2x4'; got {text!r}")
    name, counted, shape = text.strip().lower().partition(":")
    if name == "local" and not counted:
        import jax

        return Target(device=local_device(), count=jax.device_count())
    if name not in DEVICES or not re.fullmatch(r"([1-9]\d{0,5})(x[1-9]\d{0,3}){0,2}", shape if counted else "1"):
        raise InvalidRequest(
            f"a target is 'local', or one of {', '.join(DEVICES)} with how many devices or the shape of the slice, "
            f"e.g. h100:8, v5e:8x8 or v5p:4x4x4; got {text!r}"
        )
    device, sizes = DEVICES[name], tuple(int(size) for size in (shape or "1").split("x"))
    if not device.tpu and len(sizes) > 1:
        raise InvalidRequest(f"GPUs are counted, e.g. {name}:8; got the shape {shape!r}; give {name}:{prod(sizes)}")
    if device.tpu and counted and not _is_slice(device, sizes):
        more = ", or multiples of 4 in ascending order such as 4x4x8" if _SLICES[name] is _DEEP else ""
        raise InvalidRequest(f"a slice of {name} is {', '.join(_SLICES[name])}{more}; got {text!r}; give one of these")
    return Target(device=device, count=prod(sizes), topology=sizes if device.tpu else ())


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_DEEP = ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4")
_SLICES = {"v5e": _FLAT, "v6e": _FLAT, "v4": _DEEP, "v5p": _DEEP}


def _is_slice(device: Device, sizes: tuple[int, ...]) -> bool:
    # Shapes as Google offers them, on the pages that the rates are from; 1x1x1 is one chip of a host with four.
    if "x".join(map(str, sizes)) in _SLICES[device.name]:
        return True
    cubes = len(sizes) == 3 and list(sizes) == sorted(sizes) and all(size % 4 == 0 for size in sizes)
    return cubes and _SLICES[device.name] is _DEEP and prod(sizes) <= device.linked


@cache
def local_device() -> Device:
    """The device at hand, measured once a process in about a second: a product of matrices, a copy, a convolution.

    Devices that XLA makes of one CPU share what was measured.
    """
    import jax
    import jax.numpy as jnp

    here = jax.local_devices()
    shared = len(here) if here[0].platform == "cpu" else 1
    side = 1024 if here[0].platform == "cpu" else 8192
    square = jnp.ones((side, side), jnp.float32)
    half = square.astype(jnp.bfloat16)
    long = jnp.ones(2**22 if here[0].platform == "cpu" else 2**28, jnp.float32)
    multiply: Any = jax.jit(lambda a: a @ a)
    single = 2.0 * side**3 / _fastest(multiply, square)
    double = 2.0 * side**3 / _fastest(multiply, half)
    rate = 2.0 * long.nbytes / _fastest(jax.jit(lambda a: a + 1.0), long)
    return Device(
        name="local",
        peak={"float32": single / shared, "bfloat16": double / shared},
        memory_bytes=_memory_of(here[0]) // shared,
        memory_rate=rate / shared,
        link_rate=rate / shared / 4,  # between devices of one host: written, read, summed, written
        linked=len(here),
        network_rate=1.25 * _GB,  # ten gigabit Ethernet
        efficiency=(0.2, 1.2),  # a CPU's convolutions are far from its products; and others may have been at work
        memory_efficiency=(0.3, 1.0),
        kernel_s=3e-5,
        source=f"measured on {here[0].device_kind}",
    )


def idle_cores() -> int:
    """Cores of this machine, if JAX makes one device of several; 0 otherwise."""
    import jax

    cores = os.cpu_count() or 1
    return cores if jax.default_backend() == "cpu" and jax.local_device_count() == 1 and cores > 1 else 0


def _fastest(run: Callable[[Any], Any], value: Any) -> float:
    run(value).block_until_ready()
    times = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        run(value).block_until_ready()
        times.append(time.perf_counter() - began)
    return max(min(times), 1e-9)


def _memory_of(device: Any) -> int:
    told = device.memory_stats()
    if told and told.get("bytes_limit"):
        return int(told["bytes_limit"])
    import psutil

    return int(psutil.virtual_memory().available)
