"""Serving: requests a second of one model behind MMS, beside the least code that could serve it.

The model is an MLP 784-256-256-10 over 28×28×1 uint8. Both servers run in processes of their own under uvicorn on a
loopback port, and take turns.

The load comes from `wrk` where it is installed (Debian: `apt-get install wrk`). Without it, it comes from an asyncio
client in this process, which takes more of the machine than the servers do and so narrows every difference.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import psutil
from PIL import Image

from benchmarks.table import Row

SIDE = 28
CLASSES = 10
BINARY_HEAD = "inference-header-content-length"
LOAD = "wrk" if shutil.which("wrk") else "asyncio client"


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request, sent again and again."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one round measured.

    Attributes:
        cpu_ms: CPU of the server's process for each request.
    """

    requests_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that answers.

    Attributes:
        ready_s: From the start of its process to the first connection it took.
    """

    port: int
    token: str
    process: psutil.Process
    ready_s: float


def rows(folder: Path, *, quick: bool) -> list[Row]:
    """The rows of this topic."""
    seconds, rounds = (1.0, 1) if quick else (4.0, 5)
    artifact = _register(folder)
    with _mms(folder) as mms, _raw(artifact) as raw:
        found = [
            _limit("server ready", mms.ready_s, 5.0, "s"),
            _limit("server's memory", mms.process.memory_info().rss / 2**20, 300, "MiB"),
            _limit("idle server", 100 * _idle_cpu(mms), 1, "% of a core"),
        ]
        for kind, call in _calls().items():
            for clients in (64, 1):
                seen: dict[str, list[Figures]] = {"mms": [], "raw": []}
                for _ in range(rounds):
                    seen["mms"].append(_load(mms, call, clients=clients, seconds=seconds))
                    seen["raw"].append(_load(raw, call, clients=clients, seconds=seconds))
                found += _compared(kind, clients, seen["mms"], seen["raw"])
    return found


def _compared(kind: str, clients: int, ours: list[Figures], peers: list[Figures]) -> list[Row]:
    mms, raw = (_median(figures) for figures in (ours, peers))
    what = f"{kind} from {clients} client{'s' * (clients > 1)} ({LOAD})"
    speed = Row(
        what=what,
        mms=f"{mms.requests_s:,.0f} requests/s, p50 {mms.p50_ms:.2f} ms, p99 {mms.p99_ms:.2f} ms",
        beside=f"raw ASGI batcher {raw.requests_s:,.0f}/s, {raw.p50_ms:.2f} ms, {raw.p99_ms:.2f} ms",
        ratio=median(one.requests_s / other.requests_s for one, other in zip(ours, peers, strict=True)),
        target=">= 1.0" if clients > 1 else "",
    )
    if clients == 1:
        return [speed, _limit(f"{what}: p50", mms.p50_ms, 0.6, "ms")]
    return [
        speed,
        _limit(f"{what}: p99", mms.p99_ms, 3 * mms.p50_ms, "ms"),
        _limit(f"{what}: CPU of a request", mms.cpu_ms, 0.15, "ms"),
    ]


def _limit(what: str, seen: float, limit: float, unit: str) -> Row:
    beside = f"{limit:.3g} {unit}"
    return Row(what=what, mms=f"{seen:.3g} {unit}", beside=beside, ratio=seen / limit, target="<= 1.0")


def _median(figures: list[Figures]) -> Figures:
    return sorted(figures, key=lambda each: each.requests_s)[len(figures) // 2]


def _calls() -> dict[str, Call]:
    pixels = np.random.default_rng(0).integers(0, 256, (1, SIDE, SIDE, 1), np.uint8)
    nested = json.dumps({"instances": pixels[..., 0].tolist()}).encode()
    tensor = {"name": "image", "shape": list(pixels.shape), "datatype": "UINT8"}
    asked = {
        "inputs": [{**tensor, "parameters": {"binary_data_size": pixels.size}}],
        "outputs": [{"name": "scores", "parameters": {"binary_data": True}}],
    }
    head = json.dumps(asked).encode()
    return {
        "JSON": Call(path="/v1/models/mlp:predict", headers={"content-type": "application/json"}, body=nested),
        "binary": Call(
            path="/v2/models/mlp/infer",
            headers={"content-type": "application/octet-stream", BINARY_HEAD: str(len(head))},
            body=head + pixels.tobytes(),
        ),
    }


def _register(scratch: Path) -> Path:
    import mms_sdk as mms

    rng = np.random.default_rng(0)
    for label in range(CLASSES):
        folder = scratch / "pictures" / str(label)
        folder.mkdir(parents=True)
        for number in range(10):
            Image.fromarray(rng.integers(0, 256, (SIDE, SIDE), np.uint8)).save(folder / f"{number}.png")
    with mms.connect(workspace=scratch / "workspace") as ws:
        data = ws.datasets.ingest("noise", scratch / "pictures")
        model = mms.models.MLP(num_classes=CLASSES, widths=(256, 256))
        result = mms.Trainer(model=model, batch_size=16, epochs=1).fit(data, progress="none")
        return ws.models.register("mlp", result.best).location


@contextlib.contextmanager
def _mms(scratch: Path) -> Iterator[Server]:
    program = (
        "import sys; from pathlib import Path; from mms_sdk.storage.workspace import Workspace;"
        "from mms_sdk.service.server import serve;"
        "serve(Workspace(Path(sys.argv[1])), port=int(sys.argv[2]), models=['mlp'])"
    )
    port = _free_port()
    with _process([sys.executable, "-c", program, str(scratch / "workspace"), str(port)], port) as (process, ready_s):
        token = (scratch / "workspace" / "server.token").read_text().strip()
        yield Server(port=port, token=token, process=process, ready_s=ready_s)


@contextlib.contextmanager
def _raw(artifact: Path) -> Iterator[Server]:
    port = _free_port()
    program = [sys.executable, str(Path(__file__).with_name("raw_asgi.py")), str(artifact), str(port)]
    with _process(program, port) as (process, ready_s):
        yield Server(port=port, token="", process=process, ready_s=ready_s)


@contextlib.contextmanager
def _process(command: list[str], port: int) -> Iterator[tuple[psutil.Process, float]]:
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(1200):
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with {process.returncode}: {command}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        yield psutil.Process(process.pid), time.monotonic() - began
    finally:
        process.terminate()
        process.wait(timeout=60)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _idle_cpu(server: Server) -> float:
    before, at = _cpu_s(server), time.monotonic()
    time.sleep(3)
    return (_cpu_s(server) - before) / (time.monotonic() - at)


def _cpu_s(server: Server) -> float:
    told = server.process.cpu_times()
    return float(told.user + told.system)


def _load(server: Server, call: Call, *, clients: int, seconds: float) -> Figures:
    load = _with_wrk if LOAD == "wrk" else _with_asyncio
    load(server, call, clients, 0.5)
    before = _cpu_s(server)
    count, requests_s, p50, p99 = load(server, call, clients, seconds)
    cpu_ms = 1000 * (_cpu_s(server) - before) / max(1, count)
    return Figures(requests_s=requests_s, p50_ms=p50, p99_ms=p99, cpu_ms=cpu_ms)


def _headers(server: Server, call: Call) -> dict[str, str]:
    return {**call.headers, "authorization": f"Bearer {server.token}"}


def _with_wrk(server: Server, call: Call, clients: int, seconds: float) -> tuple[int, float, float, float]:
    body = "".join(f"\\{byte:03d}" for byte in call.body)
    script = f'wrk.method = "POST"\nwrk.body = "{body}"\n'
    script += "".join(f'wrk.headers["{name}"] = "{value}"\n' for name, value in _headers(server, call).items())
    script += """
        function done(summary, latency, requests)
          local bad = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout
          io.write(string.format("FIGURES %d %d %f %f %d\\n", summary.requests, summary.duration,
            latency:percentile(50), latency:percentile(99), bad))
        end
    """
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        url = f"http://127.0.0.1:{server.port}{call.path}"
        command = ["wrk", "-t1", f"-c{clients}", f"-d{max(1, round(seconds))}s", "-s", file.name, url]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    match = re.search(r"FIGURES (\d+) (\d+) ([\d.]+) ([\d.]+) (\d+)", told)
    if match is None or match[5] != "0":
        raise RuntimeError(f"not every request was answered: {told}")
    count = int(match[1])
    return count, count / (int(match[2]) / 1e6), float(match[3]) / 1000, float(match[4]) / 1000


def _with_asyncio(server: Server, call: Call, clients: int, seconds: float) -> tuple[int, float, float, float]:
    lines = [f"POST {call.path} HTTP/1.1", f"host: 127.0.0.1:{server.port}", f"content-length: {len(call.body)}"]
    lines += [f"{name}: {value}" for name, value in _headers(server, call).items()]
    request = "\r\n".join([*lines, "", ""]).encode() + call.body
    taken: list[float] = []

    async def client(until: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        while (began := time.perf_counter()) < until:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            match = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            if not head.startswith(b"HTTP/1.1 200") or match is None:
                raise RuntimeError(f"not every request was answered: {head!r}")
            await reader.readexactly(int(match[1]))
            taken.append(time.perf_counter() - began)
        writer.close()

    async def everybody() -> float:
        began = time.perf_counter()
        await asyncio.gather(*(client(began + seconds) for _ in range(clients)))
        return time.perf_counter() - began

    took = asyncio.run(everybody())
    p50, p99 = np.percentile(taken, (50, 99)) * 1000
    return len(taken), len(taken) / took, float(p50), float(p99)
