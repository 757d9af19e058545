"""The work of a whole model, added up from what its layers say."""

from collections import Counter
from collections.abc import Iterator

from ..config import ModelConfig, stack
from ..layers.blocks import BLOCKS
from ..layers.costs import Costs, ExpertLayer, Product, times
from ..model import head_costs
from ..spec import Spec


def layer_specs(model: ModelConfig) -> Iterator[tuple[Spec, int]]:
    """Every parameter of the layers, with the number of layers that have one like it."""
    for (kinds, dims), count in Counter(stack(model)).items():
        for spec in BLOCKS[kinds.block.kind].specs(kinds, dims).values():
            if not spec.buffer:
                yield spec, count


def layer_costs(model: ModelConfig, tokens: int, length: int, ep: int = 1) -> list[Costs]:
    """The forward pass of each layer over a rank's `tokens`, in sequences of `length`, equal layers
    as one that does the work of all."""
    return [
        times(BLOCKS[kinds.block.kind].costs(kinds, dims, tokens, length, ep), count)
        for (kinds, dims), count in Counter(stack(model)).items()
    ]


def model_costs(model: ModelConfig, tokens: int, length: int = 0, ep: int = 1) -> Costs:
    """The forward pass of the whole model, output projection included."""
    layers = layer_costs(model, tokens, length, ep)
    return sum(layers, Costs()) + head_costs(model, tokens)


def most_saved(model: ModelConfig, tokens: int) -> int:
    """Elements that the layer which leaves most keeps for the backward pass."""
    return max(
        BLOCKS[kinds.block.kind].costs(kinds, dims, tokens, 0).saved
        for kinds, dims in set(stack(model))
    )


def products(model: ModelConfig, tokens: int) -> tuple[Product, ...]:
    """The dense products of a micro-batch of `tokens`; the output projection is `head`."""
    return model_costs(model, tokens).products


def expert_layers(model: ModelConfig, tokens: int, ep: int = 1) -> tuple[ExpertLayer, ...]:
    """The experts of one of `ep` ranks with `tokens` each; of each shape one, with its layers."""
    return model_costs(model, tokens, ep=ep).experts


def gemm_shapes(model: ModelConfig, tokens: int) -> list[tuple[str, int, int, int]]:
    """(name, M, N, K) for the hardware benchmark, the products of both passes."""
    whole = [q for p in products(model, tokens) for q in (p, *p.backward())]
    return [(p.name, p.m, p.n, p.k) for p in whole]


def expert_shapes(model: ModelConfig, tokens: int, ep: int = 1) -> list[tuple[int, int, int, int]]:
    """(rows, hidden, expert width, experts) for the hardware benchmark."""
    layers = expert_layers(model, tokens, ep)
    return [(layer.rows, layer.hidden, layer.width, layer.experts) for layer in layers]
