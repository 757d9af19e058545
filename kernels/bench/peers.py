"""Who is timed: each contender as a forward call and a forward-and-backward call."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from ..grouped_mlp import grouped_mlp, grouped_mlp_torch, moe_mlp, moe_mlp_torch, sort_by_expert
from ..permute import combine_rows, gather_rows, inverse_permutation
from .cases import LayerCase
from .timing import Call

DENSE_CHAIN = (
    "dense chain: the same FLOPs as plain bf16 torch.mm (cuBLAS or hipBLASLt) with one weight "
    "matrix for all rows and no activation. Forward: [N,D]x[D,2F] and [N,F]x[F,D]. Backward: "
    "[N,D]x[D,F], [D,N]x[N,F], [N,2F]x[2F,D], [2F,N]x[N,D]. Operands are independent random "
    "tensors, outputs are allocated by each call."
)

LIGER_CONFIGS = (
    ("_fused_up_proj_swiglu_kernel", "BLOCK_N"),
    ("_fused_down_proj_kernel", "BLOCK_N"),
    ("_moe_bwd_down_proj_kernel", "BLOCK_N"),
    ("_moe_bwd_dX_expanded_kernel", "BLOCK_N"),
    ("_moe_bwd_dW1_kernel", "BLOCK_N"),
    ("_moe_bwd_dW2_kernel", "BLOCK_N"),
    ("_token_gather_weighted_sum_kernel", "BLOCK_H"),
)
"""liger-kernel's autotuned kernels, and the constant whose largest values are kept."""

LIGER_NOTE = (
    "liger-kernel tunes itself over the configs of its own set that have its largest tiles (its "
    "whole set takes minutes to compile); with --quick over one of them"
)


class Pair(NamedTuple):
    """One contender, ready to call; `output` gives what it computes, where that is the layer."""

    forward: Call
    both: Call
    output: Callable[[], torch.Tensor] | None


Maker = Callable[[LayerCase], Pair]


def differentiable(
    layer: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...], grad: torch.Tensor
) -> Pair:
    """A layer called as in training; its gradients are fresh tensors for all `inputs`."""

    def forward() -> torch.Tensor:
        return layer(*inputs)

    def both() -> object:
        return torch.autograd.grad(layer(*inputs), inputs, grad)

    return Pair(forward, both, forward)


def dense_chain(case: LayerCase) -> Pair:
    """What DENSE_CHAIN says."""
    rows, dy = case.rows.detach(), case.row_grad
    w1, w2 = case.gate_up.detach()[0], case.down.detach()[0]
    act, d_hidden = (
        torch.randn(len(rows), width, device=rows.device, dtype=rows.dtype)
        for width in (case.width.ffn, 2 * case.width.ffn)
    )

    def forward() -> object:
        return rows @ w1.T, act @ w2.T

    def both() -> object:
        forward()
        return dy @ w2, dy.T @ act, d_hidden @ w1, d_hidden.T @ rows

    return Pair(forward, both, None)


def dense_mlp(case: LayerCase) -> Pair:
    """A dense SwiGLU layer of the same FLOPs through autograd, one weight matrix for all rows."""
    leaves = (case.gate_up[0], case.down[0])
    w1, w2 = (weight.detach().clone().requires_grad_() for weight in leaves)

    def run(x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, down)

    pair = differentiable(run, (case.rows, w1, w2), case.row_grad)
    # Its weights are not the experts', so its output is no experts' output.
    return pair._replace(output=None)


def distinct_bmm(case: LayerCase) -> Pair:
    """The dense chain's products as torch.bmm over E equal groups with their own weights."""
    width = case.width

    def groups(t: torch.Tensor) -> torch.Tensor:
        return t.view(width.experts, -1, t.shape[-1])

    rows, dy = groups(case.rows.detach()), groups(case.row_grad)
    w1, w2 = case.gate_up.detach(), case.down.detach()
    act, d_hidden = (
        torch.randn(*rows.shape[:2], w, device=rows.device, dtype=rows.dtype)
        for w in (width.ffn, 2 * width.ffn)
    )

    def forward() -> object:
        return rows @ w1.mT, act @ w2.mT

    def both() -> object:
        forward()
        return dy @ w2, dy.mT @ act, d_hidden @ w1, d_hidden.mT @ rows

    return Pair(forward, both, None)


def _experts(layer: Callable[..., torch.Tensor]) -> Maker:
    def make(case: LayerCase) -> Pair:
        def run(x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
            return layer(x, gate_up, down, case.offsets)

        return differentiable(run, (case.rows, case.gate_up, case.down), case.row_grad)

    return make


def _routed(experts: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """torch's own `sort_by_expert`, without waiting for the host."""
    ranked, order = experts.flatten().sort(stable=True)
    ids = torch.arange(count, device=experts.device)
    offsets = torch.searchsorted(ranked, ids, right=True).to(torch.int32)
    return order, inverse_permutation(order), offsets


def _our_block(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    weights: torch.Tensor,
    experts: torch.Tensor,
) -> torch.Tensor:
    return moe_mlp(x, weights, gate_up, down, *sort_by_expert(experts, len(gate_up)))


def _our_parts(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    weights: torch.Tensor,
    experts: torch.Tensor,
) -> torch.Tensor:
    """What expert parallelism runs around its exchange."""
    order, inverse, offsets = sort_by_expert(experts, len(gate_up))
    rows = gather_rows(x, order, inverse, experts.shape[1])
    return combine_rows(grouped_mlp(rows, gate_up, down, offsets), order, inverse, weights)


def _torch_block(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    weights: torch.Tensor,
    experts: torch.Tensor,
) -> torch.Tensor:
    return moe_mlp_torch(x, weights, gate_up, down, *_routed(experts, len(gate_up)))


def _block(layer: Callable[..., torch.Tensor]) -> Maker:
    def make(case: LayerCase) -> Pair:
        def run(*inputs: torch.Tensor) -> torch.Tensor:
            return layer(*inputs, case.experts)

        return differentiable(run, (case.x, case.gate_up, case.down, case.weights), case.grad)

    return make


def _compiled(layer: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return torch.compile(layer, fullgraph=True, dynamic=False)


def liger(case: LayerCase) -> Pair:
    """liger-kernel's fused MoE."""
    from liger_kernel.ops.fused_moe import LigerFusedMoEFunction

    experts = case.experts.to(torch.int32)

    def run(
        x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        return LigerFusedMoEFunction.apply(x, gate_up, down, experts, weights)

    return differentiable(run, (case.x, case.gate_up, case.down, case.weights), case.grad)


def narrow_liger(single: bool) -> None:
    """Keep few of liger-kernel's autotune configs (LIGER_NOTE)."""
    kernels = importlib.import_module("liger_kernel.ops.fused_moe_kernels")
    for name, constant in LIGER_CONFIGS:
        tuner = getattr(kernels, name)
        largest = max(c.kwargs[constant] for c in tuner.configs)
        kept = [c for c in tuner.configs if c.kwargs[constant] == largest]
        kept = [c for c in kept if c.kwargs.get("BLOCK_M", 128) == 128]
        kept = [c for c in kept if 3 <= c.num_stages <= 4] or kept
        best = [c for c in kept if c.num_warps == 8] or kept
        tuner.configs = best[-1:] if single else kept


def _transformers(implementation: str) -> Maker:
    def make(case: LayerCase) -> Pair:
        module = _transformers_experts(case, implementation)
        weights = case.weights.detach().to(case.x.dtype).requires_grad_()

        def run(
            x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, weights: torch.Tensor
        ) -> torch.Tensor:
            return module(x, case.experts, weights)

        inputs = (case.x, module.gate_up_proj, module.down_proj, weights)
        return differentiable(run, inputs, case.grad)

    return make


def _transformers_experts(case: LayerCase, implementation: str) -> Any:
    folder = "transformers.models.qwen3_moe"
    config = importlib.import_module(f"{folder}.configuration_qwen3_moe").Qwen3MoeConfig(
        hidden_size=case.width.hidden,
        moe_intermediate_size=case.width.ffn,
        num_experts=case.width.experts,
        num_experts_per_tok=case.width.top_k,
    )
    config._experts_implementation = implementation
    with torch.device("meta"):
        module = importlib.import_module(f"{folder}.modeling_qwen3_moe").Qwen3MoeExperts(config)
    module.gate_up_proj = nn.Parameter(case.gate_up.detach())
    module.down_proj = nn.Parameter(case.down.detach())
    return module


OURS, DENSE = "moelstrom", "dense chain"

EXPERTS: dict[str, Maker] = {
    OURS: _experts(grouped_mlp),
    DENSE: dense_chain,
    "dense SwiGLU layer, eager": dense_mlp,
    "torch bmm, distinct weights": distinct_bmm,
    "torch grouped_mm, eager": _experts(grouped_mlp_torch),
    "torch grouped_mm, compiled": _experts(_compiled(grouped_mlp_torch)),
}
"""Sorted rows in, sorted rows out."""

BLOCKS: dict[str, Maker] = {
    OURS: _block(_our_block),
    "moelstrom, by parts": _block(_our_parts),
    DENSE: dense_chain,
    "torch grouped_mm, eager": _block(_torch_block),
    "torch grouped_mm, compiled": _block(_compiled(_torch_block)),
    "liger-kernel fused MoE": liger,
    "transformers, grouped_mm": _transformers("grouped_mm"),
    "transformers, eager": _transformers("eager"),
}
"""Tokens in, tokens out, experts and routing weights given (sorting them is part of the call)."""

SCOPES = {"experts": EXPERTS, "block": BLOCKS}
SLOW = ("transformers, eager",)
"""Left out by --quick."""
EQUAL_GROUPS = ("torch bmm, distinct weights",)
"""Only at balanced loads."""
