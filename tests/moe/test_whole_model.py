"""Loss, balancing losses and every gradient of the whole model against two independent oracles:
a second model in fp64 and transformers' own classes. No layout is compared with another only."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from hf_models import alone
from ranks import run_ranks
from reference_model import Shape, Sums, Weights, biases, draw
from reference_model import run as reference
from torch.nn import functional as F
from whole_steps import Data, Run, data, exported, micro, start, step

SHAPES = {
    "sigmoid, normalised": Shape(),
    "softmax, normalised": Shape(score="softmax", rope_fraction=1.0),
    "sigmoid, raw weights": Shape(normalize=False, qk_norm="whole", rope_fraction=0.75),
    "softmax, raw weights": Shape(score="softmax", normalize=False, top_k=3, shared=0),
    "over the batch": Shape(scope="batch", qk_norm=False),
    "softmax over the batch": Shape(scope="batch", score="softmax", qk_norm="whole"),
    "tied, no rotation": Shape(tied=True, rope_fraction=0.0),
}
GRADIENTS = {"clip_grad": 0.0, "betas": (0.0, 0.95)}
"""With these the first moment after one step is the gradient itself."""
TOLERANCE = 5e-5
"""Of fp32 against fp64, as a share of a tensor's largest value."""


def weights_of(shape: Shape) -> tuple[Weights, Weights]:
    """Leaves that ask for gradients, and the routers' biases."""
    return {n: w.requires_grad_() for n, w in draw(shape, 3).items()}, biases(shape, 4)


def named(*parts: Weights) -> Weights:
    return {f"model/{name}": value.detach() for part in parts for name, value in part.items()}


def expected(shape: Shape, given: Data) -> tuple[Sums, Weights, Weights]:
    """The oracle's sums, its weights with their gradients, and the biases."""
    weights, bias = weights_of(shape)
    sums = reference(shape, weights, bias, given.tokens, given.targets, given.documents)
    sums.loss.backward()
    return sums, weights, bias


def far(got: torch.Tensor, right: torch.Tensor) -> float:
    """The largest error as a share of the largest right value."""
    return float((got.double() - right.double()).abs().max() / right.abs().max().clamp_min(1e-9))


def problems(shape: Shape, run: Run, rows: int) -> list[str]:
    """What differs from the oracle in one step's report and gradients; collective."""
    given = data(5, shape)
    sums, weights, bias = expected(shape, given)
    engine = start(shape, replace(run, optimizer=GRADIENTS), named(weights, bias))
    total, targets = engine.evaluate(micro(given, rows))
    told = step(engine, given, rows)
    norm = torch.stack([w.grad.square().sum() for w in weights.values()]).sum().sqrt()
    pairs: dict[str, tuple[Any, Any]] = {
        "evaluated": (total, sums.cross_entropy),
        "evaluated targets": (targets, sums.targets),
        "loss": (told.loss, sums.cross_entropy / sums.targets),
        "aux_loss": (told.aux_loss, sums.balancing / sums.sequences),
        "grad_norm": (told.grad_norm, norm),
        "tokens": (told.tokens, sums.targets),
        "expert_load": (torch.stack(told.expert_load), sums.loads),
    }
    state = exported(engine)
    pairs |= {n: (state[f"adamw/exp_avg/{n}"], w.grad) for n, w in weights.items()}
    apart = {n: far(*(torch.as_tensor(v).detach() for v in pair)) for n, pair in pairs.items()}
    return [f"{name} by {much:.1e}" for name, much in apart.items() if not much < TOLERANCE]


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("rows", [4, 1])
def test_every_gradient_is_the_oracles(case: str, rows: int) -> None:
    with alone():
        assert problems(SHAPES[case], Run(recompute=rows == 1), rows) == []


def all_problems(cases: list[tuple[Shape, Run, int]]) -> list[list[str]]:
    return [problems(*case) for case in cases]


def test_two_ranks_give_the_oracles_gradients() -> None:
    runs = (Run(ep=2), Run(ep=1, zero=0), Run(ep=2, zero=0, recompute=True))
    names = ("sigmoid, normalised", "softmax over the batch", "tied, no rotation")
    cases = [(SHAPES[name], run, 2) for name, run in zip(names, runs, strict=True)]
    for rank in run_ranks(2, all_problems, cases):
        assert rank == [[]] * len(cases)


@pytest.mark.slow
def test_deepspeed_gives_the_oracles_gradients() -> None:
    cases = [(SHAPES["sigmoid, normalised"], Run("deepspeed", ep=2, zero=1), 1)]
    assert run_ranks(2, all_problems, cases) == [[[]]] * 2


PLAIN = {"score": "softmax", "shared": 0, "balance": 0.0, "z": 0.0, "bias_rate": 0.0}
FOREIGN = {
    "Mixtral": Shape(layers=("moe", "moe"), qk_norm=False, rope_fraction=1.0, **PLAIN),
    "Olmoe": Shape(
        layers=("moe", "moe", "moe"),
        qk_norm="whole",
        rope_fraction=1.0,
        head_dim=4,
        normalize=False,
        top_k=3,
        **PLAIN,
    ),
    "Qwen3Moe": Shape(layers=("moe", "dense", "moe"), rope_fraction=1.0, tied=True, **PLAIN),
}
ROUTER = {"Mixtral": "num_local_experts", "Olmoe": "num_experts", "Qwen3Moe": "num_experts"}
NORMS = {"q_norm": "q_norm.weight", "k_norm": "k_norm.weight"}
PROJECTIONS = {name: f"{name}_proj.weight" for name in "qkvo"}


def foreign(kind: str, shape: Shape) -> torch.nn.Module:
    """transformers' model of that shape, by its plain code."""
    dense = [i for i, ffn in enumerate(shape.layers) if ffn == "dense"]
    own: dict[str, Any] = {"norm_topk_prob": shape.normalize, "mlp_only_layers": dense}
    own |= {"moe_intermediate_size": shape.expert_size} if kind == "Qwen3Moe" else {}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn if kind == "Qwen3Moe" else shape.expert_size,
        num_hidden_layers=len(shape.layers),
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        rms_norm_eps=shape.eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.theta},
        num_experts_per_tok=shape.top_k,
        tie_word_embeddings=shape.tied,
        eos_token_id=None,
        pad_token_id=None,
        **{ROUTER[kind]: shape.experts},
        **(own if kind != "Mixtral" else {}),
    )
    config._attn_implementation = config._experts_implementation = "eager"
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def places(shape: Shape, model: torch.nn.Module) -> dict[str, Any]:
    """Where transformers keeps each canonical tensor: (parameter, index or slice)."""
    p = dict(model.named_parameters())
    found: dict[str, Any] = {
        "embedding": (p["model.embed_tokens.weight"], ...),
        "norm.weight": (p["model.norm.weight"], ...),
    }
    if not shape.tied:
        found["head"] = (p["lm_head.weight"], ...)
    for i, kind in enumerate(shape.layers):
        ours, at = f"layers.{i}", f"model.layers.{i}"
        found[f"{ours}.mixer_norm.weight"] = (p[f"{at}.input_layernorm.weight"], ...)
        found[f"{ours}.ffn_norm.weight"] = (p[f"{at}.post_attention_layernorm.weight"], ...)
        for name, theirs in {**PROJECTIONS, **(NORMS if shape.qk_norm else {})}.items():
            found[f"{ours}.mixer.{name}"] = (p[f"{at}.self_attn.{theirs}"], ...)
        if kind == "dense":
            found[f"{ours}.ffn.mlp.gate"] = (p[f"{at}.mlp.gate_proj.weight"], ...)
            found[f"{ours}.ffn.mlp.up"] = (p[f"{at}.mlp.up_proj.weight"], ...)
            found[f"{ours}.ffn.mlp.down"] = (p[f"{at}.mlp.down_proj.weight"], ...)
            continue
        found[f"{ours}.ffn.router.weight"] = (p[f"{at}.mlp.gate.weight"], ...)
        for e in range(shape.experts):
            expert = f"{ours}.ffn.experts.{e}"
            found[f"{expert}.gate_up"] = (p[f"{at}.mlp.experts.gate_up_proj"], e)
            found[f"{expert}.down"] = (p[f"{at}.mlp.experts.down_proj"], e)
    return found


def split_dense(weights: Weights) -> Weights:
    """Gate and up projections of dense layers apart, as transformers keeps them."""
    made = {}
    for name, value in weights.items():
        stem, _, leaf = name.rpartition(".")
        if leaf == "gate_up" and stem.endswith(".mlp"):
            made[f"{stem}.gate"], made[f"{stem}.up"] = value.chunk(2)
        else:
            made[name] = value
    return made


def mean_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 1).double(), targets.flatten())


@pytest.mark.parametrize("kind", FOREIGN)
def test_transformers_has_the_same_loss_and_gradients(kind: str) -> None:
    """Of ours, and of the oracle above: its own sums are held to a third party's."""
    shape = FOREIGN[kind]
    given = data(6, shape)
    given = replace(given, documents=torch.zeros_like(given.documents))
    weights = weights_of(shape)[0]
    bias = {name: torch.zeros_like(value) for name, value in biases(shape, 0).items()}
    sums = reference(shape, weights, bias, given.tokens, given.targets, given.documents)
    model = foreign(kind, shape)
    where = places(shape, model)
    with torch.no_grad():
        for name, value in split_dense(weights).items():
            parameter, index = where.pop(name)
            parameter[index] = value.float()
    assert not where and sum(w.numel() for w in weights.values()) == sum(
        p.numel() for p in model.parameters()
    )
    logits = model(given.tokens).logits
    loss = mean_loss(logits, given.targets)
    loss.backward()
    assert far(sums.logits.detach(), logits.detach()) < TOLERANCE
    assert far(sums.loss.detach(), loss.detach()) < TOLERANCE
    with alone():
        engine = start(shape, Run(optimizer=GRADIENTS), named(weights, bias))
        told = step(engine, given, 2)
        state = exported(engine)
    assert told.loss == pytest.approx(loss.item(), rel=1e-6) and told.aux_loss == 0
    ours = split_dense({n: state[f"adamw/exp_avg/{n}"] for n in weights})
    theirs = {n: p.grad[i] for n, (p, i) in places(shape, model).items()}
    assert ours.keys() == theirs.keys()
    apart = {name: far(ours[name], theirs[name]) for name in ours}
    assert {name: much for name, much in apart.items() if not much < TOLERANCE} == {}
