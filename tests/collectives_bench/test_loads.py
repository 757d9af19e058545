"""How uneven an all-to-all-v is."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moelstrom import UserError
from moelstrom.collectives_bench.loads import counts, read_load, shares


@given(
    st.sampled_from(["balanced", "zipf:0", "zipf:1.2", "zipf:3"]),
    st.integers(1, 12),
    st.integers(0, 2**24),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.integers(0, 5),
)
def test_every_rank_sends_all_it_has(load: str, n: int, units: int, unit: int, seed: int) -> None:
    parts = shares(load, None, n, seed)
    table = counts(parts, n * units * unit, unit)
    assert (table.sum(axis=1) == n * units * unit).all()
    assert (table >= 0).all() and (table % unit == 0).all()
    assert np.abs(table - parts * n * units * unit).max() <= unit


def test_balanced_is_even_and_zipf_is_not() -> None:
    assert (counts(shares("balanced", None, 4, 0), 64, 4) == 16).all()
    flat, steep = (shares(f"zipf:{s}", None, 4, 0)[0] for s in (0, 2))
    assert flat == pytest.approx(0.25)
    # The most popular of 32 experts gets 1 / sum(1 / k^2).
    assert steep.max() > 0.6
    assert steep.max() == shares("zipf:2", None, 4, 0)[3].max()


def write_log(path: Path, *layers: list[list[int]]) -> None:
    records = [{"kind": "router", "step": i, "expert_load": load} for i, load in enumerate(layers)]
    lines = [{"kind": "run"}, *records, {"kind": "step", "loss": 1.0}]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"kind": "rou')


def test_a_log_gives_its_last_and_least_even_layer(tmp_path: Path) -> None:
    write_log(
        tmp_path / "metrics.jsonl",
        [[9, 0, 0, 0]],
        [[2, 2, 2, 2], [6, 0, 1, 1], [0, 0, 0, 0]],
    )
    for path in (tmp_path, tmp_path / "metrics.jsonl"):
        load = f"log:{path}"
        found = shares(load, read_load(load), 2, 0)
        assert found == pytest.approx(np.array([[0.75, 0.25]] * 2))
    with pytest.raises(UserError, match="has 4 experts for 5 ranks"):
        shares(load, read_load(load), 5, 0)


def test_a_matrix_keeps_its_proportions(tmp_path: Path) -> None:
    path = tmp_path / "traffic"
    path.write_text("0 1 3\n2,0,0\n\n0 0 0\n")
    table = read_load(f"matrix:{path}")
    found = shares("matrix:traffic", table, 3, 0)
    assert found == pytest.approx(np.array([[0, 0.25, 0.75], [0.5, 0, 0], [0, 0, 0]]))
    assert counts(found, 64, 4).tolist() == [[0, 16, 48], [32, 0, 0], [0, 0, 0]]
    # A smaller group is the first rows and columns.
    assert shares("matrix:traffic", table, 2, 0) == pytest.approx(np.array([[0, 0.5], [1, 0]]))
    with pytest.raises(UserError, match="3 rows for 4 ranks"):
        shares("matrix:traffic", table, 4, 0)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("1 2\n3\n", "a row of numbers"),
        ("1 2\n3 x\n", "'x'"),
        ("1 2 3\n4 5 6\n", "not square"),
        ("", "not square"),
        ("0 -1\n1 0", "negative"),
        ("0 inf\n1 0", "infinite"),
    ],
)
def test_a_broken_matrix_is_refused(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "traffic"
    path.write_text(text)
    with pytest.raises(UserError, match=named):
        read_load(f"matrix:{path}")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for kind in ("matrix", "log"):
        with pytest.raises(UserError, match=f"loads: {kind}:.*No such file"):
            read_load(f"{kind}:{tmp_path / 'none'}")
    (tmp_path / "metrics.jsonl").write_text('{"kind": "step"}\n[]\nnonsense\n')
    with pytest.raises(UserError, match="no record of kind 'router'"):
        read_load(f"log:{tmp_path}")
    assert read_load("zipf:1") is None
