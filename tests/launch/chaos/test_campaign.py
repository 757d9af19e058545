"""What the campaign makes of its runs; `python tests/campaign.py` runs them."""

import json

import torch
from campaign import Run, as_report, equal, show, summary

from moelstrom.launch.chaos.injector import Injection
from moelstrom.launch.chaos.recovery import Recovery, Report, Samples


def run(seed: int, *, lost: int = 0, same: bool | None = True, overcome: bool = True) -> Run:
    fault = Injection(0, "kill", 10.0, 7, 10.0, 1, "here", "", True)
    recovery = Recovery(fault, overcome, 0.1, 0.2, 3.0 + seed, 0.5, 3.8 + seed, 2)
    report = Report(
        exit_code=0,
        message="",
        steps=40,
        restarts=1,
        not_reached=0,
        wall_s=20.0,
        goodput=0.5,
        samples=Samples(lost, 0, 0),
        recoveries=[recovery],
        events=[{"kind": "step", "time": 9.0, "step": 7}],
    )
    return Run(seed, "elastic" if same is None else "disk", report, same, 0.0)


def test_a_report_survives_its_json() -> None:
    report = run(0).report
    assert as_report(json.loads(json.dumps(report.as_json()))) == report


def test_the_summary_counts_what_went_wrong() -> None:
    found = summary([run(0), run(1, lost=8), run(2, same=False), run(3, same=None)], 60.0)
    assert found["faults"] == found["overcome"] == 4 and found["finished"] == 4
    assert found["samples_lost"] == 8 and found["samples_repeated"] == 0
    assert found["same_end"] == 2 and found["compared"] == 3
    assert found["phases"]["down_s"]["median"] == 5.3 and found["most_steps_lost"] == {"kill": 2}
    assert summary([run(0, overcome=False)], 1.0)["overcome"] == 0
    assert show(found).row_count == 10
    json.dumps(found)


def test_equal_is_bitwise() -> None:
    zero = {"a": torch.tensor([0.0, 1.0])}
    assert equal(zero, {"a": torch.tensor([0.0, 1.0])})
    assert not equal(zero, {"a": torch.tensor([0.0, 1.0 + 2**-23])})
    assert not equal(zero, {**zero, "b": torch.zeros(1)})
