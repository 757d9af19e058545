"""The environment that a worker finds on its node."""

import psutil

from .backend import Start

GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


def worker_env(base: dict[str, str], start: Start, address: str) -> dict[str, str]:
    """The worker's environment on the node `address`; what the user set wins."""
    env = {**base, **start.env}
    env.setdefault("OMP_NUM_THREADS", str(start.cpus))
    interface = interface_of(address)
    if interface is not None:
        # Gloo would otherwise look the host's name up, which fails or gives 127.0.1.1 at times.
        env.setdefault("GLOO_SOCKET_IFNAME", interface)
    if start.hide_gpus:
        for name in GPU_VARIABLES:
            env[name] = start.env.get(name, "-1")
    return env


def interface_of(address: str) -> str | None:
    """The network interface that owns an IP address of this node."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in addresses):
            return str(name)
    return None
