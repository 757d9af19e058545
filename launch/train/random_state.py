"""Every rank's random generators, as a part of the saved state."""

import torch

from ...moe.state.shard import Shard
from ...moe.state.source import Source


def random_state(rank: int, device: torch.device) -> list[Shard]:
    """This rank's generators: the CPU's, and its GPU's."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return [
        Shard(f"rng/{rank}/{name}", (state.numel(),), 0, state) for name, state in states.items()
    ]


def load_random_state(source: Source, rank: int, device: torch.device, seed: int) -> None:
    """Go on with a checkpoint's generators; a rank that it has none for gets new ones of the run's
    `seed`."""
    if f"rng/{rank}/cpu" in source.tensors:
        torch.set_rng_state(source.read(f"rng/{rank}/cpu"))
    else:
        torch.manual_seed(random_seed(seed, rank, source.step))
    if device.type == "cuda" and f"rng/{rank}/cuda" in source.tensors:
        torch.cuda.set_rng_state(source.read(f"rng/{rank}/cuda"), device)


def random_seed(seed: int, rank: int, step: int) -> int:
    """The seed of a rank that a checkpoint has no random state for: it had fewer ranks."""
    return seed * 1_000_003 + step * 65_537 + rank
