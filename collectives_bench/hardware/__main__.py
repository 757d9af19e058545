"""Measure this process's device without the command line or Ray:
`python -m moelstrom.collectives_bench.hardware OUT.json`."""

import sys
from pathlib import Path
from typing import Any

import torch

from ..origin import describe
from ..report.collect import Collector
from .config import HardwareConfig
from .run import run
from .summary import summarise


def main(out: Path) -> None:
    """Measure all defaults."""
    config = HardwareConfig()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    header = describe("hardware", config, device)
    assert header is not None
    collector = Collector(header, out)

    def emit(kind: str, **fields: Any) -> None:
        collector({"kind": kind, **fields})
        print(kind, fields.get("what") or fields.get("value"), flush=True)

    run(config, device, emit)
    collector.report.analysis = {"hardware": summarise(collector.report.hardware)}
    collector.end("complete")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
