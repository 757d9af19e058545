"""How each engine's ZeRO shares parameters among the ranks that hold copies of them."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from ...config import OptimizerConfig
from ...engines.native.bucket import fill_buckets, split_elements, split_matrices
from ...optim.rules import decays, rule
from .layout import Target
from .parameters import LocalParameter

MEGATRON_START, MEGATRON_END = 64, 128
"""Elements that Megatron aligns each parameter's start, and a buffer's end, to."""


@dataclass(frozen=True)
class Run:
    """Elements [start, start + numel) of a flattened local parameter."""

    parameter: LocalParameter
    start: int
    numel: int


def share(
    held: list[LocalParameter], members: int, target: Target, optimizer: OptimizerConfig
) -> list[list[Run]]:
    """The runs whose master weights and optimizer state each of `members` ranks keeps, by rank.

    `held` are the dense parameters that these ranks hold, or their experts, in the order of the
    model. Without ZeRO every rank keeps all.
    """
    if target.zero == 0 or members == 1:
        return [[Run(p, 0, p.tensor.numel()) for p in held]] * members
    if target.engine == "native":
        owned = _native(held, members, target, optimizer)
    elif target.engine == "deepspeed":
        owned = _deepspeed(held, members, target, optimizer)
    elif optimizer.name == "muon":
        owned = _layer_wise(held, members, optimizer)
    else:
        owned = _megatron(held, members)
    shares: list[list[Run]] = [[] for _ in range(members)]
    for owner, run in owned:
        shares[owner].append(run)
    return shares


def _kinds(
    held: Iterable[LocalParameter], optimizer: OptimizerConfig
) -> dict[tuple[str, bool], list[LocalParameter]]:
    """Parameters by (update rule, weight decay), as both engines group them."""
    kinds: dict[tuple[str, bool], list[LocalParameter]] = {}
    for p in held:
        kind = rule(p.name, p.tensor, optimizer), decays(p.tensor)
        kinds.setdefault(kind, []).append(p)
    return kinds


def _native(
    held: list[LocalParameter], members: int, target: Target, optimizer: OptimizerConfig
) -> Iterator[tuple[int, Run]]:
    """Buckets of parameters, from the last to the first, each cut into equal shards."""
    by_name = {p.name: p for p in held}
    for (update, _), group in _kinds(reversed(held), optimizer).items():
        named: list[tuple[str, nn.Parameter]] = [(p.name, p.tensor) for p in group]
        for bucket in fill_buckets(named, target.bucket_mb << 20):
            split = split_matrices if update == "muon" else split_elements
            pieces, size = split(bucket, members)
            for piece in pieces:
                run = Run(by_name[piece.name], piece.start, piece.numel)
                yield piece.position // size, run


def _deepspeed(
    held: list[LocalParameter], members: int, target: Target, optimizer: OptimizerConfig
) -> Iterator[tuple[int, Run]]:
    """ZeRO 1 and 2: each group of parameters laid end to end, padded to twice the ranks, and cut
    evenly. ZeRO 3: so each parameter alone, padded to the ranks."""
    if target.zero == 3:
        for p in held:
            yield from _even([(p, 0)], -(-p.tensor.numel() // members))
        return
    for group in _kinds(held, optimizer).values():
        placed, total = _end_to_end(group, 1)
        yield from _even(placed, 2 * -(-total // (2 * members)))


def _megatron(held: list[LocalParameter], members: int) -> Iterator[tuple[int, Run]]:
    """The distributed optimizer: one buffer, from the last parameter to the first, cut evenly. An
    embedding that two stages hold has a buffer of its own, so that both cut it alike."""
    alone = [p for p in held if p.shared]
    for buffer in ([p for p in reversed(held) if not p.shared], alone):
        placed, total = _end_to_end(buffer, MEGATRON_START)
        whole = _up(total, math.lcm(members, MEGATRON_END))
        yield from _even(placed, whole // members)


def _layer_wise(
    held: list[LocalParameter], members: int, optimizer: OptimizerConfig
) -> Iterator[tuple[int, Run]]:
    """Megatron's optimizer for Muon: whole tensors, by size, dealt to the ranks there and back."""
    tensors = [
        Run(p, at * numel, numel)
        for p in held
        for numel in [math.prod(p.tensor.shape[-2:])]
        for at in range(p.tensor.numel() // numel)
    ]

    def order(run: Run) -> tuple[int, bool]:
        return run.numel, rule(run.parameter.name, run.parameter.tensor, optimizer) != "muon"

    for i, run in enumerate(sorted(tensors, key=order)):
        turn, at = divmod(i, members)
        yield (members - 1 - at if turn % 2 else at), run


def _end_to_end(
    held: Iterable[LocalParameter], alignment: int
) -> tuple[list[tuple[LocalParameter, int]], int]:
    """Each parameter's position in a flat buffer, and the buffer's size."""
    placed, end = [], 0
    for p in held:
        start = _up(end, alignment)
        placed.append((p, start))
        end = start + p.tensor.numel()
    return placed, end


def _even(placed: list[tuple[LocalParameter, int]], size: int) -> Iterator[tuple[int, Run]]:
    """Cut a flat buffer into shards of `size` elements."""
    for p, position in placed:
        start, numel = 0, p.tensor.numel()
        while start < numel:
            owner, inside = divmod(position + start, size)
            taken = min(numel - start, size - inside)
            yield owner, Run(p, start, taken)
            start += taken


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
