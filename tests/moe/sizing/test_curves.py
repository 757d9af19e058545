"""Rates between measured points, and the data sheet's model."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelstrom import UserError
from moelstrom.kernels.targets import TARGETS, find
from moelstrom.moe.sizing.curves import CAPACITY, Curves, Gemm, Grouped, data_sheet

SIDES = st.integers(1, 2**15)


def curves(**changes: object) -> Curves:
    given_: dict[str, object] = {
        "label": "made up",
        "gemms": tuple(Gemm(n, n, n, 1e12 * r) for n, r in ((256, 50), (1024, 400), (8192, 700))),
        "experts": (Grouped(4096, 512, 256, 8, 200e12),),
        "attention": ((512, 1e14), (2048, 3e14), (8192, 4e14)),
        "memory_rate": 3e12,
        "capacity": 80 * 2**30,
        "peak": 1e15,
    }
    return Curves(**{**given_, **changes})  # type: ignore[arg-type]


def test_measured_points_come_out_as_measured() -> None:
    found = curves()
    for n, rate in ((256, 50e12), (1024, 400e12), (8192, 700e12)):
        assert found.gemm(n, n, n) == rate
    assert found.grouped(4096, 512, 256, 8) == pytest.approx(200e12)
    assert [found.attend(s) for s in (512, 2048, 8192)] == [1e14, 3e14, 4e14]
    assert found.attend(1024) == pytest.approx(2e14)
    assert found.attend(1) == 1e14 and found.attend(2**20) == 4e14


@settings(deadline=None)
@given(m=SIDES, n=SIDES, k=SIDES)
def test_no_product_passes_the_roofline(m: int, n: int, k: int) -> None:
    found = curves()
    moved = 2 * (m * k + n * k + m * n)
    roof = min(700e12, 2 * m * n * k / moved * 3e12)
    assert 0 < found.gemm(m, n, k) <= 1.0001 * roof


@settings(deadline=None)
@given(n=st.integers(256, 8192))
def test_between_two_points_the_rate_lies_between_them(n: int) -> None:
    found = curves()
    assert 0.9 * found.gemm(256, 256, 256) <= found.gemm(n, n, n) <= found.gemm(8192, 8192, 8192)


def test_grouped_experts_keep_their_share_of_dense_products() -> None:
    found = curves()
    up, down = found.gemm(4096, 512, 512), found.gemm(4096, 512, 256)
    share = 200e12 / (3 / (2 / up + 1 / down))
    other_up, other_down = found.gemm(16384, 1024, 2048), found.gemm(16384, 2048, 512)
    dense = 3 / (2 / other_up + 1 / other_down)
    assert found.grouped(16384, 2048, 512, 8) == pytest.approx(share * dense)


@pytest.mark.parametrize("name", TARGETS)
def test_data_sheets_are_labelled_and_below_their_peaks(name: str) -> None:
    found = data_sheet(find(name))
    assert found.label.startswith("model from the data sheet") and not found.measured
    assert found.capacity == CAPACITY[name]
    assert found.best < found.peak and found.memory_rate < find(name).memory_rate
    # The paper's two statements: 200 GFLOP are near the peak, and so is K = 7168 with M, N >= 512,
    # but K = 1024 only with large M and N.
    assert found.gemm(4642, 4642, 4642) > 0.85 * found.best
    assert found.gemm(512, 512, 1024) < 0.3 * found.best < found.gemm(8192, 8192, 1024)
    assert 0.8 <= found.attend(4096) / found.attend(2**19) <= 0.95


@settings(deadline=None)
@given(m=st.integers(128, 2**17), n=st.integers(128, 8192), k=st.integers(512, 8192))
def test_a_coarse_grid_shows_the_law_between_its_points(m: int, n: int, k: int) -> None:
    """Products that follow another half than the model's, measured at 28 points."""

    def law(m: int, n: int, k: int) -> float:
        flops = 2 * m * n * k
        return 700e12 * flops / (flops + 3e9)

    grid = [(2**i, 2**j, 2**8) for i in range(7, 18, 3) for j in range(7, 14, 3)]
    grid += [(2**i, 2**i, 2**13) for i in range(7, 14)] + [(2**14, 2**14, 2**14)]
    found = curves(gemms=tuple(Gemm(*g, law(*g)) for g in grid), memory_rate=1e15)
    assert found.gemm(m, n, k) == pytest.approx(law(m, n, k), rel=0.05)


def test_an_unlisted_gpu_is_refused() -> None:
    with pytest.raises(UserError, match="target sm86: choose from gfx90a"):
        data_sheet(replace(find("sm80"), name="sm86"))
