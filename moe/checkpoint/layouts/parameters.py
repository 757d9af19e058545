"""What each rank of a layout holds before ZeRO shares it: its elements' canonical names."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

from ...config import ModelConfig
from ...engines import ENGINES
from ...model import model_specs
from ...spec import CutPart, Spec, Specs
from ...state.names import Local, whole
from ...state.source import Slab
from .layout import StateLayout
from .slabs import block, cut


@dataclass(frozen=True)
class LocalParameter:
    """One parameter as a rank holds it before ZeRO.

    `slabs` are its elements in the order of its memory, under canonical names. `writes`: whether
    this rank speaks for its copy where other tensor- or pipeline-parallel ranks hold the same.
    """

    local: Local
    slabs: tuple[Slab, ...]
    writes: bool

    @cached_property
    def starts(self) -> list[int]:
        """Where each slab begins in the flattened parameter."""
        return list(accumulate((slab.numel for slab in self.slabs[:-1]), initial=0))

    def elements(self, start: int, numel: int) -> Iterator[Slab]:
        """The canonical elements [start, start + numel) of the flattened parameter."""
        return cut(self.slabs, self.starts, start, numel)


@dataclass(frozen=True)
class Skeleton:
    """A whole model without data: what `config` (with its vocabulary size) says of it."""

    config: ModelConfig

    @cached_property
    def specs(self) -> Specs:
        """Every parameter and buffer, in the order of the model."""
        return model_specs(self.config)

    @property
    def parameters(self) -> Iterator[Local]:
        """Every parameter, all experts of a layer in one."""
        return (whole(name, s) for name, s in self.specs.items() if not s.buffer)

    @property
    def buffers(self) -> Iterator[tuple[str, Spec]]:
        """Every buffer."""
        return ((name, s) for name, s in self.specs.items() if s.buffer)


def dense_parameters(
    model: Skeleton, target: StateLayout, stage: int, rank: int
) -> list[LocalParameter]:
    """What every replica of tensor-parallel `rank` of the pipeline `stage` holds, in the order of
    the model, without experts, and without what it got no element of."""
    found = []
    for p in model.parameters:
        stages = stages_of(p.name, model.config, target)
        if stage in stages and not _apart(p, target):
            held = _localise(replace(p, two_stages=len(stages) > 1), target, rank)
            found.append(replace(held, writes=held.writes and stage == stages[0]))
    return [p for p in found if p.slabs]


def expert_parameters(
    model: Skeleton, target: StateLayout, stage: int, rank: int, ep_rank: int
) -> list[LocalParameter]:
    """The same for the stacked experts of one expert-parallel rank."""
    return [
        _localise(_stack(p, target.ep, ep_rank), target, rank)
        for p in model.parameters
        if stage in stages_of(p.name, model.config, target) and _apart(p, target)
    ]


def stages_of(name: str, config: ModelConfig, target: StateLayout) -> list[int]:
    """Pipeline stages that hold the parameter or buffer `name`; the first one writes it."""
    last = target.pp - 1
    if name.startswith("layers."):
        layer = int(name.split(".")[1])
        return [((layer + 1) * target.pp - 1) // config.num_layers]
    if name == "embedding":
        return [0, last] if config.tie_embeddings and last else [0]
    return [last]


def _apart(parameter: Local, target: StateLayout) -> bool:
    return parameter.expert and not (ENGINES[target.engine].merges_experts and target.ep == 1)


def _stack(parameter: Local, ep: int, ep_rank: int) -> Local:
    here = parameter.shape[0] // ep
    return replace(parameter, shape=(here, *parameter.shape[1:]), first_expert=ep_rank * here)


def _localise(parameter: Local, target: StateLayout, rank: int) -> LocalParameter:
    """Tensor parallelism's part of a parameter: the same cut of each logical tensor in it."""
    spec, logicals = parameter.spec, parameter.logicals()
    mine = spec.cut.part(spec.shape, target.tp, rank)
    slabs = tuple(slab for t in logicals for slab in _slabs(t.name, mine))
    stacked = parameter.shape[: parameter.expert]
    here = replace(parameter, shape=(*stacked, *mine.local_shape))
    return LocalParameter(here, slabs, mine.writes)


def _slabs(name: str, part: CutPart) -> Iterator[Slab]:
    return (block(name, *run) for run in part.runs())
