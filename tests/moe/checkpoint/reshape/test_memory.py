"""Peak memory stays within the budget, for a checkpoint eight times as large."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import json, sys
from pathlib import Path
from reshape_states import MODEL, synthetic
from moelstrom.moe.checkpoint.layouts.holdings import holdings
from moelstrom.moe.checkpoint.layouts.layout import make_target
from moelstrom.moe.checkpoint.reader import Reader
from moelstrom.moe.checkpoint.reshape.plan import make_plan
from moelstrom.moe.checkpoint.reshape.run import reshape
from moelstrom.moe.config import ModelConfig, OptimizerConfig

folder, budget = Path(sys.argv[1]), int(sys.argv[2])
model = ModelConfig(**{**MODEL.model_dump(), "vocab_size": 120_000, "hidden_size": 64})


def go(source, out, **layout):
    held = holdings(source.tensors, model, make_target(**layout), OptimizerConfig())
    plan = make_plan(source, held, memory=budget, readers=4)
    return Reader(reshape(plan, folder / out)), plan


def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


source, _ = go(synthetic(folder, model), "a", dp=2)
Path("/proc/self/clear_refs").write_text("5")
before = peak()
_, plan = go(source, "b", tp=4, dp=2)
print(json.dumps([source.nbytes, plan.peak_bytes, peak() - before]))
"""


def test_peak_rss_grows_by_no_more_than_the_budget(tmp_path: Path) -> None:
    budget = 2**24
    tests = Path(__file__).parents[3]
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(budget)],
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": f"{tests}:{':'.join(sys.path)}"},
        check=True,
    )
    size, planned, grown = json.loads(ran.stdout)
    assert size >= 8 * budget
    assert planned <= budget
    assert grown <= budget
