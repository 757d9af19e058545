"""Tables for a person: the dry run's plan and the end of a run."""

import math
import os
import shlex
import shutil
import sys
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ... import UserError
from ...moe.engines import trainers
from ..config import RESOLVED, RunConfig, load
from .plan import GIB, RunPlan
from .records import EvalRecord, Record


def plan_view(config: RunConfig, plan: RunPlan) -> RenderableType:
    """Sizes, memory and placement."""
    return Group(_sizes(plan), _memory(plan), _placement(config, plan))


def _sizes(plan: RunPlan) -> Table:
    table = Table("model", "", title_justify="left")
    c = plan.parameters
    table.add_row("parameters, total", f"{c.total:,}")
    table.add_row("parameters, active per token", f"{c.active:,}")
    table.add_row("of the total in experts", f"{c.experts:,}")
    table.add_row("vocabulary", f"{plan.model.vocab_size:,}")
    table.add_row("FLOPs per token (forward + backward)", f"{plan.flops_per_token:.3e}")
    table.add_row("tokens per step", f"{plan.tokens_per_step:,}")
    table.add_row("micro-batches per rank and step", str(plan.microbatches))
    table.add_row("ranks it can run on", _listed(plan.world_sizes))
    return table


def _listed(numbers: tuple[int, ...]) -> str:
    """The first few, and how many more."""
    more = f" and {len(numbers) - 12} more" if len(numbers) > 12 else ""
    return ", ".join(map(str, numbers[:12])) + more


def _memory(plan: RunPlan) -> Table:
    table = Table("memory per rank (estimate)", "GiB")
    m = plan.memory
    for name in ("weights", "gradients", "optimizer", "activations", "total"):
        table.add_row(name, f"{getattr(m, name) / GIB:.3f}")
    return table


def _placement(config: RunConfig, plan: RunPlan) -> Table:
    table = Table("rank", "dp", "ep", "node", "device")
    ep = config.layout.ep
    for slot in plan.placement:
        table.add_row(
            str(slot.rank), str(slot.rank), str(slot.rank % ep), str(slot.node), str(slot.device)
        )
    return table


def finish_view(config: RunConfig, records: list[Record]) -> RenderableType:
    """The last validation losses."""
    evaluations = [r for r in records if isinstance(r, EvalRecord)]
    table = Table("domain", "validation loss", "perplexity")
    if evaluations:
        for domain, loss in evaluations[-1].loss.items():
            table.add_row(domain, f"{loss:.4f}", f"{_exp(loss):.2f}")
    return table


def _exp(loss: float) -> float:
    """exp, infinite where a float cannot hold it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def command() -> str:
    """How the user calls `moelstrom`; the `run` script says so in the environment."""
    return os.environ.get("MOELSTROM_COMMAND", "moelstrom")


def next_steps(config: RunConfig, console: Console) -> None:
    """What a user may want to run now."""
    folder = config.folder
    for text, words in (
        ("curves", [_program("tensorboard"), "--logdir", str(folder / "tensorboard")]),
        ("picture", [str(folder / "run.png")]),
        ("every step as JSON", [str(folder / "metrics.jsonl")]),
        *_longer(config),
        *(
            (f"the {name} engine", _train(config, _with_engine(config, name)))
            for name in trainers()
            if name != config.engine.name
        ),
    ):
        if words:
            line = Text.assemble(f"  {text}: ", (shlex.join(words), "bold"))
            console.print(line, soft_wrap=True)


def _program(name: str) -> str:
    """How to call a program of this environment, which may not be the shell's."""
    return name if shutil.which(name) else str(Path(sys.executable).with_name(name))


def _longer(config: RunConfig) -> list[tuple[str, list[str]]]:
    """Only where the rate does not hang on the run's length: a cosine would jump back up from its
    end, WSD goes back to its plateau as it is meant to."""
    if config.schedule.name != "wsd":
        return []
    plateau = ", back on the plateau" if config.schedule.decay_fraction else ""
    text = f"train on, twice as long{plateau}"
    return [(text, _train(config, [f"steps={2 * config.steps}"]))]


def _with_engine(config: RunConfig, name: str) -> list[str]:
    output = [f"output={config.output}-{name}"] if config.output else []
    return [f"engine.name={name}", f"name={config.name}-{name}", *output]


def _train(config: RunConfig, overrides: list[str]) -> list[str]:
    """The command that runs the resolved config with changes; empty if that is no valid run."""
    source = str(config.folder / RESOLVED)
    try:
        load(source, overrides)
    except UserError:
        return []
    return [command(), "train", source, *(w for o in overrides for w in ("--set", o))]
