"""The configuration sections that the model, the engines and the checkpoints own.

`launch.config` nests them into one run. Every section refuses unknown fields.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import chain, repeat
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, ValidationError, model_validator

from .. import Registry
from .grid import Shape
from .layers.base import Dims, LayerConfig, choice, filled
from .layers.blocks import BLOCKS
from .layers.blocks.base import Kinds
from .layers.ffns import FFNS
from .layers.ffns.moe import MoEConfig
from .layers.mixers import MIXERS
from .section import Fraction, NonNegative, Positive, Section


class LayerSection(Section):
    """`repeat` equal layers, each of a block, a mixer and a feed-forward layer."""

    repeat: Annotated[int, Field(ge=1, le=2**14)] = 1
    block: Annotated[SerializeAsAny[LayerConfig], choice(BLOCKS)] = Field(
        default="pre_norm", validate_default=True
    )
    mixer: Annotated[SerializeAsAny[LayerConfig], choice(MIXERS)]
    ffn: Annotated[SerializeAsAny[LayerConfig], choice(FFNS)]


class ModelConfig(Section):
    """A decoder-only language model.

    Its layers are those of `pattern`, repeated over the depth, or of `layers`, with options of
    their own. What a layer's options leave out is taken from the fields here that have the same
    name, a mixture of experts' from `moe`.
    """

    vocab_size: NonNegative = 0
    """0 takes the tokenizer's size, padded to a multiple of 64."""
    hidden_size: Positive = 256
    num_layers: Positive = 4
    num_heads: Positive = 4
    num_kv_heads: Positive = 2
    head_dim: Positive = 64
    ffn_size: Positive = 1024
    """Intermediate width of the dense feed-forward layers."""
    pattern: Annotated[tuple[str, ...], Field(min_length=1)] = ("attention/moe",)
    """`mixer/ffn` of each layer, repeated over the depth."""
    layers: tuple[LayerSection, ...] = ()
    """Every layer from the first to the last; not empty, it takes the place of `pattern` and
    decides `num_layers`."""
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    rope_fraction: Fraction = 1.0
    qk_norm: Literal[True, False, "whole"] = False
    """RMSNorm on queries and keys: true norms each head (Qwen3), `whole` all heads together
    (OLMoE)."""
    norm_eps: Annotated[float, Field(gt=0)] = 1e-6
    tie_embeddings: bool = False
    init_std: Annotated[float, Field(gt=0)] = 0.02
    moe: MoEConfig = MoEConfig()

    @model_validator(mode="before")
    @classmethod
    def _fill_layers(cls, written: Any) -> Any:
        if not isinstance(written, dict) or not isinstance(written.get("layers"), list | tuple):
            return written
        return {**written, "layers": [_filled(entry, written) for entry in written["layers"]]}

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        if self.hidden_size % 8:
            raise ValueError(
                f"hidden_size is {self.hidden_size}: grouped GEMM needs a multiple of 8 (16-byte "
                "rows in bf16)"
            )
        if self.layers:
            self._set_depth()
        else:
            for entry in self.pattern:
                _named(entry, self)
        return self

    def _set_depth(self) -> None:
        depth = sum(entry.repeat for entry in self.layers)
        if "num_layers" in self.model_fields_set and self.num_layers != depth:
            raise ValueError(
                f"num_layers is {self.num_layers}, but layers are {depth}: drop num_layers"
            )
        # The model is frozen for all who get it; it is not theirs yet.
        self.__dict__["num_layers"] = depth


PARTS = {"block": BLOCKS, "mixer": MIXERS, "ffn": FFNS}
"""A layer's parts and where their kinds are found."""


def _filled(entry: Any, model: Any) -> Any:
    """An entry of `layers` as written, its parts with what they leave out taken from `model`, as
    written too: from its section with the kind's name first."""
    if not isinstance(entry, dict):
        return entry
    parts = {name: _part(entry[name], PARTS[name], model) for name in PARTS.keys() & entry.keys()}
    return {**entry, **parts}


def _part(part: Any, registry: Registry, model: Any) -> Any:
    kind: Any = part.get("kind") if isinstance(part, dict) else part
    sources: list[tuple[Any, type[Section]]] = [(model, ModelConfig)]
    field = ModelConfig.model_fields.get(kind) if isinstance(kind, str) else None
    if field and isinstance(field.annotation, type) and issubclass(field.annotation, Section):
        own = model.get(kind) if isinstance(model, dict) else getattr(model, kind)
        sources.insert(0, (own, field.annotation))
    return filled(part, registry, *sources)


def _named(entry: str, model: ModelConfig) -> Kinds:
    """The layer that an entry of `pattern` names."""
    mixer, _, ffn = entry.partition("/")
    if mixer not in MIXERS or ffn not in FFNS:
        raise ValueError(
            f"pattern {entry!r} does not fit; write `mixer/ffn` with mixer one of "
            f"{', '.join(MIXERS)} and ffn one of {', '.join(FFNS)}"
        )
    parts = {"block": "pre_norm", "mixer": mixer, "ffn": ffn}
    try:
        section = LayerSection.model_validate(
            {name: _part(part, PARTS[name], model) for name, part in parts.items()}
        )
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    return Kinds(section.block, section.mixer, section.ffn)


@lru_cache(maxsize=256)
def layer_kinds(config: ModelConfig) -> tuple[Kinds, ...]:
    """The options of every layer, from the first to the last."""
    if config.layers:
        return tuple(chain.from_iterable(_repeated(config)))
    entries = [_named(entry, config) for entry in config.pattern]
    return tuple(entries[i % len(entries)] for i in range(config.num_layers))


@lru_cache(maxsize=256)
def stack(config: ModelConfig) -> tuple[tuple[Kinds, Dims], ...]:
    """Every layer's options, and what it may know of the model: its depth where it asks for it,
    so that all other equal layers are equal here too."""
    dims = Dims(config.hidden_size, config.num_layers, config.norm_eps, config.init_std)
    return tuple(
        (kinds, replace(dims, index=i) if BLOCKS[kinds.block.kind].by_depth(kinds) else dims)
        for i, kinds in enumerate(layer_kinds(config))
    )


def _repeated(config: ModelConfig) -> Iterator[Iterator[Kinds]]:
    for entry in config.layers:
        yield repeat(Kinds(entry.block, entry.mixer, entry.ffn), entry.repeat)


class LayoutConfig(Shape):
    """How the ranks share the work. World size is dp * tp * pp * cp; ep divides dp * cp."""

    zero: Annotated[int, Field(ge=0, le=3)] = 1


class EngineConfig(Section):
    """What runs a training step."""

    name: str = "native"
    """One of `moe/engines`, or another package's."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of weights and activations; master weights and optimizer state are always fp32."""
    compile: bool = False
    """torch.compile each block (GPU)."""
    recompute: bool = False
    """Recompute each block's activations in the backward pass."""
    deterministic: bool = False
    """Only kernels that repeat bitwise on GPUs too, so that a resume does; the CPU's always do."""
    bucket_mb: Positive = 64
    """Gradient bytes fused into one collective, in MiB."""


class OptimizerConfig(Section):
    """AdamW, or Muon for hidden matrices with AdamW for the rest."""

    name: Literal["adamw", "muon"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 3e-4
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    clip_grad: Annotated[float, Field(ge=0)] = 1.0
    """Global gradient norm limit (0: none)."""
    momentum: Fraction = 0.95
    """Muon's momentum."""
    ns_steps: Positive = 5
    """Muon's Newton-Schulz steps."""


class ScheduleConfig(Section):
    """Learning rate over the run, as a share of `optimizer.lr`."""

    name: Literal["cosine", "wsd"] = "cosine"
    warmup_steps: NonNegative = 0
    decay_fraction: Fraction = 0.2
    """Share of the run that WSD spends on its final decay."""
    min_ratio: Fraction = 0.1


class CheckpointConfig(Section):
    """Where and how often the run saves its state."""

    path: str = "checkpoints"
    """Folder; a relative one lies in the run's output folder."""
    interval: NonNegative = 100
    """Steps between saves (0: only at the end)."""
    keep: Positive = 3
    load: str = ""
    """A checkpoint to start from while `path` has none: of another run, or of a format that is read
    (see `moelstrom ckpt`). Without optimizer state in it, its weights are the start of step 0."""
    asynchronous: bool = True
    """Write to disk behind the training steps."""
    retries: NonNegative = 3
    """How often a save is tried again where the disk was full, failed or was read-only."""
    retry_wait_s: Annotated[float, Field(ge=0)] = 5.0
    """Pause before each new try; training goes on meanwhile."""
    replicas: bool = False
    """Keep the newest checkpoint in memory too, each rank's part on its own and on another node."""
