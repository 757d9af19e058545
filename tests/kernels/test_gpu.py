"""bf16 on the GPU against fp32 references; `bench/accuracy.py` states the tolerances."""

import pytest
import torch

pytest.importorskip("triton")
from moelstrom.kernels.bench import accuracy, cases

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_every_operator_is_near_fp32() -> None:
    bad = [check for check in accuracy.check_others() if not check.ok]
    assert not bad


@pytest.mark.timeout(900)
def test_200_random_routed_shapes() -> None:
    checks = list(accuracy.check_random_shapes(200))
    assert len(checks) >= 200 * 4
    assert not [check for check in checks if not check.ok]


@pytest.mark.parametrize("load", cases.LOADS)
@pytest.mark.parametrize("width", cases.WIDTHS, ids=str)
def test_benchmark_widths(width: cases.Width, load: str) -> None:
    torch.manual_seed(0)
    counts = cases.loads(4096 * width.top_k, width.experts, load)
    checks = accuracy.check_experts(counts, width.hidden, width.ffn)
    assert not [check for check in checks if not check.ok]


def test_ten_runs_give_the_same_bits() -> None:
    assert all(accuracy.check_repeats(10).values())


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.mem_get_info()[0] < 24 << 30, reason="needs 24 GiB"
)
def test_rows_past_2_31_elements() -> None:
    # 1.1 million rows of 2,048: the last ones lie past what 32 bits address.
    tokens, copies, width = 140_000, 8, 2048
    order = torch.randperm(tokens * copies, device="cuda")
    inverse = accuracy.inverse_permutation(order)
    x = torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16)
    rows = accuracy.gather_rows(x, order, inverse, copies)
    assert rows.numel() > 2**31
    sample = torch.randint(tokens * copies, (4096,), device="cuda")
    sample[:2] = torch.tensor([0, tokens * copies - 1])
    assert torch.equal(rows[sample], x[order[sample] // copies])
    weights = torch.full((tokens, copies), 1 / copies, device="cuda")
    combined = accuracy.combine_rows(rows, order, inverse, weights)
    torch.testing.assert_close(combined, x, rtol=1e-2, atol=1e-2)
