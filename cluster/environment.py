"""The environment that a worker finds on its node."""

import os
from collections.abc import Mapping

import psutil

from .backend import Start
from .secrets import resolve
from .spec import SAFE_PATH

GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
PASSED_ON = ("NCCL_", "RCCL_", "GLOO_", "TORCH_")
"""Variables of the command that its workers get, on whatever node: by how their names begin."""


def passed_on(env: Mapping[str, str]) -> dict[str, str]:
    """What of the command's environment every worker gets."""
    return {name: value for name, value in env.items() if name.startswith(PASSED_ON)}


def worker_env(base: dict[str, str], start: Start, address: str) -> dict[str, str]:
    """The worker's environment on the node `address`; what the user set wins. Raises UserError."""
    env = {**base, **resolve(start.env, base)}
    env.setdefault("OMP_NUM_THREADS", str(start.cpus))
    interface = interface_of(address)
    if interface is not None:
        # Gloo would otherwise look the host's name up, which fails or gives 127.0.1.1 at times.
        env.setdefault("GLOO_SOCKET_IFNAME", interface)
    if start.hide_gpus:
        for name in GPU_VARIABLES:
            env[name] = start.env.get(name, "-1")
    return _without_current_folder(env)


def _without_current_folder(env: dict[str, str]) -> dict[str, str]:
    """No Python below the worker imports what happens to lie in the current folder."""
    found = {**env, SAFE_PATH: "1"}
    # An empty entry means the current folder, and mostly comes from `X:$PYTHONPATH`.
    entries = [entry for entry in env.get("PYTHONPATH", "").split(os.pathsep) if entry]
    found.pop("PYTHONPATH", None)
    return {**found, "PYTHONPATH": os.pathsep.join(entries)} if entries else found


def interface_of(address: str) -> str | None:
    """The network interface that owns an IP address of this node."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in addresses):
            return str(name)
    return None
