"""The benchmark's parts that need no GPU: shapes, peers at a small width, tolerances, report."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from moelstrom import UserError
from moelstrom.kernels.bench import cases, report
from moelstrom.launch.commands.kernels import app

pytest.importorskip("triton")
from moelstrom.kernels.bench import accuracy, peers


@given(st.integers(1, 300), st.integers(1, 200), st.sampled_from(cases.LOADS))
def test_loads(rows_each: int, experts: int, load: str) -> None:
    total = rows_each * experts
    counts = cases.loads(total, experts, load)
    assert sum(counts) == total
    if load == "balanced":
        assert set(counts) == {rows_each}
    elif experts > 1 and rows_each > 50:
        assert max(counts) / min(counts) == pytest.approx(cases.SKEW, rel=0.1)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(1, 8), st.integers(0, 99))
def test_route_gives_every_expert_its_count(tokens: int, top_k: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    experts = 2 * top_k + 1
    counts = cases.loads(tokens * top_k, experts, "skewed")
    chosen = cases.route(counts, tokens, g)
    assert chosen.shape == (tokens, top_k)
    assert sorted(chosen.flatten().bincount(minlength=experts)) == sorted(counts)
    ranked = chosen.sort(1).values
    assert (ranked[:, 1:] != ranked[:, :-1]).all()


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch) -> cases.LayerCase:
    monkeypatch.setattr(cases, "DEVICE", "cpu")
    return cases.make(cases.Width(64, 32, 8, 2), "balanced", 64)


@pytest.mark.parametrize("scope", peers.SCOPES)
def test_contenders_compute_the_same_layer(case: cases.LayerCase, scope: str) -> None:
    makers = {name: m for name, m in peers.SCOPES[scope].items() if "compiled" not in name}
    ours = makers.pop(peers.OURS)(case)
    assert ours.output is not None
    compared = 0
    for name, make in makers.items():
        # On a CPU liger-kernel has no driver, and transformers may not be there.
        try:
            pair = make(case)
            gradients = pair.both()
        except (RuntimeError, ImportError):
            continue
        if pair.output is not None:
            compared += 1
            assert accuracy.compare(name, pair.output(), ours.output()).ok
            for a, b in zip(gradients, ours.both(), strict=True):  # type: ignore[call-overload]
                assert accuracy.compare(name, a, b).ok
    assert compared


def test_chains_do_the_layers_products(case: cases.LayerCase) -> None:
    # 2 M N K of every product they call, against the formula that rates are given by.
    for make in (peers.dense_chain, peers.distinct_bmm):
        for backward in (False, True):
            pair = make(case)
            with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
                (pair.both if backward else pair.forward)()
            assert counter.get_total_flops() == case.width.flops(64, backward)


def test_tolerances_see_one_wrong_row_and_nan() -> None:
    expected = torch.randn(4096, 64)
    noise = expected * (1 + 2e-3 * torch.randn_like(expected))
    assert accuracy.compare("close", noise, expected).ok
    assert not accuracy.compare("scaled", 1.02 * expected, expected).ok
    wrong = noise.clone()
    wrong[17] *= 1.1
    assert accuracy.compare("one row", wrong, expected).whole < accuracy.WHOLE
    assert not accuracy.compare("one row", wrong, expected).ok
    wrong[17] = torch.nan
    assert not accuracy.compare("NaN", wrong, expected).ok


def test_random_shapes_cover_the_hard_loads() -> None:
    shapes = [accuracy.random_counts(index) for index in range(100)]
    assert any(len(counts) == 512 for counts, _, _ in shapes)
    assert any(sum(c > 0 for c in counts) == 1 < len(counts) for counts, _, _ in shapes)
    assert any(counts.count(0) > len(counts) // 2 for counts, _, _ in shapes)
    assert all(sum(counts) >= 1 for counts, _, _ in shapes)


def _results() -> dict[str, Any]:
    timing = {"median_ms": 2.0, "p10_ms": 1.9, "p90_ms": 2.2, "rounds": 25, "peak_bytes": 1 << 30}
    timings = [
        {"width": "d64", "load": load, "scope": "experts", "pass": direction, "contender": name}
        | {"tflops": 500.0, "share_of_dense": share, **timing}
        for direction, load, _ in report.COLUMNS
        for name, share in ((peers.OURS, 0.91), (peers.DENSE, 1.0))
    ]
    stream = {"operator": "copy", "contender": "torch", "bytes": 8, "bytes_per_s": 3e12}
    versus = {"shape": "2x8x8", "contender": "torch", "speedup": 1.0, **timing}
    return {
        "gpu": {"name": "a GPU"},
        "timings": timings,
        "streams": [stream | {"share_of_copy": None} | timing],
        "newton_schulz": [versus],
        "cross_entropy": [],
    }


def test_report(tmp_path: Path) -> None:
    results = _results()
    shares, streams, newton_schulz = report.tables(results)
    cells = [cell for column in shares.columns for cell in column.cells]
    assert cells.count("0.910") == 4 and cells.count("1.000") == 4
    assert list(streams.columns[3].cells) == ["3000"]
    assert newton_schulz.row_count == 1
    report.plot(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_needs_a_gpu() -> None:
    outcome = CliRunner().invoke(app, ["bench", "--quick"])
    assert isinstance(outcome.exception, UserError)
    assert "no GPU" in str(outcome.exception) and "kernels check" in str(outcome.exception)
