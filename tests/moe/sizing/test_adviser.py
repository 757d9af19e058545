"""Shapes meet their budget, proposals are the best that fit, and rules tell what is broken."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moelstrom import UserError
from moelstrom.kernels.targets import find
from moelstrom.moe.config import LayoutConfig, ModelConfig
from moelstrom.moe.sizing import rules
from moelstrom.moe.sizing.adviser import OPTIMIZER, ZAYA1, advise
from moelstrom.moe.sizing.communication import Traffic
from moelstrom.moe.sizing.curves import data_sheet
from moelstrom.moe.sizing.memory import estimate_memory
from moelstrom.moe.sizing.proposal import Finding, Proposal, Question
from moelstrom.moe.sizing.rules import RULES, View
from moelstrom.moe.sizing.shapes import (
    EXPERTS,
    TOLERANCE,
    TOP_K,
    Budget,
    Fixed,
    flop_budget,
    shapes,
    without_tables,
)
from moelstrom.moe.sizing.step import TrainingWork, predict_step

SHEET = data_sheet(find("gfx942"))
BUDGET = Budget(8.3e9, 0.76e9)
QUESTION = Question(BUDGET, "as asked", 65_536, TrainingWork(2**22, 4096), 64, 8, 4096)


class Quiet:
    """A network that takes no time, or as much as it is told for each exchange of tokens."""

    label = "quiet"

    def __init__(self, tokens: float = 0.0) -> None:
        self.tokens = tokens

    def predict(self, model: ModelConfig, layout: LayoutConfig, *_: Any) -> Traffic:
        return Traffic(0.0, 0.0, self.tokens if layout.ep > 1 else 0.0)


@settings(deadline=None, max_examples=15)
@given(total=st.floats(1e8, 1e12), sparsity=st.floats(3, 20))
def test_shapes_meet_their_budget(total: float, sparsity: float) -> None:
    budget = Budget(total, total / sparsity)
    found = list(shapes(budget, 65_536, Fixed()))
    assert found
    for model in found[:: max(1, len(found) // 9)]:
        size = without_tables(model)
        assert abs(size.total / budget.total - 1) <= TOLERANCE
        assert abs(size.active / budget.active - 1) <= TOLERANCE
        assert model.moe.num_experts in EXPERTS and model.moe.top_k in TOP_K
        widths = model.hidden_size, model.head_dim, model.moe.expert_size
        assert all(width % 64 == 0 for width in widths)
        assert 24 <= model.hidden_size / model.num_layers <= 200
        # One weight, normalised, is always 1.
        assert model.moe.normalize_top_k == (model.moe.top_k > 1)
        # It is a model: pydantic's own checks did not run on what was copied.
        ModelConfig.model_validate(model.model_dump())


def test_heads_are_wider_from_a_thousand_channels_on() -> None:
    found = [*shapes(Budget(6e8, 1.2e8), 65_536, Fixed())]
    assert {960, 1024} <= {model.hidden_size for model in found}
    assert all(model.head_dim == (128 if model.hidden_size >= 1024 else 64) for model in found)


def test_what_is_fixed_stays() -> None:
    fixed = Fixed(hidden_size=2048, num_experts=16, top_k=1, head_dim=64)
    found = list(shapes(BUDGET, 65_536, fixed))
    assert found
    for m in found:
        assert (m.hidden_size, m.moe.num_experts, m.moe.top_k, m.head_dim) == (2048, 16, 1, 64)
    assert {m.num_layers for m in shapes(BUDGET, 65_536, Fixed(num_layers=32))} == {32}


def test_a_budget_of_flops_is_six_per_active_parameter_and_token() -> None:
    budget = flop_budget(1e21)
    assert 6 * budget.active * (20 * budget.active) == pytest.approx(1e21)
    assert budget.total == pytest.approx(11 * budget.active)


def test_zaya1_is_counted_as_its_paper_counts_it() -> None:
    size = without_tables(ZAYA1.model_copy(update={"vocab_size": 262_272}))
    assert size.total == pytest.approx(8.3e9, rel=0.01)
    # Without the convolutions and the router's layers, which its 760M have.
    assert 0.93 <= size.active / 760e6 <= 1.0


@pytest.fixture(scope="module")
def found() -> list[Proposal]:
    return advise(QUESTION, SHEET, Quiet(), ["zaya1"])


def test_proposals_fit_and_come_best_first(found: list[Proposal]) -> None:
    *ours, known = found
    assert [p.score for p in ours] == sorted((p.score for p in ours), reverse=True)
    assert len({(p.model.moe.num_experts, p.model.moe.top_k) for p in ours}) == len(ours) == 5
    assert known.name == "zaya1" and known.model.hidden_size == 2048
    for p in found:
        assert p.memory.total <= 0.9 * SHEET.capacity and p.layout.dp == 64
        assert p.layout.ep in (1, 8) and 0 < p.score <= 1 and 0.1 < p.step.mfu < 0.78
        tokens = p.micro_batch * 4096
        engine = QUESTION.engine.model_copy(update={"recompute": p.recompute})
        assert p.memory == estimate_memory(p.model, p.layout, engine, OPTIMIZER, tokens)
        assert len(p.findings) == len(RULES)


def test_the_settings_are_the_fastest_that_fit(found: list[Proposal]) -> None:
    """Against every micro-batch and layout by brute force."""
    sizes = (1, 2, 4, 8, 16)
    for p in (found[0], found[-1]):
        for ep, size, again in product((1, 8), sizes, (False, True)):
            layout = LayoutConfig(dp=64, ep=ep)
            engine = QUESTION.engine.model_copy(update={"recompute": again})
            memory = estimate_memory(p.model, layout, engine, OPTIMIZER, size * 4096)
            if memory.total <= 0.9 * SHEET.capacity:
                other = predict_step(
                    p.model, layout, size, again, QUESTION.training, SHEET, Quiet()
                )
                assert p.step.total <= other.total * (1 + 1e-9)


def test_a_slow_network_drops_expert_parallelism() -> None:
    assert all(p.layout.ep == 1 for p in advise(QUESTION, SHEET, Quiet(100.0)))


def test_less_memory_means_smaller_micro_batches_then_recomputation() -> None:
    one = replace(QUESTION, fixed=Fixed(hidden_size=2048, num_experts=16, top_k=1))
    (large,) = advise(one, SHEET, Quiet(), limit=1)
    (small,) = advise(one, replace(SHEET, capacity=64 * 2**30), Quiet(), limit=1)
    (least,) = advise(one, replace(SHEET, capacity=19 * 2**30), Quiet(), limit=1)
    assert large.micro_batch > small.micro_batch and not large.recompute
    assert least.recompute and least.step.recompute > 0
    with pytest.raises(UserError, match=r"gpus: 64 devices of 1 GiB hold none of \d+ shapes"):
        advise(one, replace(SHEET, capacity=2**30), Quiet())


def test_impossible_questions_are_refused() -> None:
    impossible = replace(QUESTION, fixed=Fixed(hidden_size=64, num_layers=1))
    with pytest.raises(UserError, match=r"params: no shape has about 8\.3e\+09 parameters"):
        advise(impossible, SHEET, Quiet())
    with pytest.raises(UserError, match="--compare llama: not known; one of zaya1"):
        advise(QUESTION, SHEET, Quiet(), ["llama"])


def finding(rule: Callable[[View], Finding], p: Proposal, found: list[Proposal]) -> Finding:
    return rule(View(p, found, QUESTION, SHEET))


def changed(p: Proposal, **fields: Any) -> Proposal:
    return replace(p, model=p.model.model_copy(update=fields))


def test_rules_find_what_breaks_them(found: list[Proposal]) -> None:
    best = found[0]
    kept = {rule: finding(rule, best, found).kept for rule in RULES}
    assert kept == {rule: rule is not rules.fusion for rule in RULES}
    odd = finding(rules.multiples, changed(best, hidden_size=2000), found)
    assert not odd.kept and odd.text == "hidden size 2000: not a multiple"
    assert not finding(rules.budget, changed(best, num_layers=2), found).kept
    narrow = changed(best, hidden_size=256, vocab_size=512)
    assert not finding(rules.gemm_size, replace(narrow, micro_batch=1), found).kept
    part = finding(rules.whole_node, replace(best, layout=LayoutConfig(dp=64, ep=4)), found)
    assert not part.kept and part.text.startswith("ep 4 on nodes of 8: the links")
    assert finding(rules.whole_node, replace(best, layout=LayoutConfig(dp=64, ep=16)), found).kept
    assert not finding(rules.moe_width, replace(best, score=0.9 * best.score), found).kept
    heavy = replace(best.memory, weights=SHEET.capacity)
    assert not finding(rules.micro_batch, replace(best, memory=heavy), found).kept
    short = replace(QUESTION, training=TrainingWork(2**22, 512))
    assert not rules.attention_length(View(best, found, short, SHEET)).kept
    backed = replace(QUESTION, bucket_rule="all_reduce reaches 90% there")
    assert rules.fusion(View(best, found, backed, SHEET)).kept


def test_findings_name_a_source(found: list[Proposal]) -> None:
    assert all(f.source and f.text and f.rule for p in found for f in p.findings)
