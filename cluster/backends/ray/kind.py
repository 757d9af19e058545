"""Ray as a kind of cluster."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from ...backend import Node
from ...config import ClusterConfig
from ...placement import this_node
from .session import cluster_address, ray_session

if TYPE_CHECKING:
    from .backend import RayBackend


class RayKind:
    """A running Ray cluster, else a local Ray that lives as long as the run."""

    @staticmethod
    def forecast(config: ClusterConfig, workers: int) -> list[Node]:
        """The cluster's nodes; this machine when no cluster is named, and then starts no Ray."""
        if cluster_address(config) is None:
            return [this_node(workers * config.cpus_per_worker)]
        with RayKind.open(config, workers) as backend:
            return backend.nodes()

    @staticmethod
    @contextmanager
    def open(config: ClusterConfig, workers: int) -> Iterator["RayBackend"]:
        """Connect to `config.address` (or RAY_ADDRESS), or start Ray on this machine."""
        with ray_session(config, workers):
            from .backend import RayBackend  # Ray reads its environment while it is imported.

            with closing(RayBackend(config)) as backend:
                yield backend
