"""What every kind of layer is: a config section, the laws it follows, and a module."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import BeforeValidator
from torch import nn

from ... import Registry
from ..grid import Grid
from ..section import Section
from ..spec import Specs
from .costs import Costs

Carry = dict[str, torch.Tensor]
"""What one layer hands to the next besides the hidden states, by a name of its own (a router's
state over depth, an fp32 residual). Explicit, so that recomputation and pipeline stages move it."""


class LayerConfig(Section):
    """The options of one kind of layer; `kind` is its name in the registry.

    An option that a layer's YAML leaves out takes the value of the model's field of that name.
    """

    kind: str


@dataclass(frozen=True)
class Dims:
    """What a layer may know of its model; `index` is its own depth from 0, if it asks for it."""

    hidden_size: int
    num_layers: int
    norm_eps: float
    init_std: float
    index: int = 0

    @property
    def residual_std(self) -> float:
        """Of projections that add to the residual stream: smaller with depth (GPT-2, section
        2.3)."""
        return self.init_std / (2 * self.num_layers) ** 0.5


@dataclass(frozen=True)
class Flow:
    """What all layers see of a micro-batch.

    `documents` [B, S] int32. `loads`: by the depth of each layer with experts the tokens [E] that
    each of them gets of the global batch, where they were counted first. `made` holds what layers
    prepare once for all of their kind: masks, rotary tables.
    """

    documents: torch.Tensor
    loads: dict[int, torch.Tensor] = field(default_factory=dict)
    made: dict[Hashable, Any] = field(default_factory=dict)

    def make(self, key: Hashable, what: Callable[[], Any]) -> None:
        """Put `what()` under `key` unless a layer before did."""
        if key not in self.made:
            self.made[key] = what()


class Output(NamedTuple):
    """`y` [B, S, D]. `aux` scalar fp32: weighted auxiliary losses summed over sequences, None for
    none. `loads` [E] int64: tokens that this rank sent to each expert, None without experts.
    `carry`: what the layer changes in the carry."""

    y: torch.Tensor
    aux: torch.Tensor | None = None
    loads: torch.Tensor | None = None
    carry: Carry | None = None


class Layer(nn.Module):
    """A part of the model that owns its laws.

    A kind fills `Config`, `specs`, `costs` and `forward`; `prepare` and `after_update` where it
    needs them. Its own parameters are declared from its specs, so that initial values, update
    rules, tensor-parallel cuts, counts and memory cannot differ from what is there.
    """

    Config: ClassVar[type[LayerConfig]]

    @classmethod
    def specs(cls, config: Any, dims: Dims) -> Specs:
        """Every parameter and buffer, those of its parts included."""
        raise NotImplementedError

    @classmethod
    def costs(cls, config: Any, dims: Dims, tokens: int, length: int, ep: int = 1) -> Costs:
        """The forward pass over `tokens` in sequences of `length`, experts shared by `ep` ranks."""
        raise NotImplementedError

    @classmethod
    def expert_count(cls, config: Any) -> int:
        """How many experts it routes to: 0 for none."""
        return 0

    @classmethod
    def counts_batch(cls, config: Any) -> bool:
        """Whether it takes the global batch's loads from `Flow.loads`."""
        return False

    @classmethod
    def by_depth(cls, config: Any) -> bool:
        """Whether it needs `Dims.index`, which is 0 for all others."""
        return False

    def __init__(self, config: Any, dims: Dims, grid: Grid) -> None:
        super().__init__()
        self.config, self.dims, self.grid = config, dims, grid
        declare(self, type(self).specs(config, dims), grid)

    def prepare(self, flow: Flow) -> None:
        """Make what the forward pass takes from `flow.made`: outside of compiled code, once for
        all layers of a micro-batch."""

    def _apply(self, fn: Callable, recurse: bool = True) -> "Layer":
        # A cast of the model to bf16 must not coarsen buffers: a balancing bias moves by 1e-3.
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, value in before.items():
            held = self._buffers[name]
            if value is not None and held is not None:
                self._buffers[name] = value.to(held.device)
        return self

    @torch.no_grad()
    def after_update(self, loads: torch.Tensor) -> None:
        """Move what no gradient moves; `loads` [E] are the global batch's."""


def declare(module: nn.Module, specs: Specs, grid: Grid) -> None:
    """Register the parameters and buffers of `specs` that are the module's own: experts' stacks
    hold this rank's share. Values come later (`build_model`)."""
    for name, spec in specs.items():
        if "." in name:
            continue
        if spec.buffer:
            module.register_buffer(name, torch.zeros(spec.shape))
            continue
        stack = (spec.experts // grid.ep.size,) if spec.experts else ()
        module.register_parameter(name, nn.Parameter(torch.empty(*stack, *spec.shape)))


def choice(registry: Registry) -> BeforeValidator:
    """Validates a config field that is one of a registry's kinds: the kind's name, or a mapping
    with `kind` and its options."""

    def read(value: Any) -> Any:
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, dict):
            return value
        kind = value.get("kind")
        if not isinstance(kind, str) or kind not in registry:
            names = ", ".join(registry)
            raise ValueError(f"kind {kind!r} is none of the {registry.group}: give one of {names}")
        return registry[kind].Config.model_validate(value)

    return BeforeValidator(read)


def filled(part: Any, registry: Registry, *sources: tuple[Any, type[Section]]) -> Any:
    """A layer's part as written, with the options that it leaves out taken from the first source
    that has a field of that name: (its values as written or validated, its section). Before
    validation, since options are checked together. What names no kind is left as it is."""
    if isinstance(part, str):
        part = {"kind": part}
    if not isinstance(part, dict) or part.get("kind") not in registry:
        return part
    values = dict(part)
    for name in registry[part["kind"]].Config.model_fields.keys() - part.keys():
        for written, section in sources:
            if name in section.model_fields:
                values[name] = _value(written, section, name)
                break
    return values


def _value(written: Any, section: type[Section], name: str) -> Any:
    known = dict(written) if isinstance(written, dict | Section) else {}
    return known.get(name, section.model_fields[name].get_default(call_default_factory=True))
