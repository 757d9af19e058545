"""The latency-bandwidth fit against lines that are known, clean, noisy and with outliers."""

import network_reports as nr
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelstrom.collectives_bench.fit import fit_line, fit_report

RANKS = [*range(8)]
SIZES = np.array(nr.SIZES, dtype=float)
alphas = st.floats(2e-6, 1e-3)
betas = st.floats(1e8, 5e11)


def _matters(alpha: float, beta: float) -> bool:
    """Whether the sweep sees both: latency at its start, bandwidth at its end."""
    return alpha > 2 * SIZES[0] / beta and alpha < SIZES[-1] / beta / 2


@given(alphas, betas)
def test_exact_line_is_recovered(alpha: float, beta: float) -> None:
    found = fit_line(SIZES, alpha + SIZES / beta)
    assert found is not None
    fitted = found[0] + SIZES / found[1]
    np.testing.assert_allclose(fitted, alpha + SIZES / beta, rtol=1e-6)
    if _matters(alpha, beta):
        assert found == pytest.approx((alpha, beta), rel=1e-5)


@settings(deadline=None)
@given(alphas, betas, st.integers(0, 2**31))
def test_noisy_line_with_outliers_is_recovered(alpha: float, beta: float, seed: int) -> None:
    if not _matters(alpha, beta):
        return
    random = np.random.default_rng(seed)
    times = (alpha + SIZES / beta) * np.exp(random.normal(0, 0.03, len(SIZES)))
    times[random.choice(len(SIZES), 2, replace=False)] *= 4
    found = fit_line(SIZES, times)
    assert found is not None
    # Two of 17 times four times too long would move plain least squares by far more.
    assert found == pytest.approx((alpha, beta), rel=0.15)


@given(betas, st.integers(0, 2**31))
def test_neither_parameter_is_ever_negative(beta: float, seed: int) -> None:
    times = SIZES / beta * np.exp(np.random.default_rng(seed).normal(0, 1, len(SIZES)))
    found = fit_line(SIZES, times)
    assert found is None or (found[0] >= 0 and 0 < found[1] < np.inf)


def test_no_line_from_two_sizes_or_from_falling_times() -> None:
    assert fit_line(np.array([1.0, 2.0]), np.array([1.0, 2.0])) is None
    assert fit_line(np.array([1.0, 2.0, 4.0]), np.array([4.0, 2.0, 1.0])) is None


def test_report_gives_a_fit_of_each_kind_with_its_residuals() -> None:
    def line(size: int) -> float:
        return 1e-5 + size / 1e10

    found = fit_report(
        nr.report(
            [
                *nr.sweep("all_reduce", RANKS, line),
                *nr.sweep("all_reduce", RANKS, lambda s: 2 * line(s), in_place=True),
                *nr.sweep("all_gather", RANKS[:4], line, "node"),
                *nr.sweep("all_gather", RANKS[4:], line, "node"),
                nr.measurement("broadcast", RANKS, 1024, 1e-5),
            ],
            hosts=2,
        )
    )
    kinds = {(f.op, f.in_place, f.group, f.size, f.local) for f in found}
    assert kinds == {
        ("all_reduce", False, "world", 8, 4),
        ("all_reduce", True, "world", 8, 4),
        ("all_gather", False, "node", 4, 4),
    }
    one = found[0]
    assert one.residual_worst < 1e-6
    assert one.busbw == pytest.approx(1e10 * 1.75)
    assert one.seconds(10**6) == pytest.approx(1.1e-4)
    assert (one.within_host, found[-1].within_host) == (False, True)


def test_residuals_count_relative_to_the_measured_time() -> None:
    def line(size: int) -> float:
        return (1e-5 + size / 1e10) * (1.5 if size == nr.MIB else 1.0)

    (found,) = fit_report(nr.report(nr.sweep("all_reduce", RANKS, line)))
    assert found.residual_worst == pytest.approx(1 / 3, rel=0.02)
    assert found.residual_median < 0.01


@pytest.mark.parametrize("share", [0.5, 0.8, 0.9])
def test_saturation_is_where_the_line_reaches_the_share(share: float) -> None:
    def line(size: float) -> float:
        return 1e-5 + size / 1e10

    (found,) = fit_report(nr.report(nr.sweep("all_reduce", RANKS, line)))
    size = found.saturation(share)
    assert size / line(size) == pytest.approx(share * 1e10, rel=1e-4)
    measured = found.measured_saturation(share)
    # The top measured lies just under beta.
    assert measured is not None and 0.9 * size / 2 < measured < 2 * size


def test_a_sweep_that_ends_while_it_still_speeds_up_has_no_measured_saturation() -> None:
    (found,) = fit_report(nr.report(nr.sweep("all_reduce", RANKS, lambda s: 1.0 + s / 1e10)))
    assert found.measured_saturation() is None


def test_a_curve_that_falls_again_saturates_before_its_top() -> None:
    # As on a CPU whose cache ends.
    def falling(size: int) -> float:
        return 1e-5 + size / (1e10 if size <= nr.MIB else 2e9)

    (found,) = fit_report(nr.report(nr.sweep("all_reduce", RANKS, falling)))
    assert found.measured_saturation(0.9) in (nr.MIB // 2, nr.MIB)
