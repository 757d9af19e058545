"""Each Hugging Face tensor as a range of one logical tensor of ours; used in both directions."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ...config import ModelConfig, layer_kinds
from ...model import model_specs
from .architectures import Architecture

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """A part of `shape` of the tensor `key`: the elements from `offset` on of the flattened logical
    tensor `name`, whose whole shape is `whole`.

    The part is all of the tensor, or one expert of those that it stacks: then `stored` is the
    tensor's shape, and the part begins at its element `start`.
    """

    key: str
    shape: Shape
    name: str
    whole: Shape
    offset: int = 0
    start: int = 0
    stored: Shape = ()

    @property
    def key_shape(self) -> Shape:
        """Shape of the whole tensor `key`."""
        return self.stored or self.shape

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
STACKED = "mlp.experts.gate_up_proj"
"""How the name of all gate and up projections of a layer ends, where they are one tensor."""


def entries(model: ModelConfig, found: Architecture, stacked: bool = False) -> list[Entry]:
    """All tensors of the class, in the order of the layers; together every element of every
    parameter once. The halves of one logical tensor follow each other. `stacked`: the experts of a
    layer are one tensor, as transformers 5 has them in memory and writes them if asked to."""
    table = (model.vocab_size, model.hidden_size)
    result = [_whole(EMBEDDING, "embedding", table)]
    moe = _stacks if stacked else _experts
    for i, layer in enumerate(layer_kinds(model)):
        result += _mixer(model, f"model.layers.{i}", f"layers.{i}")
        make = moe if layer.ffn.kind == "moe" else _dense
        result += make(model, found, f"model.layers.{i}", f"layers.{i}.ffn")
    result.append(_whole("model.norm.weight", "norm.weight", (model.hidden_size,)))
    if not model.tie_embeddings:
        result.append(_whole(HEAD, "head", table))
    return result


def buffers(model: ModelConfig) -> dict[str, Shape]:
    """Logical tensors of ours that no class has: the routers' balancing biases, by name."""
    return {f"model/{name}": s.shape for name, s in model_specs(model).items() if s.buffer}


def _whole(key: str, name: str, shape: Shape) -> Entry:
    return Entry(key, shape, f"model/{name}", shape)


def _mixer(model: ModelConfig, theirs: str, ours: str) -> Iterator[Entry]:
    width, d = model.hidden_size, model.head_dim
    q, kv = model.num_heads * d, model.num_kv_heads * d
    yield _whole(f"{theirs}.input_layernorm.weight", f"{ours}.mixer_norm.weight", (width,))
    for leaf, shape in (
        ("q", (q, width)),
        ("k", (kv, width)),
        ("v", (kv, width)),
        ("o", (width, q)),
    ):
        yield _whole(f"{theirs}.self_attn.{leaf}_proj.weight", f"{ours}.mixer.{leaf}", shape)
    if model.qk_norm:
        for leaf, rows in (("q_norm", q), ("k_norm", kv)):
            size = rows if model.qk_norm == "whole" else d
            yield _whole(f"{theirs}.self_attn.{leaf}.weight", f"{ours}.mixer.{leaf}", (size,))
    yield _whole(f"{theirs}.post_attention_layernorm.weight", f"{ours}.ffn_norm.weight", (width,))


def _dense(model: ModelConfig, found: Architecture, theirs: str, ours: str) -> Iterator[Entry]:
    yield from _swiglu(model, found, f"{theirs}.mlp", f"{ours}.mlp", model.ffn_size)


def _experts(model: ModelConfig, found: Architecture, theirs: str, ours: str) -> Iterator[Entry]:
    moe, block = model.moe, f"{theirs}.{found.block}"
    shape = (moe.num_experts, model.hidden_size)
    yield _whole(f"{block}.gate.weight", f"{ours}.router.weight", shape)
    for e in range(moe.num_experts):
        names = f"{block}.experts.{e}", f"{ours}.experts.{e}"
        yield from _swiglu(model, found, *names, moe.expert_size)


def _stacks(model: ModelConfig, found: Architecture, theirs: str, ours: str) -> Iterator[Entry]:
    """Gate and up are halves of each expert's matrix, as in ours."""
    count, size, width = model.moe.num_experts, model.moe.expert_size, model.hidden_size
    yield _whole(f"{theirs}.mlp.gate.weight", f"{ours}.router.weight", (count, width))
    for e in range(count):
        for leaf, shape in (("gate_up", (2 * size, width)), ("down", (width, size))):
            key, name = f"{theirs}.mlp.experts.{leaf}_proj", f"model/{ours}.experts.{e}.{leaf}"
            start = e * math.prod(shape)
            yield Entry(key, shape, name, shape, start=start, stored=(count, *shape))


def _swiglu(
    model: ModelConfig, found: Architecture, theirs: str, ours: str, size: int
) -> Iterator[Entry]:
    """Gate and up projection are the two halves of our `gate_up`."""
    width = model.hidden_size
    half, both = (size, width), (2 * size, width)
    name = f"model/{ours}.gate_up"
    yield Entry(f"{theirs}.{found.gate}.weight", half, name, both)
    yield Entry(f"{theirs}.{found.up}.weight", half, name, both, size * width)
    yield _whole(f"{theirs}.{found.down}.weight", f"{ours}.down", (width, size))
