"""Megatron-Core's layout of optimizer state; no engine here runs it yet."""

import math
from collections.abc import Iterator, Sequence

from ...config import EngineConfig, OptimizerConfig
from ...grid import Shape
from ...optim.rules import rule
from ...state.names import Local
from ..kind import EngineKind, Run, end_to_end, even, up

START, END = 64, 128
"""Elements that Megatron aligns each parameter's start, and a buffer's end, to."""


class Megatron(EngineKind):
    """The distributed optimizer (ZeRO 1) and the layer-wise one for Muon."""

    name = "megatron"
    trains = False
    merges_experts = True

    @classmethod
    def problems(
        cls,
        shape: Shape,
        zero: int,
        optimizer: OptimizerConfig | None = None,
        engine: EngineConfig | None = None,
    ) -> Iterator[str]:
        """ZeRO beyond 1."""
        if zero > 1:
            yield (
                f"zero is {zero}, but engine megatron shards the optimizer only: set zero to 1, or "
                "engine to deepspeed"
            )

    @classmethod
    def share(
        cls,
        held: Sequence[Local],
        members: int,
        zero: int,
        bucket_bytes: int,
        optimizer: OptimizerConfig,
    ) -> Iterator[tuple[int, Run]]:
        """By the optimizer that the rule asks for."""
        if optimizer.name == "muon":
            return _layer_wise(held, members, optimizer)
        return _distributed(held, members)


def _distributed(held: Sequence[Local], members: int) -> Iterator[tuple[int, Run]]:
    """One buffer, from the last parameter to the first, cut evenly. An embedding that two stages
    hold has a buffer of its own, so that both cut it alike."""
    backwards = list(reversed(range(len(held))))
    for buffer in (
        [i for i in backwards if not held[i].two_stages],
        [i for i in range(len(held)) if held[i].two_stages],
    ):
        numels = [held[i].numel for i in buffer]
        starts, total = end_to_end(numels, START)
        whole = up(total, math.lcm(members, END))
        yield from even(buffer, numels, starts, whole // members)


def _layer_wise(
    held: Sequence[Local], members: int, optimizer: OptimizerConfig
) -> Iterator[tuple[int, Run]]:
    """Whole tensors, by size, dealt to the ranks there and back."""
    tensors = [
        Run(i, at * numel, numel)
        for i, p in enumerate(held)
        for numel in [math.prod(p.shape[-2:])]
        for at in range(p.numel // numel)
    ]

    def order(run: Run) -> tuple[int, bool]:
        return run.numel, rule(held[run.index].spec, optimizer) != "muon"

    for i, run in enumerate(sorted(tensors, key=order)):
        turn, at = divmod(i, members)
        yield (members - 1 - at if turn % 2 else at), run
