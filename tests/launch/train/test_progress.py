"""What a person sees of a run: every record that matters, and no surprise from its content."""

import io
from typing import Any

import pytest
from rich.console import Console

from moelstrom.launch.train.progress import Display
from moelstrom.launch.train.records import heard


def shown(
    records: list[dict[str, Any]], terminal: bool = False, interval: int = 10, width: int = 200
) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=width, color_system=None)
    with Display(console, 100_000, interval) as display:
        for record in records:
            display(heard(record))
    return out.getvalue()


def step(number: int, seconds: float = 0.5, **more: Any) -> dict[str, Any]:
    facts = {"loss": 3.25, "tokens_per_s": 8192.0, "expert_balance": 1.5, "grad_norm": 0.75}
    return {"kind": "step", "step": number, "step_s": seconds, "lr": 2e-3, **facts, **more}


def test_steps_are_shown_at_the_interval() -> None:
    lines = shown([step(n) for n in range(1, 31)]).splitlines()
    assert [line.split()[1] for line in lines] == [
        "1/100000",
        "10/100000",
        "20/100000",
        "30/100000",
    ]
    facts = "loss 3.2500", "8,192 tok/s", "balance 1.50", "grad 0.750", "lr 2.00e-03", "ETA 13:53:"
    assert all(fact in lines[0] for fact in facts), lines[0]
    assert "mfu" not in lines[0]
    assert "mfu 41.2%" in shown([step(1, mfu=0.4123)])


@pytest.mark.parametrize(
    "seconds, eta", [(0.001, "0:01:40"), (0.5, "13:53:20"), (5.0, "5 days, 18:53:15")]
)
def test_time_left_counts_days(seconds: float, eta: str) -> None:
    assert shown([step(1, seconds)]).rstrip().endswith(f"ETA {eta}")


def test_time_left_follows_the_recent_steps() -> None:
    slow, fast = step(1, 100.0), [step(n, 1.0) for n in range(2, 101)]
    assert shown([slow, *fast], interval=100).rstrip().endswith("ETA 1 day, 3:45:00")


def test_other_records() -> None:
    text = shown(
        [
            {"kind": "run", "step": 5, "steps": 10},
            {"kind": "resume", "step": 5, "folder": "runs/[x]/step-5"},
            {"kind": "eval", "step": 8, "loss": {"code": 2.5, "prose": 3.0}},
            {"kind": "checkpoint", "step": 8, "bytes": 2e6, "stall_ms": 1.25, "write_s": 0.5},
            {"kind": "checkpoint_note", "step": 8, "message": "kept [/bold] as it is"},
            {"kind": "waiting", "time": 1.0, "message": "for [red]room"},
            {
                "kind": "timeline",
                "time": 1.0,
                "phase": "killed",
                "restart": 0,
                "rank": 1,
                "seconds": 2.0,
            },
        ]
    )
    assert text.splitlines() == [
        "step 5  resumed from runs/[x]/step-5",
        "step 8  validation loss: code 2.5000  prose 3.0000",
        "step 8  checkpoint: 2.0 MB, training stood still 1.2 ms, written in 0.50 s",
        "kept [/bold] as it is",
        "for [red]room",
        "cluster  killed  seconds 2.00  rank 1",
    ]


def test_what_is_not_for_a_person_is_passed_over() -> None:
    events = ["alive", "phase", "error", "done", "of tomorrow"]
    assert shown([{"kind": kind, "time": 1.0, "step": 3} for kind in events]) == ""
    assert shown([{"kind": "step", "step": 10}]) == ""


def test_a_terminal_of_80_columns_gets_a_bar_and_the_facts() -> None:
    records = [{"kind": "run", "step": 0}, step(1), step(2)]
    text = shown(records, terminal=True, width=80)
    assert any("train" in line and "2/100000 ETA 13:53:19" in line for line in text.splitlines())
    assert "lr 2.00e-03\n" in text.replace("\r", "")
    assert text.count("step 1/100000") == 1


def test_a_resume_shows_the_steps_that_are_done() -> None:
    resumed = {"kind": "resume", "step": 5000, "folder": "runs/x/step-5000"}
    assert "5000/100000" in shown([resumed], terminal=True, width=80)
