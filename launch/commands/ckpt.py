"""`moelstrom ckpt`: look into checkpoints, compare them, and give them another layout."""

import json
import math
import os
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ...collectives_bench.sizes import label
from .. import terminal
from .hf import commands as hf_commands
from .opening import open_checkpoint

if TYPE_CHECKING:
    from ...moe.checkpoint.reshape.plan import ReshapePlan
    from ...moe.config import OptimizerConfig
    from ...moe.state.source import Source

app = typer.Typer(help="Checkpoints.", no_args_is_help=True, add_completion=False)

SHOWN_FILES = 16
WORST = 10
WEIGHTS = "model/"

Folder = Annotated[
    Path,
    typer.Argument(help="A checkpoint, or a folder of them (the newest); foreign formats, too."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
ModelOption = Annotated[
    Path | None,
    typer.Option("--model", help="A run's YAML, for a foreign checkpoint without its config."),
]
ReadersOption = Annotated[int, typer.Option(min=1, help="Threads.")]
READERS = os.cpu_count() or 1


@app.callback()
def _group() -> None:
    """Checkpoints."""


@app.command()
def inspect(source: Folder, model: ModelOption = None, as_json: JsonOption = False) -> None:
    """What a checkpoint holds; its data is not read."""
    found = open_checkpoint(source, model)
    facts = _facts(found)
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    terminal.console().print(_facts_table(facts), _groups_table(facts["groups"]))


@app.command()
def verify(
    source: Folder,
    model: ModelOption = None,
    readers: ReadersOption = READERS,
    as_json: JsonOption = False,
) -> None:
    """Read and hash everything; the state's hash is the same in every layout."""
    from ...moe.checkpoint.reshape.compare import hashes, state_hash
    from ...moe.checkpoint.reshape.plan import state_bytes

    found = open_checkpoint(source, model)
    with terminal.byte_progress("verifying") as progress:
        by_tensor = hashes(found, readers, progress)
    facts = {
        "folder": str(found.folder),
        "step": found.step,
        "tensors": len(by_tensor),
        "bytes": state_bytes(found),
        "state_sha256": state_hash(found, by_tensor),
    }
    if as_json:
        print(json.dumps({**facts, "sha256": by_tensor}, indent=2))
    else:
        terminal.console().print(_facts_table(facts))


@app.command()
def reshape(
    source: Folder,
    out: Annotated[Path, typer.Argument(help="Folder that gets step-N, as checkpoint.path.")],
    engine: Annotated[str, typer.Option(help="native, deepspeed or megatron.")] = "native",
    dp: Annotated[int, typer.Option(help="Data-parallel ranks.")] = 1,
    ep: Annotated[int, typer.Option(help="Expert-parallel ranks.")] = 1,
    tp: Annotated[int, typer.Option(help="Tensor-parallel ranks.")] = 1,
    pp: Annotated[int, typer.Option(help="Pipeline stages.")] = 1,
    cp: Annotated[int, typer.Option(help="Context-parallel ranks.")] = 1,
    zero: Annotated[int, typer.Option(help="ZeRO stage.")] = 1,
    memory: Annotated[str, typer.Option(help="Of buffers, at most.")] = "1GiB",
    readers: ReadersOption = READERS,
    model: ModelOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan, write nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the same state for another layout; killed, the same command goes on."""
    from ...moe.checkpoint.layouts.layout import make_target
    from ...moe.checkpoint.reshape.run import reshape as run

    target = make_target(engine=engine, dp=dp, ep=ep, tp=tp, pp=pp, cp=cp, zero=zero)
    limit = terminal.parse_bytes("--memory", memory)
    plan = _plan(open_checkpoint(source, model), target, limit, readers)
    if dry_run:
        _show_plan(plan, out, as_json)
        return
    started = time.perf_counter()
    with terminal.byte_progress("reshaping") as progress:
        folder = run(plan, out, progress)
    seconds = time.perf_counter() - started
    facts = {**plan.summary(), "folder": str(folder), "seconds": round(seconds, 3)}
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        terminal.console().print(_facts_table(facts))


@app.command()
def diff(
    a: Folder,
    b: Folder,
    model: ModelOption = None,
    readers: ReadersOption = READERS,
    weights: Annotated[
        bool, typer.Option("--weights", help="Of the model only, not the optimizer or the rest.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="Every difference, not the worst.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Whether two checkpoints hold the same state, in whatever layouts; 1 if not."""
    from ...moe.checkpoint.reshape.compare import differences
    from ...moe.checkpoint.reshape.plan import state_bytes

    one, other = open_checkpoint(a, model), open_checkpoint(b, model)
    with terminal.byte_progress("comparing") as progress:
        found = differences(one, other, readers, progress)
    if weights:
        found = [d for d in found if d.name.startswith(WEIGHTS)]
    # Those that have no number differ most of all: a tensor that one side lacks.
    found.sort(key=lambda d: math.inf if d.max_abs is None else d.max_abs, reverse=True)
    rows = [
        {"name": d.name, "what": d.what, "max_abs": d.max_abs, "elements": d.count} for d in found
    ]
    if as_json:
        print(json.dumps({"equal": not rows, "differences": rows}, indent=2))
    elif rows:
        _show_differences(rows, len(rows) if every else WORST)
    elif weights:
        print(f"equal weights: {sum(name.startswith(WEIGHTS) for name in one.tensors)} tensors")
    else:
        print(f"equal: {len(one.tensors)} tensors, {label(state_bytes(one))}")
    if rows:
        raise typer.Exit(1)


def _plan(source: "Source", target: Any, memory: int, readers: int) -> "ReshapePlan":
    from ...moe.checkpoint.layouts.holdings import holdings
    from ...moe.checkpoint.reshape.plan import make_plan
    from ...moe.config import ModelConfig

    model = ModelConfig.model_validate(source.meta["model"])
    held = holdings(source.tensors, model, target, _optimizer(source))
    return make_plan(source, held, memory, readers)


def _optimizer(source: "Source") -> "OptimizerConfig":
    """The run's, or for a checkpoint without its config what its state says."""
    from ...moe.config import OptimizerConfig

    saved = source.meta.get("config", {}).get("optimizer")
    if saved:
        return OptimizerConfig.model_validate(saved)
    muon = any(name.startswith("muon/") for name in source.tensors)
    return OptimizerConfig(name="muon" if muon else "adamw")


def _facts(source: "Source") -> dict[str, Any]:
    from ...moe.checkpoint.reader import Reader
    from ...moe.checkpoint.reshape.plan import state_bytes, tensor_bytes

    groups: dict[str, dict[str, int]] = {}
    for name, info in source.tensors.items():
        prefix = name.split("/")[0] if name.startswith("rng/") else name.rpartition("/")[0]
        group = groups.setdefault(prefix, {"tensors": 0, "bytes": 0})
        group["tensors"] += 1
        group["bytes"] += tensor_bytes(info)
    ours = source if isinstance(source, Reader) else None
    return {
        "folder": str(source.folder),
        "format": "moelstrom" if ours else type(source).__name__,
        "step": source.step,
        "tensors": len(source.tensors),
        "bytes": state_bytes(source),
        **({"files": len(ours.files), "pieces": ours.num_pieces} if ours else {}),
        "groups": groups,
        "meta": source.meta,
    }


def _facts_table(facts: dict[str, Any]) -> Table:
    table = Table(show_header=False)
    for name, value in facts.items():
        if not isinstance(value, dict):
            shown = label(value) if name.endswith("bytes") else str(value)
            table.add_row(name.replace("_", " "), shown)
    return table


def _groups_table(groups: dict[str, dict[str, int]]) -> Table:
    table = Table("group", "tensors", "bytes")
    for name, group in groups.items():
        table.add_row(name, str(group["tensors"]), label(group["bytes"]))
    return table


def _differences_table(rows: list[dict[str, Any]]) -> Table:
    table = Table("tensor", "what differs", "elements", "largest difference")
    for row in rows:
        count = "" if row["elements"] is None else f"{row['elements']:,}"
        gap = "" if row["max_abs"] is None else f"{row['max_abs']:.4g}"
        table.add_row(row["name"], row["what"], count, gap)
    return table


def _show_differences(rows: list[dict[str, Any]], shown: int) -> None:
    """How many of each group differ, then the worst of them."""
    console, groups = terminal.console(), Counter(row["name"].rpartition("/")[0] for row in rows)
    summary = ", ".join(f"{name or 'other'} {count:,}" for name, count in sorted(groups.items()))
    console.print(f"{len(rows):,} differences: {summary}", markup=False, highlight=False)
    console.print(_differences_table(rows[:shown]))
    if len(rows) > shown:
        console.print(f"the worst {shown} of {len(rows):,}; --all shows the rest")


def _show_plan(plan: "ReshapePlan", out: Path, as_json: bool) -> None:
    from ...moe.checkpoint.reshape.plan import estimate_seconds

    facts = {**plan.as_json(), "estimated_seconds": round(estimate_seconds(plan, out), 2)}
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    files = facts.pop("files")
    table = Table("rank", "pieces", "bytes", title="files to write")
    for file in files[:SHOWN_FILES]:
        table.add_row(str(file["rank"]), str(len(file["pieces"])), label(file["bytes"]))
    if len(files) > SHOWN_FILES:
        table.add_row("...", "", f"{len(files) - SHOWN_FILES} more")
    terminal.console().print(_facts_table(facts), table)


hf_commands(app)
