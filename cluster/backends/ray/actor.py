"""The Ray actor that holds one worker process on its node. Its node's Ray imports this module."""

import ray

from ...backend import Site
from ...holder import Holder


class WorkerActor(Holder):
    """Runs in a Ray worker process; all methods run on its event loop."""

    def __init__(self) -> None:
        """Holds nothing yet."""
        super().__init__(ray.util.get_node_ip_address())

    async def site(self) -> Site:
        """Where this actor runs."""
        context = ray.get_runtime_context()
        gpus = tuple(context.get_accelerator_ids().get("GPU", []))
        return Site(context.get_node_id(), self.address, gpus)
