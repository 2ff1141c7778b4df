"""What can be set, and from where: an argument wins over the environment, which wins over the default."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path

from mms_sdk.errors import InvalidRequest

WORKSPACE_VARIABLE = "MMS_WORKSPACE"
CATALOG_VARIABLE = "MMS_CATALOG"
DATASETS_VARIABLE = "MMS_DATASETS"
COMPILE_CACHE_VARIABLE = "MMS_COMPILE_CACHE"
RAY_VARIABLE = "MMS_RAY"
RAY_OPEN_VARIABLE = "MMS_RAY_OPEN"
FETCH_NETWORKS_VARIABLE = "MMS_FETCH_NETWORKS"
PRICES_VARIABLE = "MMS_PRICES"
TOKEN_VARIABLE = "MMS_TOKEN"
URL_VARIABLE = "MMS_URL"
JOB_VARIABLE = "MMS_JOB"
WORKER_VARIABLE = "MMS_WORKER"
SECRETS_VARIABLE = "MMS_SECRETS"
FENCE_VARIABLE = "MMS_FENCE"
MESH_VARIABLE = "MMS_MESH"
ARTIFACTS_VARIABLE = "MMS_ARTIFACTS"
INPUTS_VARIABLE = "MMS_INPUTS"
OUTPUTS_VARIABLE = "MMS_OUTPUTS"
HOME_WORKSPACE = Path.home() / "mms-workspace"


def default_workspace() -> Path:
    """The folder a workspace is kept in when nobody names one: `$MMS_WORKSPACE`, or `~/mms-workspace`."""
    return Path(os.environ.get(WORKSPACE_VARIABLE) or HOME_WORKSPACE).expanduser()


def default_catalog() -> str | None:
    """The URL of a workspace's catalog when nobody names one: `$MMS_CATALOG`, or None for a file in the workspace."""
    return os.environ.get(CATALOG_VARIABLE, "").strip() or None


def default_datasets() -> str | None:
    """Where a workspace's datasets lie when nobody says: `$MMS_DATASETS`, or None for a folder in the workspace."""
    return os.environ.get(DATASETS_VARIABLE, "").strip() or None


def ray_address() -> str | None:
    """The Ray cluster that jobs can run on: `$MMS_RAY`, `host:port` of its head, or None for none."""
    return os.environ.get(RAY_VARIABLE, "").strip() or None


def ray_may_be_open() -> bool:
    """Whether a Ray that asks for no token may be used, on this machine or a private network: `$MMS_RAY_OPEN` is 1."""
    return os.environ.get(RAY_OPEN_VARIABLE, "").strip() == "1"


def compile_cache() -> Path | None:
    """Where compiled programs are kept for the next process: the folder `$MMS_COMPILE_CACHE`, or None for nowhere."""
    told = os.environ.get(COMPILE_CACHE_VARIABLE, "").strip()
    return Path(told).expanduser().absolute() if told else None


def fetch_networks() -> tuple[IPv4Network | IPv6Network, ...]:
    """Networks that a source may be fetched from though they are not public: `$MMS_FETCH_NETWORKS`, by commas.

    It is a setting of the machine and not of a source, so that nobody who asks for an ingest can switch it on.

    Raises:
        InvalidRequest: It names what is no network.
    """
    told = os.environ.get(FETCH_NETWORKS_VARIABLE, "")
    try:
        return tuple(ip_network(each.strip()) for each in told.split(",") if each.strip())
    except ValueError as error:
        raise InvalidRequest(
            f"${FETCH_NETWORKS_VARIABLE} lists networks such as 10.1.0.0/16,fd00::/8; got {told!r}: {error}"
        ) from error


def server_url() -> str | None:
    """Where jobs reach a server, if not where it listens: `$MMS_URL`, or None. Jobs find it in the same variable.

    Raises:
        InvalidRequest: It is no such address.
    """
    told = os.environ.get(URL_VARIABLE, "").strip()
    if told and not told.startswith(("http://", "https://")):
        raise InvalidRequest(f"${URL_VARIABLE} begins with http:// or https://; got {told[:100]!r}")
    return told or None


def prices() -> dict[str, float]:
    """What a core and a GPU cost for an hour: `$MMS_PRICES`, e.g. `cpu=0.04,gpu=2.5`; nothing if it is not set.

    Raises:
        InvalidRequest: It says something else.
    """
    told = os.environ.get(PRICES_VARIABLE, "").strip()
    found = {}
    for part in told.split(",") if told else ():
        name, _, price = part.strip().partition("=")
        try:
            found[name] = float(price)
        except ValueError:
            found[name] = math.nan
        if name not in ("cpu", "gpu") or not 0 <= found[name] < math.inf:
            raise InvalidRequest(
                f"${PRICES_VARIABLE} has prices from 0 of cpu and gpu, per device and hour, e.g. cpu=0.04,gpu=2.5; "
                f"got {part[:60]!r}"
            )
    return found


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How the service layer behaves; the defaults are those of an embedded or loopback server.

    Attributes:
        allowed_hosts: Names accepted in the `Host` header, without port. Anything else is refused, which stops DNS
            rebinding.
        allowed_origins: Values accepted in the `Origin` header. Empty: no web page may call.
        source_roots: Folders that an ingest or bulk prediction asked for over REST may read. None: any folder the
            process can read, which is right only where the caller is this very process.
        max_body_bytes: Largest request body.
        body_timeout_s: Longest time a client may take to send a body.
        audited: Whether changes and refused access are written to the workspace's audit log.
        wrong_tokens_per_s: Requests a second that may come from one address without a valid token; more have to wait.
        wrong_tokens_burst: So many of them may come at once.
        max_queue_rows: Rows that may wait in one deployment's queue before requests are refused with 503.
        max_explanations: Explanations that may wait in one deployment at a time; they never delay predictions.
        default_deadline_s: How long a prediction may take when the client names no deadline.
        max_pixels: Largest picture decoded, in pixels; bounds the memory that one request can take.
    """

    allowed_hosts: frozenset[str] = frozenset({"localhost", "127.0.0.1", "[::1]"})
    allowed_origins: frozenset[str] = frozenset()
    source_roots: tuple[Path, ...] | None = ()
    max_body_bytes: int = 64 * 2**20
    body_timeout_s: float = 30.0
    audited: bool = True
    wrong_tokens_per_s: float = 5.0
    wrong_tokens_burst: int = 50
    max_queue_rows: int = 4096
    max_explanations: int = 16
    default_deadline_s: float = 30.0
    max_pixels: int = 50_000_000
