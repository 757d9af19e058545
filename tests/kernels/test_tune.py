"""Tuning's parts that need no GPU: candidates by budget, references, winners, the tuning file."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from moelstrom import UserError
from moelstrom.kernels import tuning
from moelstrom.kernels.targets import TARGETS, find
from moelstrom.launch.commands.kernels import app

pytest.importorskip("triton")
from moelstrom.kernels.bench import accuracy, cases, products, report, tune
from moelstrom.kernels.bench.candidates import ORDER, candidates, describe, now
from moelstrom.kernels.grouped_mlp import configs, grouped_mlp_reference

Row = dict[str, Any]
KEYS = [configs.shape_class(width.hidden, width.ffn) for width in cases.WIDTHS]


@pytest.mark.parametrize("operator", configs.OPERATORS)
@pytest.mark.parametrize("name", TARGETS)
def test_candidates_keep_to_the_budgets(name: str, operator: str) -> None:
    target, accumulators = TARGETS[name], 2 if operator == "gate_up" else 1
    found = candidates(operator, target)
    assert 5 <= len(found) <= 28
    assert len({json.dumps(c) for c in found}) == len(found)
    for c in found:
        full = {"SUBTILES": 1} | c
        for form in (full, configs.adding(full)) if operator in products.WEIGHTS else (full,):
            # A gradient's results in one piece are bf16: as large as the fp32 sums in two.
            if operator not in products.WEIGHTS or form["SUBTILES"] > 1:
                assert configs._shared(operator, target, form, 2) <= target.shared_bytes
        assert c["num_warps"] <= target.max_warps
        threads = c["num_warps"] * target.warp_size
        held = accumulators * c["BLOCK_M"] * c["BLOCK_N"] // threads
        assert c["PROGRAMS"] <= target.occupancy(threads, held, 0)
        assert target.tensor_descriptors or not c["FLATTEN"]
        options = set(c) - set(ORDER)
        assert not options or target.backend == "hip"


@pytest.mark.parametrize("operator", configs.OPERATORS)
def test_candidates_hold_what_the_sweep_found(
    operator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = find("sm90")
    entries = tuning.committed(f"grouped_mlp.{operator}", target)
    # What launches take now enters the list: without a file, that is a default by budget.
    monkeypatch.setattr(tuning, "_file", lambda name: {})
    found = candidates(operator, target)
    assert all(c in found for c in entries.values())
    assert all(now(operator, target, width) in found for width in cases.WIDTHS)


@pytest.fixture
def operands(monkeypatch: pytest.MonkeyPatch) -> products.Operands:
    monkeypatch.setattr(cases, "DEVICE", "cpu")
    torch.manual_seed(0)
    return products.draw([5, 0, 9, 2], 32, 16)


def test_references_are_the_layers_gradients(operands: products.Operands) -> None:
    """The six products chained are the expert MLP and its gradients by autograd."""
    t = operands
    x, gate_up, down = (w.float().requires_grad_() for w in (t.x, t.gate_up, t.down))
    y = grouped_mlp_reference(x, gate_up, down, t.offsets)
    wanted = torch.autograd.grad(y, (x, gate_up, down), t.dy.float())

    def chained(operator: str, **given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        held = {f: getattr(t, f) for f in t.__dataclass_fields__} | given
        return products.reference(operator, products.Operands(**held))

    hidden, act = chained("gate_up")
    (out,) = chained("down", act=act)
    dhidden, again = chained("activation_gradient", hidden=hidden)
    (dx,) = chained("input_gradient", dhidden=dhidden)
    (dgate_up,) = chained("gate_up_gradient", dhidden=dhidden)
    (ddown,) = chained("down_gradient", act=act)
    got = (out, again, dx, dgate_up.view_as(gate_up), ddown.view_as(down))
    for a, b in zip(got, (y, act, *wanted), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("operator", configs.OPERATORS)
def test_dense_products_have_the_flops(operands: products.Operands, operator: str) -> None:
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        products.dense(operator, operands)()
    assert counter.get_total_flops() == products.flops(operator, 16, 32, 16)


def test_check_sees_a_wrong_kernel(
    operands: products.Operands, monkeypatch: pytest.MonkeyPatch
) -> None:
    factor = 1.0

    def launched(operator: str, t: Any, config: Any, sums: Any = None) -> Any:
        (right,) = products.reference(operator, t)
        right = factor * right.view_as(t.weight(operator))
        return lambda: (right if sums is None else sums + right,)

    monkeypatch.setattr(products, "launch", launched)
    checks = products.check("down_gradient", operands, {})
    assert len(checks) == 2 and all(c.ok for c in checks)
    factor = 1 + 3 * accuracy.WHOLE
    assert not any(c.ok for c in products.check("down_gradient", operands, {}))


def _timings(rates: dict[str, list[tuple[int, float, float | None]]]) -> list[Row]:
    """Rows of one operator from {class: [(which candidate, burst rate, final rate)]}."""
    found = candidates("down", find("sm90"))
    return [
        {
            "operator": "down",
            "key": key,
            "width": key,
            "dense_tflops": 700.0,
            "now": found[0],
            "rates": [
                {"config": found[i], "burst_tflops": burst, "tflops": final}
                for i, burst, final in mine
            ],
        }
        for key, mine in rates.items()
    ]


RATES: dict[str, list[tuple[int, float, float | None]]] = {
    KEYS[0]: [(0, 610.0, 600.0), (1, 600.0, 620.0), (2, 500.0, None)],
    KEYS[1]: [(1, 610.0, 600.0), (3, 900.0, 590.0), (0, 580.0, None)],
    KEYS[2]: [(2, 650.0, 640.0), (0, 640.0, 650.0), (1, 700.0, None)],
}


def test_winners() -> None:
    found = candidates("down", find("sm90"))
    # Fastest when timed again; "*" by the bursts of configs that all widths have: 1 here.
    assert tune.winners(_timings(RATES)) == {
        "grouped_mlp.down": dict(zip(KEYS, (found[1], found[1], found[0]), strict=True))
        | {"*": found[1]}
    }
    short = {key: RATES[key] for key in KEYS[:2]}
    assert tune.winners(_timings(short)) == {}
    lost = RATES | {KEYS[2]: [(0, 640.0, None)]}
    assert tune.winners(_timings(lost)) == {}


def test_table() -> None:
    results = {"target": "sm90", "gpu": {"name": "a GPU"}, "timings": _timings(RATES)}
    cells = [list(column.cells) for column in report.tuning(results).columns]
    assert cells[2][0] == describe(candidates("down", find("sm90"))[1])
    assert [column[0] for column in cells[3:]] == ["620", "600", "700", "0.89"]
    assert cells[4][1] == "-"


@pytest.mark.parametrize("name", ["gfx950", "sm90", "sm100"])
def test_render_is_the_committed_text(name: str) -> None:
    path = tuning.FOLDER / f"{name}.json"
    assert tuning.render(json.loads(path.read_text())) == path.read_text()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A copy of the tuning files, in use."""
    for path in tuning.FOLDER.glob("*.json"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(tuning, "FOLDER", tmp_path)
    tuning._file.cache_clear()
    yield tmp_path
    tuning._file.cache_clear()


@pytest.mark.parametrize("name", ["sm90", "gfx942"])
def test_commit_keeps_the_other_entries(folder: Path, name: str) -> None:
    target = find(name)
    winners = tune.winners(_timings(RATES))
    before = dict(tuning._file(name))
    before_down = before.pop("grouped_mlp.down", {})
    tuning.commit({"grouped_mlp.down": {"d64_f32": {"BLOCK_M": 64}}}, target)
    assert tuning.commit(winners, target) == folder / f"{name}.json"
    after = dict(json.loads((folder / f"{name}.json").read_text()))
    down = after.pop("grouped_mlp.down")
    assert after == before
    # Classes that this run did not time stay as well.
    assert down == before_down | {"d64_f32": {"BLOCK_M": 64}} | winners["grouped_mlp.down"]
    assert list(down)[-1] == "*"
    for key, config in winners["grouped_mlp.down"].items():
        assert tuning.tuned("grouped_mlp.down", target, key, {"GROUP_M": 99}) == config
    assert configs.config("down", target, 2048, 2048, 2) == winners["grouped_mlp.down"][KEYS[0]]


def test_select() -> None:
    assert tune.select(None) == list(configs.OPERATORS)
    assert tune.select(["grouped_mlp.down", "grouped_mlp.down"]) == ["down"]
    with pytest.raises(UserError, match="operator down: no tiles to tune; one of grouped_mlp"):
        tune.select(["down"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_needs_a_gpu() -> None:
    outcome = CliRunner().invoke(app, ["tune", "--operator", "grouped_mlp.down"])
    assert isinstance(outcome.exception, UserError)
    assert "kernels tune" in str(outcome.exception) and "no GPU" in str(outcome.exception)
