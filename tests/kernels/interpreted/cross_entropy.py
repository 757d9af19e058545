"""The fused cross-entropy in Triton's interpreter, against plain torch.

Run by `test_operators.py` in a process of its own with TRITON_INTERPRET=1.
"""

import pytest
import torch

from moelstrom.kernels.cross_entropy import fused, linear_cross_entropy, plain

IGNORE = -100


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "CHUNK_ROWS", 8)


@pytest.mark.parametrize(("rows", "width", "vocabulary"), [(37, 24, 200), (8, 16, 33), (1, 8, 5)])
def test_loss_and_gradients(rows: int, width: int, vocabulary: int) -> None:
    torch.manual_seed(0)
    x, weight = (torch.randn(n, width, requires_grad=True) for n in (rows, vocabulary))
    targets = torch.randint(vocabulary, (rows,))
    targets[1::5] = IGNORE
    results = []
    for form in (linear_cross_entropy, plain.linear_cross_entropy):
        loss = form(x, weight, targets, IGNORE)
        results.append((loss, *torch.autograd.grad(0.3 * loss, (x, weight))))
    for fast, exact in zip(*results, strict=True):
        torch.testing.assert_close(fast, exact, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(x, weight, targets, IGNORE), results[1][0])


def test_all_targets_ignored() -> None:
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(9, 8, requires_grad=True)
    loss = linear_cross_entropy(x, weight, torch.full((4,), IGNORE), IGNORE)
    gradients = torch.autograd.grad(loss, (x, weight))
    assert loss == 0 and not any(g.any() for g in gradients)


def test_chunks_never_hold_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    kernel = fused.fused_linear_cross_entropy_forward

    def spy(x: torch.Tensor, weight: torch.Tensor, *args: object, **options: int) -> object:
        # liger's own rule for the rows of a chunk.
        steps = -(-weight.shape[0] // (options["chunk_mem_const"] * x.shape[1]))
        seen.append(-(-x.shape[0] // steps))
        return kernel(x, weight, *args, **options)

    monkeypatch.setattr(fused, "fused_linear_cross_entropy_forward", spy)
    linear_cross_entropy(torch.randn(64, 8), torch.randn(500, 8), torch.arange(64), IGNORE)
    assert seen and all(rows <= 8 for rows in seen)


@pytest.mark.parametrize("gradients", [False, True])
def test_registered_right(gradients: bool) -> None:
    x = torch.randn(6, 8, requires_grad=gradients)
    weight = torch.randn(9, 8, requires_grad=gradients)
    torch.library.opcheck(fused.loss_and_gradients, (x, weight, torch.arange(6), IGNORE, gradients))
