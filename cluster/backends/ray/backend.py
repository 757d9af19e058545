"""A joined Ray cluster: its nodes, and the placement groups that hold the seats.

Import this only within a `ray_session`.
"""

from collections.abc import Sequence

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from ...backend import Node, Seat
from ...config import ClusterConfig
from .reach import unreachable
from .seats import RayReservation, RaySeat, end_actor, reserve


class RayBackend:
    """Seats are actors, each in a bundle of a placement group."""

    def __init__(self, config: ClusterConfig) -> None:
        """Nothing is placed yet."""
        self.here: str = ray.get_runtime_context().get_node_id()
        self._config = config
        self._seats: list[RaySeat] = []
        self._placements: list[PlacementGroup] = []
        self._hollow: list[tuple[PlacementGroup, int]] = []
        """Bundles whose actors were lost. Ray may yet place them on another node."""

    def nodes(self) -> list[Node]:
        """Those that Ray takes for alive; it notices a silent one after half a minute."""
        return [
            Node(
                node["NodeManagerHostname"],
                int(node["Resources"].get("CPU", 0)),
                int(node["Resources"].get("GPU", 0)),
                node["NodeID"],
            )
            for node in ray.nodes()
            if node["Alive"]
        ]

    def silent(self, nodes: Sequence[Node]) -> frozenset[str]:
        """Those whose raylet does not answer."""
        wanted = {node.id for node in nodes}
        return unreachable(
            {
                node["NodeID"]: (node["NodeManagerAddress"], node["NodeManagerPort"])
                for node in ray.nodes()
                if node["NodeID"] in wanted
            }
        )

    def reserve(
        self, count: int, gpus: int, avoided: frozenset[str] = frozenset()
    ) -> RayReservation:
        """A placement group of its own."""
        return reserve(count, self._config, gpus, avoided, self._accept)

    def reclaim(self, gpus: int, here: frozenset[str]) -> RayReservation | None:
        """An actor for a bundle that Ray still holds for us on a node that answers."""
        for placement, bundle in self._hollow:
            table = placement_group_table(placement)
            if table["state"] == "CREATED" and table["bundles_to_node_id"].get(bundle) in here:
                return RayReservation(
                    placement, (bundle,), self._config, gpus, self._accept, own=False
                )
        return None

    def end(self, seat: Seat) -> None:
        """Kill the actor; its bundle stays ours."""
        assert isinstance(seat, RaySeat)
        end_actor(seat.actor)
        self._seats.remove(seat)
        self._hollow.append((seat.placement, seat.bundle))

    def release(self) -> None:
        """Kill the actors and remove the placement groups."""
        for seat in self._seats:
            end_actor(seat.actor)
        for placement in self._placements:
            remove_placement_group(placement)
        self._seats, self._placements, self._hollow = [], [], []

    def close(self) -> None:
        """Give everything back."""
        self.release()

    def _accept(self, made: RayReservation, seats: Sequence[RaySeat]) -> None:
        self._seats += seats
        if made.own:
            self._placements.append(made.placement)
        taken = [(seat.placement, seat.bundle) for seat in seats]
        self._hollow = [bundle for bundle in self._hollow if bundle not in taken]
