"""The exact cover check, against a count of every element."""

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slab_covers import covers, slab

from moelstrom.moe.checkpoint.cover import check_cover
from moelstrom.moe.state.source import Slab


def counts(slabs: list[Slab], numel: int) -> np.ndarray:
    """How often each element is held; elements behind the end are counted, too."""
    held = np.zeros(max([numel, *(s.end for s in slabs)]), int)
    for s in slabs:
        for row in range(s.rows):
            held[s.offset + row * s.stride :][: s.run] += 1
    return held


@settings(deadline=None, max_examples=100)
@given(covers())
def test_every_cover_is_accepted(cover: tuple[list[Slab], int]) -> None:
    assert (counts(*cover) == 1).all()
    check_cover(*cover)


@settings(deadline=None, max_examples=200)
@given(covers(), st.data())
def test_every_edit_is_judged_as_the_count_says(
    cover: tuple[list[Slab], int], data: st.DataObject
) -> None:
    slabs, numel = list(cover[0]), cover[1]
    index = data.draw(st.integers(0, len(slabs) - 1))
    old = slabs[index]
    edit: dict[str, Any] = {
        "offset": data.draw(st.integers(0, numel + 3)),
        "run": data.draw(st.integers(1, old.stride or numel)),
        "rows": data.draw(st.integers(1, 7)) if old.rows > 1 else 1,
    }
    kept = data.draw(st.sampled_from(["offset", "run", "rows", "none"]))
    new = {f: getattr(old, f) if f == kept else value for f, value in edit.items()}
    slabs[index] = slab(**new, stride=old.stride if new["rows"] > 1 else 0)
    agree(slabs, numel + data.draw(st.integers(-1, 1)))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 5), st.integers(1, 3)), max_size=5))
def test_random_slabs_are_judged_as_the_count_says(drawn: list[tuple[int, int, int]]) -> None:
    slabs = [slab(o, run, rows, 5 if rows > 1 else 0) for o, run, rows in drawn]
    agree(slabs, sum(s.numel for s in slabs))


def agree(slabs: list[Slab], numel: int) -> None:
    exact = numel == 0 == len(slabs) or bool((counts(slabs, numel) == 1).all())
    exact &= all(s.end <= numel for s in slabs)
    try:
        check_cover(slabs, numel)
    except ValueError:
        assert not exact
    else:
        assert exact


@pytest.mark.parametrize(
    ("slabs", "words"),
    [
        ([slab(0, 2, 3, 4), slab(2, 2, 2, 4)], r"elements \[10, 12\) are missing"),
        ([slab(0, 2, 3, 4), slab(2, 2, 3, 4), slab(5, 1)], r"elements \[5, 6\) are held twice"),
        ([slab(0, 2, 3, 4), slab(2, 2, 4, 4)], "a piece ends at 16, but the tensor has 12"),
        ([slab(0, 2, 3, 4), slab(2, 1, 3, 3)], "strides 3 and 4, not one"),
        ([], r"elements \[0, 12\) are missing"),
    ],
)
def test_the_message_names_the_elements(slabs: list[Slab], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_cover(slabs, 12)


def test_a_hostile_size_costs_nothing() -> None:
    started = time.perf_counter()
    half, size = 2**30, 2**60
    check_cover([slab(0, half, half, 2 * half), slab(half, half, half, 2 * half)], 2 * size)
    check_cover([slab(i, 1, 2**40, 20_000) for i in range(20_000)], 20_000 * 2**40)
    assert time.perf_counter() - started < 5
