"""Which worker goes to which node: what a cluster can hold, and a forecast for a dry run."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from .. import UserError
from .backend import Kind, Node
from .config import ClusterConfig
from .kinds import CLUSTERS


@dataclass(frozen=True)
class Slot:
    """The place expected for one rank; `device` is the node's GPU index, or "cpu"."""

    rank: int
    node: str
    device: str


def describe_placement(world_size: int, config: ClusterConfig) -> list[Slot]:
    """Where the ranks would go, by rank; starts nothing when no cluster is named.

    Raises UserError when the cluster can never hold them. A busy cluster may choose
    other nodes.
    """
    if config.launcher == "none":
        nodes = [this_node(world_size * config.cpus_per_worker)]
    else:
        kind: Kind = CLUSTERS[config.launcher]
        nodes = kind.forecast(config, world_size)
    return place_ranks(nodes, world_size, config)


def this_node(cpus: int) -> Node:
    """This machine, taken to have `cpus`: a local group may use more than there are."""
    # torch counts the GPUs of NVIDIA and of AMD without taking any memory on them.
    from torch.cuda import device_count

    return Node(socket.gethostname(), cpus, device_count())


def place_ranks(nodes: Sequence[Node], world_size: int, config: ClusterConfig) -> list[Slot]:
    """The forecast for given, idle nodes. Raises UserError when the group can never fit."""
    check_fits(nodes, world_size, config)
    gpus = gpus_per_worker(nodes, config)
    counts = _spread([n.room(config.cpus_per_worker, gpus) for n in nodes], world_size, config)
    slots: list[Slot] = []
    for node, count in zip(nodes, counts, strict=True):
        for local in range(count):
            slots.append(Slot(len(slots), node.name, str(local) if gpus else "cpu"))
    return slots


def gpus_per_worker(nodes: Sequence[Node], config: ClusterConfig) -> int:
    """The configured number, else one where any node has a GPU."""
    if config.gpus_per_worker is not None:
        return config.gpus_per_worker
    return int(any(node.gpus for node in nodes))


def check_fits(nodes: Sequence[Node], world_size: int, config: ClusterConfig) -> None:
    """Raise UserError when these nodes could not hold the group even if they were idle."""
    cpus, gpus = config.cpus_per_worker, gpus_per_worker(nodes, config)
    most = largest_group(nodes, config)
    if most >= world_size:
        return
    raise UserError(
        f"the run needs {world_size} workers of {cpus} CPU and {gpus} GPU each "
        f"(cluster.strategy {config.strategy}), but the cluster holds at most {most}: "
        f"{cluster_text(nodes)}; use fewer workers, or change cluster.cpus_per_worker, "
        "cluster.gpus_per_worker (0: train on the CPU) or cluster.strategy"
    )


def largest_group(nodes: Sequence[Node], config: ClusterConfig) -> int:
    """How many workers these nodes hold when they are idle."""
    gpus = gpus_per_worker(nodes, config)
    rooms = [node.room(config.cpus_per_worker, gpus) for node in nodes]
    if config.strategy == "STRICT_PACK":
        return max(rooms, default=0)
    return sum(room > 0 for room in rooms) if config.strategy == "STRICT_SPREAD" else sum(rooms)


def cluster_text(nodes: Sequence[Node]) -> str:
    """The nodes in words."""
    return ", ".join(f"{n.name} ({n.cpus} CPU, {n.gpus} GPU)" for n in nodes) or "no nodes"


def _spread(rooms: Sequence[int], world_size: int, config: ClusterConfig) -> list[int]:
    """Workers per node: nodes filled one after the other, or one at a time in turn."""
    counts = [0] * len(rooms)
    if config.strategy == "STRICT_PACK":
        counts[rooms.index(max(rooms))] = world_size
        return counts
    while sum(counts) < world_size:
        open_nodes = [i for i, room in enumerate(rooms) if counts[i] < room]
        if "SPREAD" in config.strategy:
            counts[min(open_nodes, key=lambda i: counts[i])] += 1
        else:
            counts[open_nodes[0]] += 1
    return counts
