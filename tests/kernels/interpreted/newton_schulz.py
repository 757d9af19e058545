"""The symmetric Newton-Schulz kernels in Triton's interpreter, against plain torch.

Run by `test_operators.py` in a process of its own with TRITON_INTERPRET=1.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moelstrom.kernels import newton_schulz
from moelstrom.kernels.newton_schulz import fused, plain
from moelstrom.kernels.targets import Target, find

TILES = {
    "square": {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16},
    "wide": {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 32},
}


def _config(tile: str) -> dict[str, int]:
    pieces = TILES[tile]["BLOCK_N"] // 16
    walk = {"GROUP_M": 3, "SUBTILES": pieces, "FLATTEN": True, "PROGRAMS": 1}
    return {**TILES[tile], **walk, "num_warps": 4, "num_stages": 2}


@pytest.fixture(params=["sm90", "gfx942"], ids=["descriptors", "pointers"])
def target(request: pytest.FixtureRequest) -> Target:
    return find(request.param)


@settings(max_examples=20, deadline=None)
@given(
    tile=st.sampled_from(list(TILES)),
    n=st.integers(1, 3),
    rows=st.integers(1, 100),
    inner=st.sampled_from([3, 16, 40, 72]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    descriptors=st.booleans(),
)
def test_symmetric_product(
    tile: str, n: int, rows: int, inner: int, dtype: torch.dtype, descriptors: bool
) -> None:
    # Eight dies renumber the programs; each walks several tiles.
    place = replace(find("sm90"), tensor_descriptors=descriptors, xcds=8, compute_units=10)
    a = torch.randn(n, rows, inner).to(dtype)
    addend = torch.randn(n, rows, rows)
    addend = (addend + addend.mT).to(dtype)
    out = torch.full((n, rows, rows), torch.nan, dtype=dtype)
    factors, eye = torch.rand(n), torch.eye(rows)
    fused.product(a, a, out, _config(tile), place, addend, (0.5, 2.0, 3.0), factors, symmetric=True)
    expected = a.float() @ a.float().mT
    expected = 0.5 * addend.float() + 2.0 * factors[:, None, None] * expected + 3.0 * eye
    tolerance = 1e-4 if dtype == torch.float32 else 5e-3
    torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=tolerance * inner)
    assert torch.equal(out, out.mT)


@pytest.mark.parametrize("shape", [(1, 40, 72), (2, 33, 65), (3, 16, 130)])
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("transposed", [False, True])
def test_update_product(
    target: Target, tile: str, shape: tuple[int, int, int], transposed: bool
) -> None:
    n, rows, columns = shape
    a, b, factors = torch.randn(n, rows, rows), torch.randn(shape), torch.rand(n)
    out = torch.full((n, columns, rows) if transposed else shape, torch.nan)
    place = replace(target, compute_units=4)
    fused.product(a, b, out, _config(tile), place, factors=factors, transposed=transposed)
    expected = factors[:, None, None] * (a @ b)
    expected = expected.mT if transposed else expected
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-3)


def test_each_tile_of_the_upper_triangle_once() -> None:
    # What the kernel computes twice or below the diagonal would still be right, but not saved.
    config = {"BLOCK_M": 16, "BLOCK_N": 32}
    assert fused.tile_count(64, 64, config, symmetric=True) == 2 + 4
    assert fused.tile_count(64, 64, config, symmetric=False) == 4 * 2


@pytest.mark.parametrize("shape", [(2, 24, 40), (2, 40, 24), (1, 66, 66), (1, 3, 90), (0, 8, 8)])
def test_orthogonalisation(
    target: Target, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "target_of", lambda x: target)
    monkeypatch.setattr(fused, "config_for", lambda *a: _config("wide"))
    m = torch.randn(shape)
    out = newton_schulz.newton_schulz(m, 5)
    torch.testing.assert_close(out, plain.newton_schulz(m, 5), rtol=1e-3, atol=1e-4)
    torch.library.opcheck(fused.newton_schulz, (m, 2))
    # Any strides; zeros stay zeros.
    apart = torch.stack([m, m], -1)[..., 0]
    torch.testing.assert_close(newton_schulz.newton_schulz(apart, 5), out, rtol=0, atol=0)
    assert not newton_schulz.newton_schulz(torch.zeros(shape), 5).any()
