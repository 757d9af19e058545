"""The values that tell a wrong result."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moelstrom.collectives_bench import codes as module
from moelstrom.collectives_bench.codes import EXACT, PERIOD, SUM, Codes, poison

dtypes = st.sampled_from(list(EXACT))


def filled(codes: Codes, row: int, dtype: torch.dtype, count: int) -> torch.Tensor:
    buffer = torch.empty(count, dtype=dtype)
    codes.fill(buffer, row)
    return buffer


@settings(deadline=None, max_examples=40)
@given(dtypes, st.integers(1, 20), st.integers(1, 300), st.randoms())
def test_sums_are_exact_in_any_order(
    dtype: torch.dtype, n: int, count: int, random: object
) -> None:
    codes = Codes(range(n), dtype, 0)
    order = [*range(n)]
    random.shuffle(order)  # type: ignore[attr-defined]
    total = torch.zeros(count, dtype=dtype)
    for row in order:
        total += filled(codes, row, dtype, count)
    assert codes.wrong(total, SUM) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_sums_of_more_ranks_than_the_dtype_counts_to(dtype: torch.dtype) -> None:
    n = 700
    codes = Codes(range(n), dtype, 0)
    total = torch.zeros(500, dtype=dtype)
    for row in range(n):
        total += filled(codes, row, dtype, 500)
    assert codes.wrong(total, SUM) == 0
    # One rank left out shows, whichever it is.
    assert all(codes.wrong(total - filled(codes, r, dtype, 500), SUM) for r in range(0, n, 23))


@settings(deadline=None)
@given(dtypes, st.integers(2, 40), st.data())
def test_another_ranks_values_are_wrong(dtype: torch.dtype, n: int, data: st.DataObject) -> None:
    row, other = data.draw(st.permutations(range(n)))[:2]
    codes = Codes(range(n), dtype, 0)
    buffer = filled(codes, row, dtype, 256)
    assert codes.wrong(buffer, row) == 0
    assert codes.wrong(buffer, other) > 20


@settings(deadline=None)
@given(dtypes, st.integers(0, 2**35), st.integers(0, 24))
def test_a_shift_by_any_chunk_is_wrong(dtype: torch.dtype, start: int, power: int) -> None:
    codes = Codes(range(4), dtype, 0)
    big = filled(codes, 2, dtype, PERIOD + 256)
    here = start % PERIOD
    piece = big[here : here + 256]
    assert codes.wrong(piece, 2, start) == 0
    assert codes.wrong(piece, 2, start + 2**power) > 20


def test_ranks_of_another_group_are_wrong() -> None:
    here, there = Codes((0, 1), torch.float32, 0), Codes((2, 3), torch.float32, 0)
    buffer = filled(there, 0, torch.float32, 256)
    assert here.wrong(buffer, 0) > 200 and here.wrong(buffer, SUM) > 200


@given(dtypes, st.integers(0, 255))
def test_one_wrong_element_and_what_never_came(dtype: torch.dtype, where: int) -> None:
    codes = Codes(range(2), dtype, 0)
    buffer = filled(codes, 1, dtype, 256)
    buffer[where] += 1
    assert codes.wrong(buffer, 1) == 1
    poison(buffer)
    assert codes.wrong(buffer, 1) == 256 and codes.wrong(buffer, SUM) == 256


def test_long_buffers_are_compared_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 2 * PERIOD)
    codes, count = Codes(range(2), torch.uint8, 0), 5 * PERIOD + 100
    buffer = filled(codes, 0, torch.uint8, count)
    assert codes.wrong(buffer, 0) == 0
    for where in (0, 2 * PERIOD, 5 * PERIOD - 1, 5 * PERIOD, count - 1):
        buffer[where] += 1
    assert codes.wrong(buffer, 0) == 5
