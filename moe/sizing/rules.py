"""The rules that a shape is held to, each with its source; a finding says what it is in figures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .curves import Curves
from .proposal import Finding, Proposal, Question
from .shapes import TILE, without_tables
from .work import expert_layers, products

AMD = "arXiv 2511.17127"


@dataclass(frozen=True)
class View:
    """What a rule looks at: a proposal among its `rivals` (itself included)."""

    proposal: Proposal
    rivals: Sequence[Proposal]
    question: Question
    curves: Curves


def multiples(view: View) -> Finding:
    """Widths that tiles divide."""
    m = view.proposal.model
    widths = {
        "hidden size": m.hidden_size,
        "head dim": m.head_dim,
        "expert width": m.moe.expert_size,
        "vocabulary": m.vocab_size,
    }
    odd = [f"{name} {width}" for name, width in widths.items() if width % TILE]
    text = ", ".join(f"{name} {width}" for name, width in widths.items())
    said = f"{', '.join(odd)}: not a multiple" if odd else text
    return Finding(f"widths are multiples of {TILE}", AMD, not odd, said)


def gemm_size(view: View) -> Finding:
    """Products with work enough to run near the peak, counted by their share of the FLOPs."""
    p = view.proposal
    tokens = p.micro_batch * view.question.training.seq_len
    work = [(q.name, q.flops, q.count) for q in products(p.model, tokens)]
    for layer in expert_layers(p.model, tokens, p.layout.ep):
        work += [
            ("experts gate_up", layer.flops * 2 / 3, layer.count),
            ("experts down", layer.flops / 3, layer.count),
        ]
    enough = view.curves.near_peak_flops
    total = sum(flops * count for _, flops, count in work)
    large = sum(flops * count for _, flops, count in work if flops >= enough)
    sizes = ", ".join(f"{name} {flops / 1e9:,.0f}" for name, flops, _ in work)
    return Finding(
        f"a GEMM has about {enough / 1e9:,.0f} GFLOP or more",
        f"{AMD}: about 200; the threshold here is {_origin(view.curves)}",
        large >= 0.5 * total,
        f"{large / total:.0%} of the forward FLOPs are in such products (GFLOP: {sizes})",
    )


def _origin(curves: Curves) -> str:
    return "measured (0.9 of the peak)" if curves.measured else "the paper's"


def whole_node(view: View) -> Finding:
    """Expert parallelism over a whole node, or none: on xGMI a part of a node has only the
    bandwidth of its own links."""
    ep, node = view.proposal.layout.ep, view.question.per_node
    kept = ep == 1 or ep % node == 0
    idle = "" if kept else ": the links to the other GPUs lie idle"
    text = f"ep {ep} on nodes of {node}{idle}"
    return Finding("a parallel degree spans the node or is not used", AMD, kept, text)


def moe_width(view: View) -> Finding:
    """Training throughput and inference latency weighed together."""
    p = view.proposal
    fast = max(r.step.tokens_per_s for r in view.rivals)
    quick = min(r.token_s for r in view.rivals)
    kept = p.score >= 0.97 * max(r.score for r in view.rivals)
    width, hidden = p.model.moe.expert_size, p.model.hidden_size
    return Finding(
        "MoE width serves training throughput and inference latency together",
        f"{AMD}; our weighing: the geometric mean of both shares of the best",
        kept,
        f"width {width} ({width / hidden:.2g} x hidden): {p.step.tokens_per_s / fast:.0%} of the "
        f"fastest training, {quick / p.token_s:.0%} of the quickest token",
    )


def attention_length(view: View) -> Finding:
    """Whether attention is bound by compute at the training length."""
    length = view.question.training.seq_len
    share = view.curves.attend(length) / max(rate for _, rate in view.curves.attention)
    return Finding(
        "attention is bound by compute",
        f"{AMD}: from 4k to 16k tokens on",
        share >= 0.8,
        f"at {length:,} tokens {share:.0%} of attention's best rate",
    )


def micro_batch(view: View) -> Finding:
    """The fastest micro-batch that fits the memory."""
    p, capacity = view.proposal, view.curves.capacity
    kept = p.memory.total <= view.question.memory_share * capacity
    text = (
        f"{p.micro_batch} x {view.question.training.seq_len:,} tokens"
        f"{', activations recomputed' if p.recompute else ''}: {p.memory.total / 2**30:,.0f} of "
        f"{capacity / 2**30:,.0f} GiB"
    )
    return Finding("the micro-batch is the fastest that fits", "our rule", kept, text)


def budget(view: View) -> Finding:
    """The parameters asked for."""
    found, asked = without_tables(view.proposal.model), view.question.budget
    near = abs(found.total / asked.total - 1) <= 0.1 and abs(found.active / asked.active - 1) <= 0.1
    text = (
        f"{found.total / 1e9:.3g}B in all, {found.active / 1e9:.3g}B active, without the tables "
        f"(asked: {asked.total / 1e9:.3g}B, {asked.active / 1e9:.3g}B)"
    )
    return Finding("parameters meet the budget", view.question.budget_rule, near, text)


def fusion(view: View) -> Finding:
    """The gradient bucket."""
    text = f"{view.question.engine.bucket_mb} MiB: {view.question.bucket_rule}"
    kept = not view.question.bucket_rule.startswith("the default")
    if not kept:
        text += "; no measurement backs it"
    return Finding("fusion buffers end where bandwidth saturates", AMD, kept, text)


RULES: tuple[Callable[[View], Finding], ...] = (
    budget,
    multiples,
    gemm_size,
    moe_width,
    micro_batch,
    whole_node,
    attention_length,
    fusion,
)


def examine(view: View) -> list[Finding]:
    """Every rule's finding."""
    return [rule(view) for rule in RULES]
