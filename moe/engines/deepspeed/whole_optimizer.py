"""The optimizer of unsharded parameters: what DeepSpeed calls at ZeRO 0."""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ...config import OptimizerConfig
from ...grid import Team
from ...optim.muon import Muon
from ...optim.rules import STATE
from ...stages import waiting
from .gate import Gate


class WholeOptimizer(torch.optim.Optimizer):
    """AdamW and Muon behind one `step` that clips by the global gradient norm first.

    Each group has `params`, `expert` and `weight_decay`, the group's `rule` and the `shapes`
    (rows, columns) of the matrices in its parameters. `ep` holds every expert once. After a step
    `norm` is the norm before clipping. `gate` is
    asked before weights and state change.
    """

    def __init__(
        self, groups: list[dict[str, Any]], config: OptimizerConfig, ep: Team, gate: Gate
    ) -> None:
        super().__init__(groups, {"lr": 0.0})
        self._config, self._ep, self._gate = config, ep, gate
        self._inner: list[tuple[torch.optim.Optimizer, dict[str, Any]]] = []
        self.norm = torch.zeros(())

    def bind(self) -> None:
        """Start updating the tensors that the groups hold now, with zero state.

        DeepSpeed puts fp32 copies of bf16 parameters there, and takes one step at once to make
        the optimizer allocate its state: steps before `bind` do nothing.
        """
        self.state.clear()
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {key: torch.zeros_like(p) for key in STATE[group["rule"]]}
            make = self._muon if group["rule"] == "muon" else self._adamw
            self._inner.append((make(group), group))

    def _adamw(self, group: dict[str, Any]) -> torch.optim.Optimizer:
        c = self._config
        inner = torch.optim.AdamW(
            group["params"], c.lr, c.betas, c.eps, group["weight_decay"], fused=True
        )
        for p in group["params"]:
            self.state[p]["step"] = torch.zeros((), device=p.device)
            inner.state[p] = self.state[p]
        return inner

    def _muon(self, group: dict[str, Any]) -> torch.optim.Optimizer:
        c = self._config
        stacks = [
            nn.Parameter(p.detach().view(-1, *shape), requires_grad=False)
            for p, shape in zip(group["params"], group["shapes"], strict=True)
        ]
        inner = Muon(stacks, c.lr, c.momentum, c.ns_steps, group["weight_decay"])
        for p, stack in zip(group["params"], stacks, strict=True):
            inner.state[stack] = {"momentum": self.state[p]["momentum"].view_as(stack)}
        return inner

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Clip, then update every parameter; collective over the expert-parallel group."""
        if not self._inner:
            return
        self._clip()
        if self._gate.refuses():
            return
        for inner, group in self._inner:
            mine = inner.param_groups[0]
            mine["lr"] = group["lr"]
            for p, view in zip(group["params"], mine["params"], strict=True):
                view.grad = p.grad.view_as(view)
            inner.step()

    def _clip(self) -> None:
        """DeepSpeed's own clipping at ZeRO 0 leaves experts out of the norm, or averages the norms
        of ranks that hold different ones."""
        dense = self._square(expert=False)
        experts = self._square(expert=True)
        if self._ep.size > 1:
            with waiting():
                dist.all_reduce(experts, group=self._ep.group)
        self.norm = (dense + experts).sqrt()
        limit = self._config.clip_grad
        if limit:
            scale = (limit / (self.norm + 1e-6)).clamp(max=1.0).float()
            torch._foreach_mul_([g for _, g in self._gradients()], scale)

    def _square(self, expert: bool) -> torch.Tensor:
        total = torch.zeros(
            (), dtype=torch.float64, device=self.param_groups[0]["params"][0].device
        )
        for group, gradient in self._gradients():
            if group["expert"] == expert:
                total += gradient.double().square().sum()
        return total

    def _gradients(self) -> list[tuple[dict[str, Any], torch.Tensor]]:
        return [(group, p.grad) for group in self.param_groups for p in group["params"]]
