"""Tables for a person: the dry run's plan and the end of a run."""

from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.syntax import Syntax
from rich.table import Table

from .config import RunConfig, dump
from .plan import GIB, Plan


def plan_view(config: RunConfig, plan: Plan) -> RenderableType:
    """The resolved config, sizes, memory and placement."""
    return Group(Syntax(dump(config), "yaml"), _sizes(plan), _memory(plan), _placement(config, plan))


def _sizes(plan: Plan) -> Table:
    table = Table("model", "", title_justify="left")
    c = plan.parameters
    table.add_row("parameters, total", f"{c.total:,}")
    table.add_row("parameters, active per token", f"{c.active:,}")
    table.add_row("of the total in experts", f"{c.experts:,}")
    table.add_row("vocabulary", f"{plan.model.vocab_size:,}")
    table.add_row("FLOPs per token (forward + backward)", f"{plan.flops_per_token:.3e}")
    table.add_row("tokens per step", f"{plan.tokens_per_step:,}")
    table.add_row("micro-batches per rank and step", str(plan.microbatches))
    return table


def _memory(plan: Plan) -> Table:
    table = Table("memory per rank (estimate)", "GiB")
    m = plan.memory
    for name in ("weights", "gradients", "optimizer", "activations", "total"):
        table.add_row(name, f"{getattr(m, name) / GIB:.3f}")
    return table


def _placement(config: RunConfig, plan: Plan) -> Table:
    table = Table("rank", "dp", "ep", "node", "device")
    ep = config.layout.ep
    for slot in plan.placement:
        table.add_row(
            str(slot.rank), str(slot.rank), str(slot.rank % ep), str(slot.node), str(slot.device)
        )
    return table


def finish_view(config: RunConfig, records: list[dict[str, Any]]) -> RenderableType:
    """The last validation losses."""
    evaluations = [r for r in records if r["kind"] == "eval"]
    table = Table("domain", "validation loss", "perplexity")
    if evaluations:
        for domain, loss in evaluations[-1]["loss"].items():
            table.add_row(domain, f"{loss:.4f}", f"{2.718281828459045**loss:.2f}")
    return table


def next_steps(config: RunConfig, source: str, console: Console) -> None:
    """What a user may want to run now."""
    folder = config.folder
    more = config.steps * 2
    for text, command in (
        ("curves", f"tensorboard --logdir {folder / 'tensorboard'}"),
        ("picture", str(folder / "run.png")),
        ("every step as JSON", str(Path(folder) / "metrics.jsonl")),
        ("train on, twice as long", f"moelstrom train {source} --set steps={more}"),
        ("the other engine", f"moelstrom train {source} --set engine.name=deepspeed "
         f"--set name={config.name}-deepspeed"),
    ):
        console.print(f"  {text}: [bold]{command}[/bold]", soft_wrap=True, highlight=False)
