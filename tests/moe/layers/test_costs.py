"""What the layers say of their work, for one small model by hand."""

from moelstrom.moe.config import ModelConfig
from moelstrom.moe.layers.costs import Costs, ExpertLayer, Product, merge
from moelstrom.moe.sizing.work import layer_costs, most_saved

TOKENS, LENGTH, D, F, E, K, WIDTH, SHARED = 10, 5, 16, 24, 4, 2, 8, 32
Q, KV = 4 * 8, 2 * 8
MODEL = ModelConfig.model_validate(
    {
        "vocab_size": 64,
        "hidden_size": D,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "ffn_size": F,
        "pattern": ["attention/dense", "attention/moe"],
        "moe": {"num_experts": E, "top_k": K, "expert_size": WIDTH, "shared_expert_size": SHARED},
    }
)
ATTENTION = {("q", TOKENS, Q, D, 1), ("kv", TOKENS, KV, D, 2), ("o", TOKENS, D, Q, 1)}


def shapes(costs: Costs) -> set[tuple[str, int, int, int, int]]:
    return {(p.name, p.m, p.n, p.k, p.count) for p in costs.products}


def test_a_dense_layer() -> None:
    dense = layer_costs(MODEL, TOKENS, LENGTH)[0]
    assert shapes(dense) == ATTENTION | {
        ("ffn gate_up", TOKENS, 2 * F, D, 1),
        ("ffn down", TOKENS, D, F, 1),
    }
    # Scores and values: 2 products of 2 FLOPs, of which causality leaves half.
    assert dense.mixing_flops == 2 * 2 * TOKENS * LENGTH * Q / 2
    # Keys and values of every token before.
    assert dense.state == 2 * KV * LENGTH and dense.experts == ()


def test_an_expert_layer() -> None:
    for ep in (1, 2):
        mixture = layer_costs(MODEL, TOKENS, LENGTH, ep)[1]
        assert mixture.experts == (ExpertLayer(TOKENS * K, D, WIDTH, E // ep),)
        assert mixture.experts[0].flops == 2 * 3 * TOKENS * K * D * WIDTH
    assert shapes(mixture) == ATTENTION | {
        ("router", TOKENS, E, D, 1),
        ("shared gate_up", TOKENS, 2 * SHARED, D, 1),
        ("shared down", TOKENS, D, SHARED, 1),
    }


def test_what_moves_and_what_stays() -> None:
    """The layers differ by their feed-forward parts alone."""
    dense, mixture = layer_costs(MODEL, TOKENS, LENGTH)
    router, rows = 4 * TOKENS * D, TOKENS * K
    # Tokens read and sums written once, copies of them k times, each way.
    experts = 2 * (K + 1) * TOKENS * D
    assert mixture.moved - dense.moved == router + experts - 3 * TOKENS * F
    kept = rows * (4 * WIDTH + 2 * D) + 4 * TOKENS * SHARED
    assert mixture.saved - dense.saved == kept - 4 * TOKENS * F
    assert most_saved(MODEL, TOKENS) == max(dense.saved, mixture.saved)
    twice = layer_costs(MODEL, 2 * TOKENS, LENGTH)[0]
    assert (twice.moved, twice.saved) == (2 * dense.moved, 2 * dense.saved)


def test_attention_by_hand() -> None:
    """Queries and keys pass RoPE and norms; queries, keys, values and the output stay."""
    other = MODEL.model_copy(update={"num_heads": 6, "num_kv_heads": 3})
    one, more = layer_costs(MODEL, TOKENS, LENGTH)[0], layer_costs(other, TOKENS, LENGTH)[0]
    assert more.moved - one.moved == 4 * TOKENS * (16 + 8)
    assert more.saved - one.saved == TOKENS * (2 * 16 + 2 * 8)


def test_equal_products_are_one() -> None:
    a, b = Product("a", 1, 2, 3), Product("b", 1, 2, 3)
    assert merge((a, b, a)) == (Product("a", 1, 2, 3, 2), b)
    both = Costs((a,), moved=1, saved=2, state=3) + Costs((a, b), mixing_flops=4.0, moved=10)
    assert both == Costs((Product("a", 1, 2, 3, 2), b), (), 4.0, 11, 2, 3)
    assert a.flops == 12 and a.backward()[0].flops == 12
