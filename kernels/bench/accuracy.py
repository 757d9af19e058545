"""bf16 kernels on the GPU against fp32 references: forward and every gradient.

The references get the same bf16-rounded inputs, in fp32 with TF32 off. Two tolerances, both
relative: WHOLE for the norm of the difference over the norm of the reference, and ROW for the worst
row's difference over that row's norm (or that of the mean row which is not zero, if larger), which
a single wrong tile or row cannot hide from.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from ..cross_entropy import linear_cross_entropy
from ..cross_entropy import plain as plain_cross_entropy
from ..grouped_mlp import grouped_mlp, grouped_mlp_reference, moe_mlp, sort_by_expert
from ..newton_schulz import newton_schulz
from ..newton_schulz.coefficients import COEFFICIENTS
from ..permute import combine_rows, gather_rows, inverse_permutation
from ..permute import plain as plain_permute
from ..rms_norm import add_rms_norm, rms_norm, scaled_add_rms_norm
from ..rms_norm import plain as plain_norm
from . import cases

WHOLE = 1e-2
ROW = 5e-2
NEWTON_SCHULZ = 3e-2
"""Whole tolerance of five Newton-Schulz steps, each rounding X, A and bA + cA^2 to bf16."""


@dataclass(frozen=True)
class Check:
    """One tensor of one operator against its reference."""

    what: str
    whole: float
    row: float
    ok: bool


def compare(what: str, actual: torch.Tensor, expected: torch.Tensor, whole: float = WHOLE) -> Check:
    """Relative errors of `actual` [..., D] against `expected`."""
    expected = expected.detach().float()
    a, e = actual.detach().float(), expected
    a, e = (t.reshape(-1, t.shape[-1]) if t.dim() else t.reshape(1, 1) for t in (a, e))
    rows = torch.linalg.vector_norm(a - e, dim=1)
    norms = torch.linalg.vector_norm(e, dim=1)
    if not e.numel():
        return Check(what, 0.0, 0.0, actual.shape == expected.shape)
    scale = torch.linalg.vector_norm(norms).clamp_min(1e-30)
    error = (torch.linalg.vector_norm(rows) / scale).item()
    # Rows of zeros, as of experts without tokens, would make the mean row small.
    typical = norms.sum() / norms.count_nonzero().clamp_min(1)
    row = (rows / norms.clamp_min(typical.item()).clamp_min(1e-30)).max().item()
    # Written so that NaN fails.
    return Check(what, error, row, bool(error <= whole and row <= ROW * whole / WHOLE))


Tensors = tuple[torch.Tensor, ...]
Function = Callable[..., torch.Tensor | Tensors]


def _results(function: Function, inputs: Tensors, grads: Tensors) -> Tensors:
    """Outputs and the gradients of all inputs."""
    inputs = tuple(t.detach().requires_grad_() for t in inputs)
    out = function(*inputs)
    outputs = out if isinstance(out, tuple) else (out,)
    cast = [g.to(o.dtype) for g, o in zip(grads, outputs, strict=True)]
    return *outputs, *torch.autograd.grad(outputs, inputs, cast)


def against_fp32(
    name: str,
    ours: Function,
    reference: Function,
    inputs: dict[str, torch.Tensor],
    grads: Tensors,
) -> list[Check]:
    """Run `ours` on the inputs as they are and `reference` on them in fp32; compare everything.

    `grads` are those of the outputs, [..., D] each; inputs may have any shape.
    """
    tensors = tuple(inputs.values())
    fast = _results(ours, tensors, grads)
    exact = _results(reference, tuple(t.float() for t in tensors), grads)
    labels = [f"y{i}" for i in range(len(grads))] + [f"d_{key}" for key in inputs]
    pairs = zip(labels, fast, exact, strict=True)
    return [compare(f"{name} {label}", a, e) for label, a, e in pairs]


def normal(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """[*shape] of standard deviation `scale`, on the benchmark's device."""
    return (torch.randn(shape, device=cases.DEVICE) * scale).to(dtype)


def check_experts(counts: list[int], hidden: int, ffn: int) -> list[Check]:
    """The expert MLP with these rows per expert."""
    offsets = torch.tensor(counts).cumsum(0).to(cases.DEVICE, torch.int32)
    rows, experts = sum(counts), len(counts)
    inputs = {
        "x": normal(rows, hidden),
        "gate_up": normal(experts, 2 * ffn, hidden, scale=hidden**-0.5),
        "down": normal(experts, hidden, ffn, scale=ffn**-0.5),
    }
    name = f"experts N{rows} E{experts} d{hidden} f{ffn}"
    return against_fp32(
        name,
        partial(grouped_mlp, offsets=offsets),
        partial(grouped_mlp_reference, offsets=offsets),
        inputs,
        (normal(rows, hidden),),
    )


def check_moe(tokens: int, copies: int, experts: int, hidden: int, ffn: int) -> list[Check]:
    """The whole layer, gather and combine included, with experts and weights drawn at random; a
    weight in eight is zero."""
    ids = torch.randint(experts, (tokens, copies), device=cases.DEVICE)
    order, inverse, offsets = sort_by_expert(ids, experts)
    weights = torch.rand(tokens, copies, device=cases.DEVICE)
    weights *= torch.rand_like(weights) > 1 / 8
    inputs = {
        "x": normal(tokens, hidden),
        "weights": weights,
        "gate_up": normal(experts, 2 * ffn, hidden, scale=hidden**-0.5),
        "down": normal(experts, hidden, ffn, scale=ffn**-0.5),
    }

    def parts(
        x: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
    ) -> torch.Tensor:
        rows = plain_permute.gather_rows(x, order, inverse, copies)
        rows = grouped_mlp_reference(rows, gate_up, down, offsets)
        return plain_permute.combine_rows(rows, order, inverse, weights)

    return against_fp32(
        f"moe T{tokens} k{copies} E{experts} d{hidden} f{ffn}",
        partial(moe_mlp, order=order, inverse=inverse, offsets=offsets),
        parts,
        inputs,
        (normal(tokens, hidden),),
    )


WIDTHS = ((64, 32), (256, 128), (200, 72), (512, 768))


def random_counts(index: int) -> tuple[list[int], int, int]:
    """The index-th random routed shape: (rows per expert, D, F). In turn spread evenly at random,
    skewed, all on one expert, and mostly empty; E from 1 to 512."""
    g = torch.Generator().manual_seed(index)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=g))

    experts = 512 if index % 25 == 24 else draw(1, 64)
    rows, kind = draw(1, 4000), index % 4
    shares = torch.rand(experts, generator=g) + 1e-3
    if kind == 1:
        shares = shares**6
    elif kind == 2:
        shares = torch.zeros(experts).index_fill_(0, torch.tensor(draw(0, experts - 1)), 1.0)
    elif kind == 3:
        shares = shares * (torch.rand(experts, generator=g) < 0.2)
        shares[draw(0, experts - 1)] += 1.0
    ids = torch.multinomial(shares, rows, replacement=True, generator=g)
    return ids.bincount(minlength=experts).tolist(), *WIDTHS[index % len(WIDTHS)]


def check_random_shapes(count: int) -> Iterator[Check]:
    """The expert MLP, the permutation and the whole layer on `count` random routed shapes."""
    for index in range(count):
        torch.manual_seed(index)
        counts, hidden, ffn = random_counts(index)
        yield from check_experts(counts, hidden, ffn)
        tokens, copies = 1 + sum(counts) // 8, (1, 2, 8)[index % 3]
        yield from check_permute(tokens, copies, hidden)
        yield from check_moe(tokens, copies, len(counts), hidden, ffn)


def check_permute(tokens: int, copies: int, width: int) -> list[Check]:
    order = torch.randperm(tokens * copies, device=cases.DEVICE)
    inverse = inverse_permutation(order)
    name = f"T{tokens} k{copies} d{width}"
    gathered = against_fp32(
        f"gather {name}",
        lambda x: gather_rows(x, order, inverse, copies),
        lambda x: plain_permute.gather_rows(x, order, inverse, copies),
        {"x": normal(tokens, width)},
        (normal(tokens * copies, width),),
    )
    weights = torch.rand(tokens, copies, device=cases.DEVICE)
    combined = against_fp32(
        f"combine {name}",
        lambda rows, w: combine_rows(rows, order, inverse, w),
        lambda rows, w: plain_permute.combine_rows(rows, order, inverse, w),
        {"rows": normal(tokens * copies, width), "weights": weights},
        (normal(tokens, width),),
    )
    return gathered + combined


def check_norms(rows: int, width: int) -> list[Check]:
    eps = 1e-6
    x, y, weight = normal(rows, width), normal(rows, width), normal(width) + 1
    scales = torch.rand(4, width, device=cases.DEVICE)
    grads = (normal(rows, width), normal(rows, width))
    norm = against_fp32(
        "rms_norm",
        partial(rms_norm, eps=eps),
        partial(plain_norm.rms_norm, eps=eps),
        {"x": x, "weight": weight},
        grads[:1],
    )
    added = against_fp32(
        "add_rms_norm",
        partial(add_rms_norm, eps=eps),
        partial(plain_norm.add_rms_norm, eps=eps),
        {"x": x, "y": y, "weight": weight},
        grads,
    )
    scaled = against_fp32(
        "scaled_add_rms_norm",
        partial(scaled_add_rms_norm, eps=eps),
        partial(plain_norm.scaled_add_rms_norm, eps=eps),
        {"x": x.float(), "y": y, "scales": scales, "weight": weight},
        grads,
    )
    return norm + added + scaled


def check_newton_schulz(shape: tuple[int, int, int]) -> list[Check]:
    """Against the same iteration in fp64."""
    m = normal(*shape, dtype=torch.float32)
    a, b, c = COEFFICIENTS
    x = m.double() / m.double().norm(dim=(-2, -1), keepdim=True)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    name = "newton_schulz " + "x".join(map(str, shape))
    return [compare(name, newton_schulz(m, 5), x, NEWTON_SCHULZ)]


def check_cross_entropy(rows: int, width: int, vocabulary: int) -> list[Check]:
    targets = torch.randint(vocabulary, (rows,), device=cases.DEVICE)
    targets[::7] = -100
    return against_fp32(
        f"cross_entropy N{rows} d{width} V{vocabulary}",
        partial(linear_cross_entropy, targets=targets, ignore_index=-100),
        partial(plain_cross_entropy.linear_cross_entropy, targets=targets, ignore_index=-100),
        {"x": normal(rows, width), "weight": normal(vocabulary, width, scale=width**-0.5)},
        (torch.tensor(0.25, device=cases.DEVICE),),
    )


def check_others() -> Iterator[Check]:
    """Every operator but the experts, at odd and at round sizes."""
    torch.manual_seed(0)
    for rows, width in ((1000, 200), (4096, 2048), (37, 4096)):
        yield from check_norms(rows, width)
    for sizes in ((1000, 3, 200), (4096, 8, 2048), (777, 1, 3000)):
        yield from check_permute(*sizes)
    for shape in ((2, 96, 200), (3, 300, 136), (2, 513, 700), (2, 1024, 2048)):
        yield from check_newton_schulz(shape)
    yield from check_cross_entropy(777, 256, 5003)
    yield from check_cross_entropy(9000, 512, 4096)


def repeats(function: Function, inputs: Tensors, grads: Tensors, runs: int = 10) -> bool:
    """Whether outputs and gradients are the same bits in every run."""
    first = _results(function, inputs, grads)
    for _ in range(runs - 1):
        again = _results(function, inputs, grads)
        if not all(torch.equal(a, b) for a, b in zip(first, again, strict=True)):
            return False
    return True


def check_repeats(runs: int = 10) -> dict[str, bool]:
    """Bitwise repeatability of every operator over `runs` runs."""
    torch.manual_seed(0)
    counts, hidden, ffn = [700, 0, 1, 2100, 295], 512, 768
    rows = sum(counts)
    offsets = torch.tensor(counts).cumsum(0).to(cases.DEVICE, torch.int32)
    order = torch.randperm(rows * 4, device=cases.DEVICE)
    inverse = inverse_permutation(order)
    targets = torch.randint(5003, (rows,), device=cases.DEVICE)
    x, weight, grad = normal(rows, hidden), normal(hidden), normal(rows, hidden)
    matrices = (normal(5, 2 * ffn, hidden, scale=0.05), normal(5, hidden, ffn, scale=0.05))
    ids, weights = torch.randint(5, (rows, 4)), torch.rand(rows, 4, device=cases.DEVICE)
    sorted_order, sorted_inverse, ends = sort_by_expert(ids.to(cases.DEVICE), 5)
    layer = partial(moe_mlp, order=sorted_order, inverse=sorted_inverse, offsets=ends)
    momentum = normal(3, 300, 200, dtype=torch.float32)
    return {
        "experts": repeats(partial(grouped_mlp, offsets=offsets), (x, *matrices), (grad,), runs),
        "moe": repeats(layer, (x, weights, *matrices), (grad,), runs),
        "permute": repeats(
            lambda x, w: combine_rows(gather_rows(x, order, inverse, 4), order, inverse, w),
            (x, weights),
            (grad,),
            runs,
        ),
        "add_rms_norm": repeats(
            partial(add_rms_norm, eps=1e-6), (x, grad, weight), (grad, grad), runs
        ),
        "cross_entropy": repeats(
            partial(linear_cross_entropy, targets=targets, ignore_index=-100),
            (x, normal(5003, hidden, scale=0.05)),
            (torch.tensor(0.25, device=cases.DEVICE),),
            runs,
        ),
        "newton_schulz": all(
            torch.equal(newton_schulz(momentum, 5), newton_schulz(momentum, 5)) for _ in range(runs)
        ),
    }
