"""One run: YAML, checked, as typed sections."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError

from .. import UserError
from ..cluster.config import ClusterConfig
from ..moe.config import (
    CheckpointConfig,
    EngineConfig,
    LayoutConfig,
    ModelConfig,
    NonNegative,
    OptimizerConfig,
    Positive,
    ScheduleConfig,
    Section,
)
from ..moe.engines.options import EngineOptions
from ..moe.ffn import FFNS
from ..moe.mixers import MIXERS
from .config_errors import explain, load_yaml, set_value
from .data.config import DataConfig, microbatches

RECIPES = Path(__file__).parent / "recipes"


class EvaluationConfig(Section):
    """Validation loss per domain, on the held-out part."""

    interval: NonNegative = 0
    """Steps between evaluations (0: only at the end)."""
    batches: Positive = 4
    """Global batches of each domain."""


class RunConfig(Section):
    """Everything that decides a run."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] = "run"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    steps: Positive
    output: str = ""
    """Folder of logs and checkpoints (empty: `runs/<name>`)."""
    log_interval: Positive = 10
    """Steps between printed lines; the JSON-lines log has every step."""
    evaluation: EvaluationConfig = EvaluationConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    layout: LayoutConfig = LayoutConfig()
    engine: EngineConfig = EngineConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    cluster: ClusterConfig = ClusterConfig()

    @property
    def folder(self) -> Path:
        """The run's output folder."""
        return Path(self.output or f"runs/{self.name}")

    @property
    def placed_checkpoint(self) -> CheckpointConfig:
        """The checkpoint section with its path under the output folder."""
        return self.checkpoint.model_copy(update={"path": str(self.folder / self.checkpoint.path)})

    @property
    def engine_options(self) -> EngineOptions:
        """What the engine needs of the run."""
        return EngineOptions(self.engine, self.layout, self.optimizer, self.schedule, self.steps)


def load(source: str, overrides: list[str] | None = None) -> RunConfig:
    """The run of a YAML file, or of a recipe by its bare name, with `a.b=c` overrides.

    Raises UserError that lists every problem: field, value and fix.
    """
    path = find(source)
    values = load_yaml(path)
    for override in overrides or []:
        set_value(values, override)
    try:
        config = RunConfig.model_validate(values)
    except (ValidationError, RecursionError) as error:
        raise UserError(explain(str(path), error, RunConfig)) from None
    problems = [problem for check in CHECKS for problem in _ask(check, config)]
    if problems:
        raise UserError("\n  ".join([f"{path}:", *problems]) if len(problems) > 1 else problems[0])
    return config


def find(source: str) -> Path:
    """The file that `source` names: a path, else a recipe."""
    recipe = RECIPES / f"{source}.yaml"
    if not Path(source).exists() and "/" not in source and recipe.exists():
        return recipe
    return Path(source)


def dump(config: RunConfig) -> str:
    """The whole run as YAML, defaults included."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _ask(check: Callable[[RunConfig], None], config: RunConfig) -> list[str]:
    try:
        check(config)
    except UserError as error:
        return [str(error)]
    return []


def _check_pattern(config: RunConfig) -> None:
    for entry in config.model.pattern:
        mixer, _, ffn = entry.partition("/")
        if mixer not in MIXERS or ffn not in FFNS:
            raise UserError(
                f"model.pattern: {entry!r} is not `mixer/ffn` with mixer one of "
                f"{', '.join(MIXERS)} and ffn one of {', '.join(FFNS)}"
            )


def _check_batch(config: RunConfig) -> None:
    data = config.data
    microbatches(data.global_batch_size, data.micro_batch_size, config.layout.dp)


def _check_experts(config: RunConfig) -> None:
    experts, ep = config.model.moe.num_experts, config.layout.ep
    if experts % ep:
        raise UserError(
            f"layout.ep: {ep} does not divide model.moe.num_experts {experts}; every rank holds "
            "the same number of experts"
        )


def _check_schedule(config: RunConfig) -> None:
    if config.schedule.warmup_steps >= config.steps:
        raise UserError(
            f"schedule.warmup_steps: {config.schedule.warmup_steps} is not below steps "
            f"{config.steps}; lower it or train longer"
        )


def _check_engine(config: RunConfig) -> None:
    if config.engine.name == "native" and config.layout.zero > 1:
        raise UserError(
            f"layout.zero: the native engine shards the optimizer only, not stage "
            f"{config.layout.zero}; set layout.zero: 1 or engine.name: deepspeed"
        )
    if config.engine.name == "deepspeed":
        # Imported here: checking a native run needs nothing of DeepSpeed.
        from ..moe.engines.deepspeed import check

        check(config.layout, config.engine, config.optimizer)


CHECKS: tuple[Callable[[RunConfig], None], ...] = (
    _check_pattern,
    _check_batch,
    _check_experts,
    _check_schedule,
    _check_engine,
)
"""What no section can see alone; each raises UserError."""
