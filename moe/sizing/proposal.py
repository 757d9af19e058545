"""A question to the sizing adviser, and a proposal that answers it."""

from dataclasses import dataclass

from ..config import EngineConfig, LayoutConfig, ModelConfig
from .memory import Memory
from .shapes import Budget, Fixed
from .step import StepTime, TrainingWork

ENGINE = EngineConfig(precision="bf16")
FREE = Fixed()


@dataclass(frozen=True)
class Question:
    """What is to be sized: `ranks` devices in nodes of `per_node`; `context` tokens stand behind a
    token of inference; `memory_share` of a device's memory may be planned for. `budget_rule` and
    `bucket_rule` say where the budget and `engine.bucket_mb` come from."""

    budget: Budget
    budget_rule: str
    vocab_size: int
    training: TrainingWork
    ranks: int
    per_node: int
    context: int
    engine: EngineConfig = ENGINE
    bucket_rule: str = "the default"
    fixed: Fixed = FREE
    memory_share: float = 0.9


@dataclass(frozen=True)
class Finding:
    """`rule` and its `source`, whether the proposal keeps it, and `text` with the figures."""

    rule: str
    source: str
    kept: bool
    text: str


@dataclass(frozen=True)
class Proposal:
    """One shape with the micro-batch and layout that train it fastest. `score` is 1 where training
    is the fastest and a token the quickest of all proposals."""

    name: str
    model: ModelConfig
    layout: LayoutConfig
    micro_batch: int
    recompute: bool
    step: StepTime
    memory: Memory
    token_s: float
    score: float = 0.0
    findings: tuple[Finding, ...] = ()
