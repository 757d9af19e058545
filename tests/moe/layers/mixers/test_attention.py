"""Attention stays causal and inside documents; RoPE is relative."""

import pytest
import torch

from moelstrom.moe.grid import Grid
from moelstrom.moe.layers.base import Dims, Flow
from moelstrom.moe.layers.mixers.attention import Attention, AttentionConfig, attend, document_mask
from moelstrom.moe.layers.rope import apply_rope, rope_table

CONFIG = AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=8, qk_norm=True)
DIMS = Dims(hidden_size=16, num_layers=1, norm_eps=1e-6, init_std=0.3)


@pytest.fixture
def attention(grid: Grid) -> Attention:
    torch.manual_seed(0)
    made = Attention(CONFIG, DIMS, grid)
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.3) if p.ndim > 1 else torch.nn.init.ones_(p)
    return made


def mixed(attention: Attention, x: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
    flow = Flow(documents)
    attention.prepare(flow)
    return attention(x, {}, flow).y


def test_matches_plain_softmax() -> None:
    torch.manual_seed(1)
    q, k, v = (torch.randn(2, h, 7, 8) for h in (4, 2, 2))
    mask = document_mask(torch.tensor([[0, 0, 0, 1, 1, 1, 2], [0] * 7]))
    k4, v4 = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    scores = (q @ k4.mT / 8**0.5).masked_fill(~mask, float("-inf"))
    torch.testing.assert_close(attend(q, k, v, mask), scores.softmax(-1) @ v4)


def test_packed_documents_equal_separate_ones(attention: Attention) -> None:
    x = torch.randn(1, 10, 16)
    packed = mixed(attention, x, torch.tensor([[0] * 4 + [1] * 6]))
    for part in (slice(0, 4), slice(4, 10)):
        alone = mixed(attention, x[:, part], torch.zeros(1, part.stop - part.start))
        torch.testing.assert_close(packed[:, part], alone)


def test_future_does_not_leak(attention: Attention) -> None:
    documents = torch.zeros(1, 9)
    x = torch.randn(1, 9, 16)
    changed = x.clone()
    changed[:, 5:] += 1
    before, after = (mixed(attention, v, documents) for v in (x, changed))
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_rope_is_relative_and_partial() -> None:
    table = rope_table(32, 4, 1e4, torch.device("cpu"))
    q, k = torch.randn(8), torch.randn(8)
    at = apply_rope(q.expand(1, 32, 1, 8), table)[0, :, 0]
    against = apply_rope(k.expand(1, 32, 1, 8), table)[0, :, 0]
    torch.testing.assert_close(at[5] @ against[3], at[25] @ against[23])
    assert torch.equal(at[9, 4:], q[4:]) and not torch.allclose(at[9, :4], q[:4])


def test_rotation_is_in_fp32() -> None:
    """At positions whose angles bf16 cannot hold: of bf16 vectors only the result is rounded."""
    length, width = 3000, 6
    x = torch.randn(1, length, 2, 8, generator=torch.Generator().manual_seed(2)).bfloat16()
    table = rope_table(length, width, 1e4, x.device)
    assert table.dtype == torch.float32
    angle = torch.arange(length).double()[:, None] * 1e4 ** (-torch.arange(3).double() / 3)
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]
    pairs = torch.complex(x[..., :3].double(), x[..., 3:6].double()) * turn
    expected = torch.cat([pairs.real, pairs.imag, x[..., 6:].double()], dim=-1)
    turned = apply_rope(x, table)
    assert turned.dtype == torch.bfloat16
    # fp32 holds an angle of 3000 to about 4e-4; half a unit of bf16 is up to 2^-8 of a value.
    torch.testing.assert_close(turned.double(), expected, rtol=2**-8, atol=2e-3)
