"""One run: YAML, checked, as typed sections."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

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
    layer_kinds,
)
from ..moe.engines import ENGINES, trainers
from ..moe.engines.options import EngineOptions
from ..moe.layers.ffns import FFNS
from ..moe.optim.schedule import decay_steps
from .config_errors import explain, join, load_yaml, plain, set_value, short
from .data.config import DataConfig, microbatches

RECIPES = Path(__file__).parent / "recipes"
RESOLVED = "config.yaml"
"""Name of the resolved config in a run's output folder."""
MAX_INT = 2**31 - 1
LIMITS = {"layout.dp": 2**16, "model.num_layers": 2**14}
"""The largest value of a number that a plan counts out one by one; MAX_INT is any other's."""
UNWRITABLE = re.compile("[\0\ud800-\udfff]")
"""What no file name or environment can hold."""


class EvaluationConfig(Section):
    """Validation loss per domain, on the held-out part."""

    interval: NonNegative = 0
    """Steps between evaluations (0: only at the end)."""
    batches: Positive = 4
    """Global batches of each domain."""


class HealthConfig(Section):
    """What happens at a step whose loss or gradient norm is no number, or jumps."""

    nan: Literal["skip", "rollback", "stop"] = "rollback"
    """`skip` leaves the update out; `rollback` starts again from the last checkpoint and passes
    over the step's samples."""
    spike: Literal["off", "skip", "rollback", "stop"] = "off"
    spike_factor: Annotated[float, Field(gt=1)] = 4.0
    """A loss or gradient norm above this many medians of the last `spike_window` good steps."""
    spike_window: Positive = 64
    max_skips: NonNegative = 10
    """Skipped updates in a row; one more stops the run."""
    max_rollbacks: NonNegative = 3
    """Of the whole run; one more stops it."""


class RunConfig(Section):
    """Everything that decides a run."""

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")] = "run"
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
    health: HealthConfig = HealthConfig()
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
    except ValidationError as error:
        raise UserError(explain(str(path), error, RunConfig)) from None
    found = _unusable(config.model_dump()) or problems(config)
    if found:
        raise UserError(join(str(path), found))
    return config


def problems(config: RunConfig) -> list[str]:
    """What does not fit together in a run whose sections are valid."""
    return [problem for check in CHECKS for problem in _ask(check, config)]


def find(source: str) -> Path:
    """The file that `source` names: a path, else a recipe."""
    path = Path(source)
    recipe = next((r for r in RECIPES.glob("*.yaml") if r.stem == source), path)
    return path if recipe == path or path.is_file() else recipe


def dump(config: RunConfig) -> str:
    """The whole run as YAML, defaults included."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _ask(check: Callable[[RunConfig], None], config: RunConfig) -> list[str]:
    try:
        check(config)
    except UserError as error:
        return [str(error)]
    return []


def _unusable(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Problems with values that fit their field's type and still nothing can hold."""
    problems = []
    for name, value in values.items():
        field = f"{prefix}{plain(name)}"
        limit = LIMITS.get(field, MAX_INT)
        if isinstance(value, dict):
            problems += _unusable(value, f"{field}.")
        elif isinstance(value, int) and value > limit:
            problems.append(f"{field}: {short(value)} is too large; give {limit} or less")
        if any(isinstance(text, str) and UNWRITABLE.search(text) for text in (name, value)):
            problems.append(
                f"{field}: {short(value)} has a NUL or half a character; give text that a file "
                "name can hold"
            )
    return problems


def _check_environment(config: RunConfig) -> None:
    for name in config.cluster.env:
        if not name or "=" in name:
            raise UserError(
                f"cluster.env: {name!r} names no environment variable; drop the `=`, or name one"
            )


def _check_optimizer(config: RunConfig) -> None:
    betas = config.optimizer.betas
    if max(betas) == 1:
        raise UserError(
            f"optimizer.betas: {list(betas)} never forgets; give two numbers below 1, such as "
            "[0.9, 0.95]"
        )


def _check_batch(config: RunConfig) -> None:
    data = config.data
    microbatches(data.global_batch_size, data.micro_batch_size, config.layout.dp)


def _check_experts(config: RunConfig) -> None:
    ep = config.layout.ep
    for kinds in layer_kinds(config.model):
        experts = FFNS[kinds.ffn.kind].expert_count(kinds.ffn)
        if experts % ep:
            raise UserError(
                f"layout.ep: {ep} does not divide model.moe.num_experts {experts}, and every rank "
                "holds the same number of experts; set layout.ep to "
                f"{_choices(math.gcd(experts, config.layout.dp))}, or another num_experts"
            )


def _choices(number: int) -> str:
    """The first few divisors of a number in words."""
    divisors = [n for n in range(1, min(number, 64) + 1) if number % n == 0]
    return " or ".join(map(str, divisors))


def _check_schedule(config: RunConfig) -> None:
    if config.schedule.warmup_steps >= config.steps:
        raise UserError(
            f"schedule.warmup_steps: {config.schedule.warmup_steps} is not below steps "
            f"{config.steps}; lower it, or raise steps"
        )
    if config.schedule.name == "wsd":
        _check_wsd(config.schedule, config.steps)


def _check_wsd(schedule: ScheduleConfig, steps: int) -> None:
    """The rate would fall from the warm-up's peak into the middle of the decay."""
    decay = decay_steps(schedule, steps)
    free = steps - schedule.warmup_steps
    if decay > free:
        raise UserError(
            f"schedule.warmup_steps: {schedule.warmup_steps} steps of warm-up overlap the last "
            f"{decay} of {steps}, which decay; set it to at most {steps - decay}, or "
            f"schedule.decay_fraction to at most {math.floor(1000 * free / steps) / 1000}"
        )


def _check_engine(config: RunConfig) -> None:
    name = config.engine.name
    if name not in trainers():
        raise UserError(
            f"engine.name: {name!r} trains nothing here; give {' or '.join(map(repr, trainers()))}"
        )
    layout = config.layout
    for problem in ENGINES[name].problems(layout, layout.zero, config.optimizer, config.engine):
        raise UserError(f"layout.{problem}")


def _check_elastic(config: RunConfig) -> None:
    cluster, world = config.cluster, config.layout.world_size
    if cluster.elastic and cluster.min_workers > world:
        raise UserError(
            f"cluster.min_workers: {cluster.min_workers} is above the {world} ranks of layout; "
            "lower it, or raise layout.dp"
        )


CHECKS: tuple[Callable[[RunConfig], None], ...] = (
    _check_environment,
    _check_batch,
    _check_experts,
    _check_optimizer,
    _check_schedule,
    _check_engine,
    _check_elastic,
)
"""What no section can see alone; each raises UserError."""
