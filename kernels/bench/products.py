"""The six products of the grouped expert MLP, each alone: the launch, its fp32 reference, and the
dense product of the same FLOPs."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch.nn import functional as F

from ..grouped_mlp.launch import GroupedLayer
from . import cases
from .accuracy import Check, compare, normal

Config = dict[str, Any]
WEIGHTS = ("gate_up_gradient", "down_gradient")
_WIDE = ("gate_up", "input_gradient", "gate_up_gradient")
"""Products with all 2F rows of gate and up; the others have F."""


@dataclass(frozen=True)
class Operands:
    """What the products read, bf16: x and dy [N, D], gate_up [E, 2F, D], down [E, D, F], hidden and
    dhidden [N, 2F], act [N, F], offsets [E] int32."""

    x: torch.Tensor
    dy: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    hidden: torch.Tensor
    dhidden: torch.Tensor
    act: torch.Tensor
    offsets: torch.Tensor

    def sides(self, operator: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Both factors of a weight gradient, by rows: [N, 2F] and [N, D], or [N, D] and [N, F]."""
        return (self.dhidden, self.x) if operator == "gate_up_gradient" else (self.dy, self.act)

    def weight(self, operator: str) -> torch.Tensor:
        """The weights that a weight gradient belongs to: [E, 2F, D] or [E, D, F]."""
        return self.gate_up if operator == "gate_up_gradient" else self.down


def of_case(case: cases.LayerCase) -> Operands:
    """Operands at a case's shape and load."""
    x, gate_up, down = (t.detach() for t in (case.rows, case.gate_up, case.down))
    return _with_activations(x, case.row_grad, gate_up, down, case.offsets)


def draw(counts: list[int], hidden: int, ffn: int) -> Operands:
    """Operands with these rows per expert."""
    rows, experts = sum(counts), len(counts)
    return _with_activations(
        normal(rows, hidden),
        normal(rows, hidden),
        normal(experts, 2 * ffn, hidden, scale=hidden**-0.5),
        normal(experts, hidden, ffn, scale=ffn**-0.5),
        torch.tensor(counts).cumsum(0).to(cases.DEVICE, torch.int32),
    )


def _with_activations(
    x: torch.Tensor,
    dy: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    offsets: torch.Tensor,
) -> Operands:
    rows, ffn = len(x), down.shape[-1]
    hidden, dhidden, act = normal(rows, 2 * ffn), normal(rows, 2 * ffn), normal(rows, ffn)
    return Operands(x, dy, gate_up, down, hidden, dhidden, act, offsets)


def flops(operator: str, rows: int, hidden: int, ffn: int) -> int:
    """Of one product over N `rows`."""
    return 2 * rows * hidden * ffn * (2 if operator in _WIDE else 1)


def launch(
    operator: str, t: Operands, config: Config, sums: torch.Tensor | None = None
) -> Callable[[], tuple[torch.Tensor, ...]]:
    """A call of the operator's kernel with that config, which returns its results.

    A weight gradient writes every call to the same tensor, or adds to fp32 `sums`.
    """
    layer = GroupedLayer(t.x, t.gate_up, t.offsets, (), {operator: config})
    if operator in WEIGHTS:
        out = torch.full_like(t.weight(operator), torch.nan) if sums is None else sums
        add = sums is not None

        def gradient() -> tuple[torch.Tensor, ...]:
            layer.weight_gradient(operator, *t.sides(operator), out, add)
            return (out,)

        return gradient
    calls: dict[str, Callable[[], tuple[torch.Tensor, ...]]] = {
        "gate_up": lambda: layer.gate_up(t.x, t.gate_up, True),
        "down": lambda: (layer.down(t.act, t.down),),
        "activation_gradient": lambda: layer.activation_gradient(t.dy, t.down, t.hidden),
        "input_gradient": lambda: (layer.input_gradient(t.dhidden, t.gate_up),),
    }
    return calls[operator]


def dense(operator: str, t: Operands) -> Callable[[], torch.Tensor]:
    """torch.mm (cuBLAS or hipBLASLt) with one expert's weights for all rows, no activation."""
    gate_up, down = t.gate_up[0], t.down[0]
    calls = {
        "gate_up": lambda: t.x @ gate_up.T,
        "down": lambda: t.act @ down.T,
        "activation_gradient": lambda: t.dy @ down,
        "input_gradient": lambda: t.dhidden @ gate_up,
        "gate_up_gradient": lambda: t.dhidden.T @ t.x,
        "down_gradient": lambda: t.dy.T @ t.act,
    }
    return calls[operator]


def reference(operator: str, t: Operands) -> tuple[torch.Tensor, ...]:
    """The operator's results in fp32, by a loop over experts."""
    t = replace(t, **{f.name: getattr(t, f.name).float() for f in fields(t)[:-1]})
    if operator in WEIGHTS:
        return (_over_experts(t, lambda e, s: _outer(*t.sides(operator), s)[None]),)
    if operator == "gate_up":
        hidden = _over_experts(t, lambda e, s: t.x[s] @ t.gate_up[e].T)
        return hidden, _swiglu(hidden)
    if operator == "down":
        return (_over_experts(t, lambda e, s: t.act[s] @ t.down[e].T),)
    if operator == "input_gradient":
        return (_over_experts(t, lambda e, s: t.dhidden[s] @ t.gate_up[e]),)
    hidden = t.hidden.detach().requires_grad_()
    act = _swiglu(hidden)
    dact = _over_experts(t, lambda e, s: t.dy[s] @ t.down[e])
    return *torch.autograd.grad(act, hidden, dact), act.detach()


def _over_experts(t: Operands, part: Callable[[int, slice], torch.Tensor]) -> torch.Tensor:
    ends = t.offsets.tolist()
    spans = zip([0, *ends], ends, strict=False)
    return torch.cat([part(e, slice(*span)) for e, span in enumerate(spans)])


def _outer(left: torch.Tensor, right: torch.Tensor, rows: slice) -> torch.Tensor:
    return left[rows].T @ right[rows]


def _swiglu(hidden: torch.Tensor) -> torch.Tensor:
    gate, up = hidden.chunk(2, dim=1)
    return F.silu(gate) * up


def check(operator: str, t: Operands, config: Config) -> list[Check]:
    """The operator with that config against its reference, a weight gradient also into sums."""
    results, expected = launch(operator, t, config)(), reference(operator, t)
    checks = [compare(operator, a, e) for a, e in zip(results, expected, strict=True)]
    if operator in WEIGHTS:
        before = normal(*t.weight(operator).shape, dtype=torch.float32)
        (sums,) = launch(operator, t, config, before.clone())()
        checks.append(compare(f"{operator} into sums", sums - before, expected[0]))
    return checks
