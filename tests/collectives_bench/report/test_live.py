"""What a person sees while a benchmark runs."""

import io
from dataclasses import asdict, replace
from typing import Any

import bench_reports
from rich.console import Console

from moelstrom.collectives_bench.report.live import KEPT_ROWS, LiveView


def watched(events: list[dict[str, Any]], kind: str = "collectives", **options: Any) -> str:
    console = Console(file=io.StringIO(), width=120, **options)
    with LiveView(console, kind) as view:
        for event in events:
            view(event)
    return console.file.getvalue()  # type: ignore[attr-defined]


def run() -> list[dict[str, Any]]:
    report = bench_reports.collectives()
    events: list[dict[str, Any]] = [
        {"kind": "header", "report": asdict(replace(report, collectives=[], skipped=[]))}
    ]
    for step, c in enumerate(report.collectives):
        for rank_step in (step, step - 1):  # A rank behind the others moves nothing back.
            events.append({"kind": "step", "step": rank_step, "total": 46, "what": "[/] brackets"})
        events.append({"kind": "measurement", "value": asdict(c)})
    return [*events, {"kind": "skip", "value": asdict(report.skipped[0])}, {"kind": "other"}]


def squeezed(line: str) -> str:
    return " ".join(line.split())


def test_a_pipe_gets_a_line_for_each_measurement() -> None:
    lines = watched(run()).splitlines()
    report = bench_reports.collectives()
    assert lines[0] == "4 ranks, gloo: a (2 x a CPU), b (2 x a CPU)"
    assert squeezed(lines[1]) == "op group size algbw busbw p50 p95 max wrong"
    assert len(lines) == 3 + len(report.collectives)
    assert squeezed(lines[2]) == (
        "all_reduce fp32 world n=4 1 KiB 49.9 MB/s 74.9 MB/s 20.5 us 24.6 us 30.8 us 0"
    )
    assert "zipf:1.2" in lines[4] and "node n=2 x2" in lines[6]
    assert lines[-1].startswith("not measured: all_reduce fp32 world at 8 GiB: needs 16 GiB")


def test_a_terminal_gets_a_table_that_moves() -> None:
    text = watched(run(), force_terminal=True, force_interactive=True)
    last = text[text.rindex("┏") :]
    assert last.count("pairs") == 6 and last.count("│\n") <= KEPT_ROWS + 1
    assert "[/] brackets" in last and "45/46" in last


def test_hardware_rows() -> None:
    value = asdict(bench_reports.hardware().hardware[0])
    text = watched([{"kind": "measurement", "value": value}], "hardware")
    assert text.splitlines()[1].split()[:3] == ["memory", "copy", "bf16"]
    assert "bytes 256 KiB moved 512 KiB" in text and "20.0 GB/s" in text
