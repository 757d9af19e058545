"""Print how closely DeepSpeed follows the native engine: `python tests/moe/engines/parity.py`.

Trains the tests' tiny model for 20 steps on two CPU ranks under every engine, layout and precision
that the two share.
"""

import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))
from engine_runs import DEEPSPEED_LAYOUTS, Case, curves
from ranks import run_ranks

RANKS, STEPS = 2, 20
COLUMNS = ("engine", "layout", "ZeRO", "precision", "final loss", "|Δ loss|", "|Δ norm|")


def row(case: Case, found: dict[Case, torch.Tensor]) -> list[str]:
    """A line of the table, with the largest differences from native on the same layout."""
    trained, reference = found[case][:-1], found[case.native][:-1]
    loss, norm = (trained - reference).abs().amax(dim=0).tolist()
    differences = ["-", "-"] if case == case.native else [f"{loss:.1e}", f"{norm:.1e}"]
    layout = f"dp{RANKS} ep{case.ep}"
    final = f"{trained[-1, 0]:.6f}"
    return [case.engine, layout, str(case.zero), case.precision, final, *differences]


def main() -> None:
    """Run every case and print the table."""
    console = Console()
    title = f"largest difference from native on the same layout, {STEPS} steps"
    table = Table(*COLUMNS, title=title)
    with console.status("training"):
        for precision in ("fp32", "bf16"):
            cases = [Case("native", ep, zero, precision) for ep in (1, 2) for zero in (0, 1)]
            cases += [Case("deepspeed", *layout, precision) for layout in DEEPSPEED_LAYOUTS]
            found, *_ = run_ranks(RANKS, curves, cases, STEPS)
            for case in cases:
                table.add_row(*row(case, found))
            table.add_section()
    console.print(table)


if __name__ == "__main__":
    main()
