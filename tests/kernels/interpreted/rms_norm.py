"""The RMSNorm kernels in Triton's interpreter, against plain torch.

Run by `test_operators.py` in a process of its own with TRITON_INTERPRET=1.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moelstrom.kernels import rms_norm
from moelstrom.kernels.rms_norm import fused, plain
from moelstrom.kernels.targets import find

EPS = 1e-5
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3}


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that every backward program walks several rows."""
    monkeypatch.setattr(fused, "target_of", lambda x: replace(find("sm90"), compute_units=2))


shapes = st.tuples(st.integers(0, 40), st.sampled_from([8, 24, 130, 1000]))
dtypes = st.sampled_from(list(TOLERANCE))


@settings(max_examples=25, deadline=None)
@given(shape=shapes, dtype=dtypes)
def test_norm(agree: Callable[..., None], shape: tuple[int, int], dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(sum(shape))
    x, weight = (torch.randn(s, generator=g).to(dtype) for s in (shape, shape[1:]))
    agree(
        partial(rms_norm.rms_norm, eps=EPS),
        partial(plain.rms_norm, eps=EPS),
        [x, weight],
        TOLERANCE[dtype],
    )


@settings(max_examples=25, deadline=None)
@given(shape=shapes, dtype=dtypes)
def test_add_norm(agree: Callable[..., None], shape: tuple[int, int], dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(sum(shape))
    x, y, weight = (torch.randn(s, generator=g).to(dtype) for s in (shape, shape, shape[1:]))
    agree(
        partial(rms_norm.add_rms_norm, eps=EPS),
        partial(plain.add_rms_norm, eps=EPS),
        [x, y, weight],
        TOLERANCE[dtype],
    )


@settings(max_examples=25, deadline=None)
@given(shape=shapes, dtype=dtypes)
def test_scaled_add_norm(
    agree: Callable[..., None], shape: tuple[int, int], dtype: torch.dtype
) -> None:
    g = torch.Generator().manual_seed(sum(shape))
    # The residual stream and its scales stay in fp32.
    x, scales = torch.randn(shape, generator=g), torch.randn(4, shape[1], generator=g)
    y, weight = (torch.randn(s, generator=g).to(dtype) for s in (shape, shape[1:]))
    agree(
        partial(rms_norm.scaled_add_rms_norm, eps=EPS),
        partial(plain.scaled_add_rms_norm, eps=EPS),
        [x, y, scales, weight],
        TOLERANCE[dtype],
    )


def test_dtypes_of_the_scaled_form() -> None:
    x, y, scales = torch.randn(3, 16), torch.randn(3, 16).half(), torch.randn(4, 16)
    for form in (rms_norm, plain):
        total, normed = form.scaled_add_rms_norm(x, y, scales, torch.ones(16).half(), EPS)
        assert (total.dtype, normed.dtype) == (torch.float32, torch.float16)


def test_registered_right() -> None:
    x, y, weight, scales = (torch.randn(s, requires_grad=True) for s in ((5, 8), (5, 8), 8, (4, 8)))
    torch.library.opcheck(fused.rms_norm, (x, weight, EPS))
    torch.library.opcheck(fused.add_rms_norm, (x, y, weight, EPS))
    torch.library.opcheck(fused.scaled_add_rms_norm, (x, y, scales, weight, EPS))
    g, x, y, weight, scales = (t.detach() for t in (x * 2, x, y, weight, scales))
    torch.library.opcheck(fused.norm_backward, (None, g, x, weight, EPS))
    torch.library.opcheck(fused.norm_backward, (g, g, x, weight, EPS))
    torch.library.opcheck(fused.scaled_backward, (g, g, x, y, scales, weight, EPS))
