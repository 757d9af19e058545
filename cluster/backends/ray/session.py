"""The connection to Ray: a running cluster, or a local one that lives as long as the run.

Ray puts the driver's current folder first where its actors import from, so it starts in an empty
one: a file that lies beside a config is not run in every rank.

Ray is imported inside functions here, and the modules beside this one that import it come after,
because it reads its authentication mode while it is imported.
"""

import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

from .... import UserError
from ...config import ClusterConfig

LOCAL_OBJECT_STORE_BYTES = 100 * 2**20
"""Only small events pass through Ray."""
MAX_TEMP_ROOT = 25
"""About 75 characters follow it, and a socket's path may have 107."""


@contextmanager
def ray_session(config: ClusterConfig, world_size: int) -> Iterator[None]:
    """Connect to `config.address` (or RAY_ADDRESS), or start Ray on this machine.

    A Ray that this process already uses is left as it is. Raises UserError when there is no
    cluster at the address or it refuses the token.
    """
    address = cluster_address(config)
    _set_environment(local=address is None)
    import ray

    if ray.is_initialized():
        yield
    elif address is not None:
        with connection(address):
            yield
    else:
        with _local_ray(world_size * config.cpus_per_worker):
            yield


def cluster_address(config: ClusterConfig) -> str | None:
    """The cluster to use: the config's, else Ray's own variable (set in a submitted job)."""
    return config.address or os.environ.get("RAY_ADDRESS") or None


def ensure_token() -> None:
    """Make sure that there is a cluster token: the user's, else a new one of mode 0600.

    Ray would write its own readable by everybody.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = _token_path()
    if path.exists():
        return
    try:
        _write_token(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot write the token of the local Ray ({error.strerror}); "
            "set RAY_AUTH_TOKEN_PATH to a file that holds one"
        ) from error


def _token_path() -> Path:
    return Path.home() / ".ray" / "auth_token"


def _write_token(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=path.parent)  # mkstemp gives mode 0600.
    try:
        with os.fdopen(fd, "w") as file:
            file.write(secrets.token_hex(32))
        # A link never replaces: when two runs start at once, both read the first one's token.
        path.hardlink_to(temporary)
    except FileExistsError:
        pass
    finally:
        Path(temporary).unlink()


def _set_environment(*, local: bool) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if local:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if os.environ["RAY_AUTH_MODE"] == "token":
            ensure_token()
    elif _has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _has_token() -> bool:
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or _token_path().exists()


@contextmanager
def connection(address: str) -> Iterator[None]:
    """Join a running cluster (`auto` or host:port). Raises UserError when that fails."""
    import ray

    _check_reachable(address)
    try:
        with tempfile.TemporaryDirectory() as empty, chdir(empty):
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"cluster.address {address!r}: cannot join this Ray cluster ({reason}); "
            "check that it runs and that RAY_AUTH_MODE and the token are those of its head"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Try a TCP connection first: Ray ends the whole process when nobody answers."""
    host, separator, port = address.rpartition(":")
    if address == "auto":
        return
    numbered = port.isascii() and port.isdigit() and int(port) < 2**16
    if not separator or "/" in host or not numbered:
        raise UserError(f"cluster.address {address!r}: give `auto` or host:port of the head node")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"cluster.address {address!r}: no answer ({error}); check that a Ray head runs there"
        ) from error


@contextmanager
def _local_ray(num_cpus: int) -> Iterator[None]:
    import ray

    root = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="moel-", dir=root if len(root) <= MAX_TEMP_ROOT else "/tmp")
    try:
        with chdir(folder):
            _start(num_cpus, folder)
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _start(num_cpus: int, folder: str) -> None:
    import ray

    try:
        ray.init(
            address="local",
            num_cpus=max(num_cpus, os.cpu_count() or 1),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=LOCAL_OBJECT_STORE_BYTES,
            _temp_dir=f"{folder}/ray",  # Ray opens this to everybody; mkdtemp's is ours alone.
        )
    except Exception as error:  # Ray raises just that where its processes are slow to come up.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"cluster: the local Ray did not start ({reason}); this machine may be too busy or "
            "full: see what else runs, and try again"
        ) from error
