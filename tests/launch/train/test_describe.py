"""A step's figures: speed, balance, FLOPs utilisation, and what a skipped step has not."""

import math

import pytest
import torch

from moelstrom.launch.config import load
from moelstrom.launch.train import describe
from moelstrom.launch.train.describe import Describer, balance
from moelstrom.launch.train.records import to_json
from moelstrom.moe.engines.base import StepMetrics
from moelstrom.moe.sizing.counts import flops_per_token
from moelstrom.moe.vocabulary import sized

LOAD = [torch.tensor([8, 8, 8, 8]), torch.tensor([24, 0, 0, 8])]


def metrics(loss: float = 2.5, skipped: bool = False) -> StepMetrics:
    return StepMetrics(loss, 0.25, 1.5, 1e-3, 900, LOAD, skipped)


def describer(monkeypatch: pytest.MonkeyPatch, peak: float | None) -> Describer:
    monkeypatch.setattr(describe, "peak_flops", lambda device: peak)
    run = load("tiny", ["data.global_batch_size=16", "data.seq_len=128", "log_interval=4"])
    return Describer(run, sized(run.model, 257), 2, torch.device("cpu"))


def test_a_step_in_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    found = describer(monkeypatch, 1e12).step(3, 0.5, {"data": 0.1234567}, (32, 48), metrics())
    run = load("tiny")
    flops = flops_per_token(sized(run.model, 257), 128) * 16 * 128
    assert found.mfu == pytest.approx(flops / 0.5 / 2e12)
    assert (found.tokens_per_s, found.expert_balance, found.targets) == (4096.0, 3.0, 900)
    assert found.parts == {"data": 0.123457, "compute": 0.0, "wait": 0.0, "update": 0.0}
    assert (found.loss, found.aux_loss, found.grad_norm) == (2.5, 0.25, 1.5)
    assert found.skipped is None and found.samples == (32, 48)


def test_a_skipped_step_has_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    found = describer(monkeypatch, None).step(3, 0.5, {}, (32, 48), metrics(math.nan, skipped=True))
    keys = set(to_json(found))
    assert found.skipped and not keys & {"loss", "aux_loss", "grad_norm", "mfu"}


def test_loads_come_at_the_log_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    made = describer(monkeypatch, None)
    found = [made.routing(step, LOAD) for step in range(1, 9)]
    assert [record.step for record in found if record] == [4, 8]
    assert found[3] and found[3].expert_load == [load.tolist() for load in LOAD]
    assert made.routing(4, LOAD[:0]) is None


def test_balance_is_of_the_worst_layer() -> None:
    assert balance(LOAD) == 3.0 and balance(LOAD[:1]) == 1.0
    assert balance(LOAD[:0]) == 1.0 and balance([torch.zeros(4)]) == 0.0


@pytest.mark.parametrize(("kind", "peak", "said"), [("cuda", None, True), ("cuda", 1e12, False)])
def test_an_unknown_gpu_is_said_instead_of_mfu(
    monkeypatch: pytest.MonkeyPatch, kind: str, peak: float | None, said: bool
) -> None:
    assert describer(monkeypatch, None).remark == ""
    monkeypatch.setattr(describe, "device_name", lambda device: "NVIDIA Z1")
    monkeypatch.setattr(describe, "peak_flops", lambda device: peak)
    run = load("tiny")
    found = Describer(run, sized(run.model, 257), 2, torch.device(kind)).remark
    assert found.startswith("NVIDIA Z1: its peak is not listed") == said == bool(found)
