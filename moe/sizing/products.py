"""The matrix products of one forward pass, from a model's configuration."""

from dataclasses import dataclass

from ..config import ModelConfig
from ..model import layer_kinds


@dataclass(frozen=True)
class Product:
    """[m, k] x [n, k]^T, `count` times in a forward pass."""

    name: str
    m: int
    n: int
    k: int
    count: int

    @property
    def flops(self) -> float:
        """Of one."""
        return 2.0 * self.m * self.n * self.k

    def backward(self) -> tuple["Product", "Product"]:
        """The products of the input's and of the weight's gradient."""
        return (
            Product(f"{self.name}, input gradient", self.m, self.k, self.n, self.count),
            Product(f"{self.name}, weight gradient", self.n, self.k, self.m, self.count),
        )


@dataclass(frozen=True)
class ExpertLayer:
    """The routed experts of a rank, `count` layers: `rows` tokens' copies in all, spread evenly
    over `experts` SwiGLU MLPs of `width`."""

    rows: int
    hidden: int
    width: int
    experts: int
    count: int

    @property
    def flops(self) -> float:
        """Of one layer's forward pass."""
        return 6.0 * self.rows * self.hidden * self.width


def products(model: ModelConfig, tokens: int) -> list[Product]:
    """The dense products of a micro-batch of `tokens`; the output projection is `head`."""
    d, width = model.hidden_size, model.head_dim
    q, kv = model.num_heads * width, model.num_kv_heads * width
    kinds = [ffn for _, ffn in layer_kinds(model)]
    layers, moe = len(kinds), kinds.count("moe")
    found = [
        Product("q", tokens, q, d, layers),
        Product("kv", tokens, kv, d, 2 * layers),
        Product("o", tokens, d, q, layers),
    ]
    if moe:
        found.append(Product("router", tokens, model.moe.num_experts, d, moe))
    for name, ffn, count in (
        ("ffn", model.ffn_size, layers - moe),
        ("shared", model.moe.shared_expert_size, moe),
    ):
        if ffn and count:
            found.append(Product(f"{name} gate_up", tokens, 2 * ffn, d, count))
            found.append(Product(f"{name} down", tokens, d, ffn, count))
    return [*found, Product("head", tokens, model.vocab_size, d, 1)]


def expert_layer(model: ModelConfig, tokens: int, ep: int = 1) -> ExpertLayer | None:
    """The experts of one of `ep` ranks with `tokens` each; None without a MoE layer."""
    count = sum(ffn == "moe" for _, ffn in layer_kinds(model))
    moe = model.moe
    if not count:
        return None
    rows, experts = tokens * moe.top_k, moe.num_experts // ep
    return ExpertLayer(rows, model.hidden_size, moe.expert_size, experts, count)


def gemm_shapes(model: ModelConfig, tokens: int) -> list[tuple[str, int, int, int]]:
    """(name, M, N, K) for the hardware benchmark, the products of both passes."""
    whole = [q for p in products(model, tokens) for q in (p, *p.backward())]
    return [(p.name, p.m, p.n, p.k) for p in whole]


def expert_shapes(model: ModelConfig, tokens: int, ep: int = 1) -> list[tuple[int, int, int, int]]:
    """(rows, hidden, expert width, experts) for the hardware benchmark."""
    layer = expert_layer(model, tokens, ep)
    return [(layer.rows, layer.hidden, layer.width, layer.experts)] if layer else []
