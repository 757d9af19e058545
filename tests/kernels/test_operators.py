"""The operators beside the expert MLP: plain forms here, Triton forms in the interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moelstrom.kernels.cross_entropy import linear_cross_entropy
from moelstrom.kernels.newton_schulz import newton_schulz
from moelstrom.kernels.permute import combine_rows, inverse_permutation
from moelstrom.kernels.rms_norm import add_rms_norm, scaled_add_rms_norm


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "operator", ["grouped_mlp", "permute", "rms_norm", "newton_schulz", "cross_entropy"]
)
def test_kernels_interpreted(operator: str) -> None:
    # The interpreter takes over every kernel of its process: it gets one of its own.
    pytest.importorskip("triton")
    tests = Path(__file__).parent / "interpreted" / f"{operator}.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-6000:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_combine_by_hand(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    order = torch.randperm(12)
    rows, weights = torch.randn(12, 5).to(dtype).requires_grad_(), torch.rand(4, 3)
    y = combine_rows(rows, order, inverse_permutation(order), weights.requires_grad_())
    expected = torch.zeros(4, 5)
    for place, copy in enumerate(order.tolist()):
        expected[copy // 3] += weights[copy // 3, copy % 3] * rows[place].float()
    assert y.dtype == dtype
    torch.testing.assert_close(y, expected.to(dtype))
    y.float().sum().backward()
    assert weights.grad is not None
    torch.testing.assert_close(
        weights.grad.flatten()[order], rows.detach().float().sum(1), rtol=1e-5, atol=1e-5
    )


def test_residual_norms_by_hand() -> None:
    torch.manual_seed(0)
    x, y, weight, scales = (torch.randn(s) for s in ((3, 8), (3, 8), 8, (4, 8)))

    def norm(t: torch.Tensor) -> torch.Tensor:
        return t / (t.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    total, normed = add_rms_norm(x, y, weight, 1e-5)
    torch.testing.assert_close(total, x + y)
    torch.testing.assert_close(normed, norm(x + y))
    a1, b1, a2, b2 = scales
    total, normed = scaled_add_rms_norm(x, y, scales, weight, 1e-5)
    torch.testing.assert_close(total, (a1 * x + b1) + (a2 * y + b2))
    torch.testing.assert_close(normed, norm(total))


def test_cross_entropy_by_hand() -> None:
    torch.manual_seed(0)
    x, weight, targets = torch.randn(5, 8), torch.randn(11, 8), torch.tensor([3, -100, 0, 10, 3])
    log_p = (x @ weight.T).log_softmax(-1)
    expected = -sum(log_p[i, t] for i, t in enumerate(targets.tolist()) if t >= 0)
    torch.testing.assert_close(linear_cross_entropy(x, weight, targets, -100), expected)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 20), (2, 20, 6)])
def test_newton_schulz_is_its_recurrence_in_fp32(shape: tuple[int, ...]) -> None:
    m = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for found, given in zip(newton_schulz(m, 5), m.double(), strict=True):
        x = given / given.norm()
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x - 4.7750 * a @ x + 2.0315 * a @ a @ x
        torch.testing.assert_close(found.double(), x, rtol=0, atol=1e-5)
