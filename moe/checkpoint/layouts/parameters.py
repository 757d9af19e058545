"""The parameters of each rank of a layout: their shapes, and their elements' canonical names."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import nn

from ...config import ModelConfig
from ...grid import Groups
from ...model import Model
from ...state.names import is_expert, logical_tensors
from ...state.source import Slab
from .layout import Target
from .slabs import cut
from .tensor_parallel import Cut, cut_tensor


@dataclass(frozen=True)
class LocalParameter:
    """One parameter as a rank holds it before ZeRO.

    `tensor` has its local shape and marks, and no data. `slabs` are its elements in the order of
    its memory, under canonical names. `writes`: whether this rank speaks for its copy where other
    tensor- or pipeline-parallel ranks hold the same. `shared`: whether another pipeline stage
    holds it too.
    """

    name: str
    tensor: nn.Parameter
    slabs: tuple[Slab, ...]
    writes: bool
    shared: bool = False

    @cached_property
    def starts(self) -> list[int]:
        """Where each slab begins in the flattened parameter."""
        return list(accumulate((slab.numel for slab in self.slabs[:-1]), initial=0))

    def elements(self, start: int, numel: int) -> Iterator[Slab]:
        """The canonical elements [start, start + numel) of the flattened parameter."""
        return cut(self.slabs, self.starts, start, numel)


def skeleton(config: ModelConfig) -> Model:
    """The whole model on one rank, without data."""
    groups = SimpleNamespace(ep=SimpleNamespace(rank=0, size=1))
    with torch.device("meta"):
        return Model(config, cast(Groups, groups))


def dense_parameters(model: Model, target: Target, stage: int, rank: int) -> list[LocalParameter]:
    """What every replica of tensor-parallel `rank` of the pipeline `stage` holds, in the order of
    the model, without experts, and without what it got no element of.

    Megatron takes experts for dense parameters where no rank shares them out.
    """
    found = []
    for name, p in model.named_parameters():
        stages = stages_of(name, model.config, target)
        if stage in stages and not _apart(p, target):
            local = _localise(name, p, model.config, target, rank)
            writes = local.writes and stage == stages[0]
            found.append(replace(local, writes=writes, shared=len(stages) > 1))
    return [p for p in found if p.slabs]


def expert_parameters(
    model: Model, target: Target, stage: int, rank: int, ep_rank: int
) -> list[LocalParameter]:
    """The same for the stacked experts of one expert-parallel rank."""
    found = []
    for name, p in model.named_parameters():
        if stage in stages_of(name, model.config, target) and _apart(p, target):
            stack = _stack(p, target.ep, ep_rank)
            found.append(_localise(name, stack, model.config, target, rank))
    return found


def stages_of(name: str, config: ModelConfig, target: Target) -> list[int]:
    """Pipeline stages that hold the parameter or buffer `name`; the first one writes it."""
    last = target.pp - 1
    if name.startswith("layers."):
        layer = int(name.split(".")[1])
        return [((layer + 1) * target.pp - 1) // config.num_layers]
    if name == "embedding":
        return [0, last] if config.tie_embeddings and last else [0]
    return [last]


def _apart(parameter: nn.Parameter, target: Target) -> bool:
    return is_expert(parameter) and not (target.engine == "megatron" and target.ep == 1)


def _stack(parameter: nn.Parameter, ep: int, ep_rank: int) -> nn.Parameter:
    local = parameter.shape[0] // ep
    return _like(parameter, (local, *parameter.shape[1:]), first_expert=ep_rank * local)


def _localise(
    name: str, parameter: nn.Parameter, config: ModelConfig, target: Target, rank: int
) -> LocalParameter:
    """Tensor parallelism's part of a parameter: the same cut of each logical tensor in it."""
    leaf = name.rpartition(".")[2]
    logicals = logical_tensors(name, parameter)
    mine = cut_tensor(leaf, logicals[0].shape, config, target.tp, rank)
    slabs = tuple(slab for t in logicals for slab in mine.slabs(t.name))
    stacked = parameter.shape[: parameter.ndim - len(logicals[0].shape)]
    tensor = _like(parameter, (*stacked, *mine.local_shape), **_matrix_rows(parameter, mine))
    return LocalParameter(name, tensor, slabs, mine.writes)


def _matrix_rows(parameter: nn.Parameter, mine: Cut) -> dict[str, int]:
    if not hasattr(parameter, "matrix_rows"):
        return {}
    matrices = mine.shape[0] // parameter.matrix_rows
    return {"matrix_rows": mine.local_shape[0] // matrices}


def _like(parameter: nn.Parameter, shape: tuple[int, ...], **marks: Any) -> nn.Parameter:
    result = nn.Parameter(torch.empty(shape, device="meta"))
    result.__dict__.update(parameter.__dict__)
    result.__dict__.update(marks)
    return result
