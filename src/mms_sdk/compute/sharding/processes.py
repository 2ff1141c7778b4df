"""Several processes as one: `jax.distributed` with what has to be said to it, and a check that it did."""

from __future__ import annotations

import re
from ipaddress import ip_address

from mms_sdk.errors import InvalidRequest, Unavailable


def join_processes(
    coordinator: str, *, count: int, index: int, start_timeout_s: int = 300, heartbeat_timeout_s: int = 30
) -> None:
    """Joins this process with others to train together; called in each, before anything else of JAX.

    After it `jax.devices()` are those of all of them, and a mesh goes over all. Each then runs the same trainer on the
    same workspace, as processes of one machine. A process that dies ends the others with an error: at once where they
    were waiting for numbers of it, or when its heartbeat is missed.

    Args:
        coordinator: Address and port at which the first process listens, e.g. `127.0.0.1:4321`, and on that address
            alone if it is one of this machine's loopback. JAX neither encrypts nor authenticates what goes over it: a
            private network only.
        count: How many processes there are.
        index: The number of this one, from 0; the first writes the catalog, the metric log and manifests.
        start_timeout_s: How long to wait until all are there.
        heartbeat_timeout_s: After how long a silent process counts as dead.

    Raises:
        InvalidRequest: Numbers that do not fit together, or JAX was used before.
        Unavailable: The others did not come.
    """
    import jax

    if count < 1 or not 0 <= index < count:
        raise InvalidRequest(f"processes are numbered from 0 to count-1; got index={index} of count={count}")
    if re.fullmatch(r".+:\d{1,5}", coordinator) is None:
        raise InvalidRequest(f"a coordinator is an address and a port, e.g. '10.0.0.1:4321'; got {coordinator!r}")
    try:
        # Passed one by one: JAX does not read a process's number and their count from the environment.
        jax.distributed.initialize(
            coordinator,
            num_processes=count,
            coordinator_bind_address=coordinator if _is_loopback(coordinator) else None,  # None: all there are
            process_id=index,
            initialization_timeout=start_timeout_s,
            heartbeat_timeout_seconds=heartbeat_timeout_s,
            shutdown_timeout_seconds=heartbeat_timeout_s,
        )
    except RuntimeError as error:
        if "before any JAX" in str(error) or "only be called once" in str(error):
            raise InvalidRequest(
                f"processes join before anything else of JAX is used, and once; {error}; move mms.sharding."
                f"join_processes to the top"
            ) from error
        raise Unavailable(
            f"{count} processes did not come together at {coordinator} within {start_timeout_s} s: {error}; see that "
            f"all run and reach that port"
        ) from error
    if jax.process_count() != count:
        raise Unavailable(f"{count} processes were to join; JAX counts {jax.process_count()}; start all of them anew")


def _is_loopback(coordinator: str) -> bool:
    host = coordinator.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # another name
        return False
