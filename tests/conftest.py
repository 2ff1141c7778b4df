"""What holds for every test: eight CPU devices, strict promotion of ranks, and a home folder that is thrown away."""

from __future__ import annotations

import os

# JAX reads these when it is first imported, so they are set before anything here can import it.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# JAX_NUMPY_DTYPE_PROMOTION=strict is left out: optax.adam raises a float to the int32 step count, and Flax's BatchNorm
# and avg_pool mix int32 with float32; each raises TypePromotionError under it.

import gc
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import psutil
import pytest

import ceph_server
from ceph_server import CephServer
from postgres_server import MISSING, PostgresServer, postgres_server, programs

# What a shell starts in the background ignores interrupts, and so do its children; some tests send them.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The first call of a jitted function compiles, which no deadline for one example allows for.
hypothesis.settings.register_profile("mms", deadline=None)
hypothesis.settings.load_profile("mms")

LARGE_BYTES = 1_500 * 2**20  # a worker has 1 GB once it has imported all tests


@pytest.hookimpl(trylast=True)  # after what is not asked for was taken away
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where workers share the files, those that may take longest come first, so that no worker ends long before."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    may_take = Counter[Path]()
    for item in items:
        if any(item.get_closest_marker(name) for name in ("slow", "ray", "torture")):
            limit = item.get_closest_marker("timeout")
            may_take[item.path] += limit.args[0] if limit else int(config.getini("timeout"))
        else:
            may_take[item.path] += 1
    items.sort(key=lambda item: -may_take[item.path])  # stable: a file's tests stay in their order


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that stands for the person's home, so that no test reads or writes the real one."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for variable in [name for name in os.environ if name.startswith(("MMS_", "XDG_", "IPYTHON", "JUPYTER"))]:
            patch.delenv(variable)
        patch.setenv("HOME", str(folder))
        patch.setenv("MMS_WORKSPACE", str(folder / "mms-workspace"))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps what XLA compiled, because many tests compile what one before them did.

    Each worker has a folder of its own: JAX writes an entry in place, and who reads it meanwhile finds half of it.
    """
    import jax

    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module", autouse=True)
def not_too_large() -> Iterator[None]:
    """After a file, lets go of the programs that JAX holds for ever, before they fill the memory."""
    yield
    if psutil.Process().memory_info().rss > LARGE_BYTES and "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server; a test that stops it starts it again."""
    found = programs()
    if found is None:
        pytest.skip(MISSING)
    with postgres_server(found) as server:
        yield server


@pytest.fixture(scope="session")
def ceph() -> Iterator[CephServer]:
    """A real S3 server; its user is whom the environment names."""
    if missing := ceph_server.missing():
        pytest.skip(f"{ceph_server.MISSING} (not there: {', '.join(missing)})")
    with ceph_server.running() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
        yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """The address of an imitation of S3, which starts in a moment and takes any user."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            if name not in os.environ:
                patch.setenv(name, "anybody")
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def catalog_at(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where a new catalog may lie: a file's path, or the URL of an empty database."""
    if request.param == "sqlite":
        return tmp_path / "catalog.sqlite"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.make_database()


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where the system has one, for work that syncs to disk some thousand times."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="mms-", dir=memory) as folder:
        yield Path(folder)
