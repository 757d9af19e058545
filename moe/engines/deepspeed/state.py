"""Where DeepSpeed keeps the fp32 master weights and the optimizer state of every parameter."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...state.names import Local, fill, has_optimizer, to_shards
from ...state.shard import Shard
from ...state.source import Source


@dataclass(frozen=True)
class Named:
    """A parameter as it was before DeepSpeed flattened or partitioned it."""

    parameter: nn.Parameter
    local: Local
    rule: str
    exported: bool
    """Whether this rank speaks for its copy where every rank keeps one (ZeRO 0)."""


@dataclass(frozen=True)
class Held:
    """Elements [start, start + numel) of a flattened parameter, at `position` of the tensor
    `master` that this rank's optimizer updates."""

    named: Named
    start: int
    numel: int
    master: torch.Tensor
    position: int

    def tensors(self, state: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
        """(prefix of the canonical name, 1-D view) of the weights and of the `state` tensors."""
        yield "model", self._view(self.master)
        for key, value in state.items():
            if value.ndim:
                yield f"{self.named.rule}/{key}", self._view(value)

    def _view(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().view(-1)[self.position : self.position + self.numel]


def held_whole(groups: list[list[Named]], base: torch.optim.Optimizer) -> list[Held]:
    """ZeRO 0: every rank updates whole parameters (bf16: fp32 copies in the same order)."""
    return [
        Held(named, 0, master.numel(), master, 0)
        for group, mine in zip(base.param_groups, groups, strict=True)
        for master, named in zip(group["params"], mine, strict=True)
    ]


def held_flat(groups: list[list[Named]], base: torch.optim.Optimizer) -> list[Held]:
    """ZeRO 1 and 2: each rank updates one run of a group's parameters laid end to end."""
    held = []
    for group, mine in zip(base.param_groups, groups, strict=True):
        for named in mine:
            fragment = named.parameter._hp_mapping  # type: ignore[attr-defined]
            if fragment is not None:
                low, high = fragment.lp_fragment_address, fragment.hp_fragment_address
                held.append(Held(named, low.start, low.numel, group["params"][0], high.start))
    return held


def held_partitions(groups: list[list[Named]], optimizer: Any, dp_rank: int) -> list[Held]:
    """ZeRO 3: each rank updates its equal part of every parameter, the last one padded."""
    held = []
    for named in (named for mine in groups for named in mine):
        p = named.parameter
        subgroup, position, size = optimizer.grad_position[optimizer.get_param_id(p)]
        start = dp_rank * size
        numel = min(size, p.ds_numel - start)  # type: ignore[attr-defined]
        if numel > 0:
            master = optimizer.fp32_partitioned_groups_flat[subgroup]
            held.append(Held(named, start, numel, master, position))
    return held


def export(held: list[Held], base: torch.optim.Optimizer) -> list[Shard]:
    """This rank's weights and optimizer state under canonical names."""
    shards = []
    for h in held:
        if h.named.exported:
            for prefix, values in h.tensors(base.state[h.master]):
                shards += to_shards(prefix, h.named.local.logicals(), h.start, values)
    return shards


@torch.no_grad()
def load(held: list[Held], base: torch.optim.Optimizer, reader: Source, updates: int) -> None:
    """Read what `export` names; `updates` is the count that AdamW's bias correction needs."""
    stateful = has_optimizer(reader)
    for h in held:
        for prefix, values in h.tensors(base.state[h.master] if stateful else {}):
            fill(reader, prefix, h.named.local.logicals(), h.start, values)
    for state in base.state.values():
        if "step" in state:
            state["step"].fill_(updates)


@torch.no_grad()
def publish(held: list[Held], optimizer: Any, zero: int) -> None:
    """Give all ranks the master weights in the model's dtype, as the end of a step does;
    collective."""
    if zero == 0:
        for h in held:
            h.named.parameter.copy_(h.master)
    elif zero < 3:
        optimizer.update_lp_params()
    else:
        optimizer._partition_all_parameters()
        for subgroup in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(subgroup)
