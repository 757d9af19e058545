"""Proposals for a budget: every shape of the grid, its best micro-batch and layout, ranked."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ... import UserError
from ..config import LayoutConfig, ModelConfig, MoEConfig, OptimizerConfig
from .communication import Communication
from .curves import Curves
from .memory import Memory, estimate_memory
from .proposal import Proposal, Question
from .rules import View, examine
from .shapes import shapes
from .step import predict_step, token_seconds

OPTIMIZER = OptimizerConfig()

ZAYA1 = ModelConfig(
    hidden_size=2048,
    num_layers=40,
    num_heads=8,
    num_kv_heads=2,
    head_dim=128,
    rope_fraction=0.5,
    qk_norm=True,
    tie_embeddings=True,
    moe=MoEConfig(num_experts=16, top_k=1, expert_size=2048, normalize_top_k=False),
)
"""ZAYA1-base (arXiv 2511.17127) in the layers of this repository: attention without its
convolutions, a linear router."""
KNOWN = {"zaya1": ZAYA1}


def advise(
    question: Question,
    curves: Curves,
    communication: Communication,
    compare: Sequence[str] = (),
    limit: int = 5,
) -> list[Proposal]:
    """The `limit` best proposals, then the known models of `compare`, each with its findings.

    UserError where no shape meets the budget, or none fits the memory.
    """
    models = list(shapes(question.budget, question.vocab_size, question.fixed))
    if not models:
        raise UserError(_no_shape(question))
    found = [p for m in models if (p := _best(describe(m), m, question, curves, communication))]
    if not found:
        raise UserError(
            f"gpus: {question.ranks} devices of {curves.capacity / 2**30:.0f} GiB hold none of "
            f"{len(models)} shapes for this budget; give more devices, or a smaller budget"
        )
    for name in compare:
        found.append(_known(name, question, curves, communication))
    found = _score(found)
    named = [p for p in found if p.name in compare]
    ranked = sorted((p for p in found if p.name not in compare), key=lambda p: -p.score)
    chosen = _apart(ranked, limit) + named
    return [replace(p, findings=tuple(examine(View(p, found, question, curves)))) for p in chosen]


def describe(model: ModelConfig) -> str:
    """A shape in a few letters."""
    moe = model.moe
    return (
        f"d{model.hidden_size} L{model.num_layers} E{moe.num_experts} k{moe.top_k} "
        f"f{moe.expert_size}"
    )


def _no_shape(question: Question) -> str:
    b = question.budget
    return (
        f"params: no shape has about {b.total:.3g} parameters with {b.active:.3g} active under "
        "what is fixed; give --active another value, or fix less"
    )


def _known(name: str, question: Question, curves: Curves, communication: Communication) -> Proposal:
    if name not in KNOWN:
        raise UserError(f"--compare {name}: not known; one of {', '.join(KNOWN)}")
    model = KNOWN[name].model_copy(update={"vocab_size": question.vocab_size})
    found = _best(name, model, question, curves, communication)
    if found is None:
        raise UserError(
            f"--compare {name}: does not fit {question.ranks} devices of "
            f"{curves.capacity / 2**30:.0f} GiB; give more devices"
        )
    return found


def _best(
    name: str,
    model: ModelConfig,
    question: Question,
    curves: Curves,
    communication: Communication,
) -> Proposal | None:
    """The fastest layout and micro-batch that fit; None where none does."""
    token_s = token_seconds(model, question.context, curves)
    found = [
        Proposal(
            name=name,
            model=model,
            layout=layout,
            micro_batch=size,
            recompute=again,
            step=predict_step(model, layout, size, again, question.training, curves, communication),
            memory=memory,
            token_s=token_s,
        )
        for layout, size, again, memory in _settings(model, question, curves)
    ]
    return min(found, key=lambda p: p.step.total, default=None)


def _settings(
    model: ModelConfig, question: Question, curves: Curves
) -> Iterator[tuple[LayoutConfig, int, bool, Memory]]:
    """Layouts by the whole-node rule, with and without recomputation the two largest micro-batches
    that fit."""
    for ep in sorted({1, question.per_node} & _divisors(model.moe.num_experts, question.ranks)):
        layout = LayoutConfig(dp=question.ranks, ep=ep)
        for again in (False, True):
            engine = question.engine.model_copy(update={"recompute": again})
            fitting = []
            for size in _micro_batches(question):
                tokens = size * question.training.seq_len
                memory = estimate_memory(model, layout, engine, OPTIMIZER, tokens)
                if memory.total <= question.memory_share * curves.capacity:
                    fitting.append((layout, size, again, memory))
            yield from fitting[-2:]


def _divisors(experts: int, ranks: int) -> set[int]:
    both = math.gcd(experts, ranks)
    return {n for n in range(1, both + 1) if both % n == 0}


def _micro_batches(question: Question) -> list[int]:
    """Powers of two, and whole shares of the batch."""
    sequences = question.training.batch_tokens // question.training.seq_len
    each = sequences // question.ranks
    return [2**i for i in range(each.bit_length()) if each % 2**i == 0]


def _score(found: list[Proposal]) -> list[Proposal]:
    """Geometric mean of the shares of the fastest training and of the quickest token."""
    fast, quick = max(p.step.tokens_per_s for p in found), min(p.token_s for p in found)
    return [
        replace(p, score=math.sqrt(p.step.tokens_per_s / fast * quick / p.token_s)) for p in found
    ]


def _apart(ranked: list[Proposal], limit: int) -> list[Proposal]:
    """The best of each (experts, top-k), in order."""
    firsts: dict[tuple[int, int], Proposal] = {}
    for p in ranked:
        firsts.setdefault((p.model.moe.num_experts, p.model.moe.top_k), p)
    return list(firsts.values())[:limit]
