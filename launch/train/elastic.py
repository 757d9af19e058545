"""The same run on fewer or more ranks: which sizes it can have, and its layout on each."""

import math

from ... import UserError
from ..config import RunConfig, problems


def layout_for(config: RunConfig, world: int) -> RunConfig:
    """The run on `world` ranks: as many data-parallel ones, the largest expert parallelism up to
    the config's that divides them and the experts, and the same global batch by accumulation.

    Raises UserError if there are too few, or the global batch or the engine does not allow it.
    """
    least = config.cluster.min_workers
    if world < least:
        raise UserError(
            f"cluster.min_workers: {least}, but {world} ranks were started; start more, or lower it"
        )
    common = math.gcd(world, config.model.moe.num_experts)
    ep = max(n for n in range(1, min(common, config.layout.ep) + 1) if common % n == 0)
    layout = config.layout.model_copy(update={"dp": world, "ep": ep})
    resized = config.model_copy(update={"layout": layout})
    found = problems(resized)
    if found:
        raise UserError(f"{world} ranks: {found[0]}")
    return resized


def allowed_sizes(config: RunConfig) -> tuple[int, ...]:
    """Numbers of ranks that the run may go on with, the config's own first, descending: with
    `cluster.elastic` down to `cluster.min_workers`, else only its own."""
    whole, data = config.layout.world_size, config.data
    least = config.cluster.min_workers if config.cluster.elastic else whole
    rounds = data.global_batch_size // data.micro_batch_size
    smaller = (n for n in range(whole - 1, least - 1, -1) if rounds % n == 0)
    return (whole, *(n for n in smaller if _fits(config, n)))


def _fits(config: RunConfig, world: int) -> bool:
    try:
        layout_for(config, world)
    except UserError:
        return False
    return True
