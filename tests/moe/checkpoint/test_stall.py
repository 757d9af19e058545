"""The benchmark of the save's stall runs and counts what it says."""

from pathlib import Path

import torch
from ranks import run_ranks

from moelstrom.moe.checkpoint import stall


def measured(path: Path) -> dict:
    return stall.measure("2m", 2, path, torch.device("cpu"))


def test_two_pairs(tmp_path: Path) -> None:
    (result,) = run_ranks(1, measured, tmp_path)
    assert len(result["pairs"]) == 2 and not any((tmp_path / "behind").parent.iterdir())
    for row in result["pairs"]:
        # Master weights and two moments of each.
        assert row["bytes"] > 12 * result["parameters"]
        parts = row["export_ms"] + row["save_ms"] + row["settle_ms"]
        assert abs(row["stall_ms"] - parts) < 1e-6 and parts > 0
        assert row["share"] == row["stall_ms"] / 1e3 / row["synchronous_write_s"]
        assert row["synchronous_write_s"] < row["synchronous_s"]
    assert result["worst_share"] >= result["median"]["share"]
