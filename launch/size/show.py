"""The sizing adviser's advice as tables, a picture and a training config."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...moe.sizing.adviser import describe
from ...moe.sizing.shapes import without_tables
from ..train.plan import GIB
from ..train.show import command

if TYPE_CHECKING:
    from ...moe.sizing.proposal import Proposal
    from .advice import Advice

PARTS = {
    "gemm": "dense GEMMs",
    "experts": "experts",
    "attention": "attention",
    "memory": "memory-bound",
    "recompute": "recomputation",
    "exchange": "all-to-all",
    "reduce": "gradients (exposed)",
    "gather": "weights",
}
HEADER = """\
# {name}: proposed by `moelstrom size` for {gpus} devices.
# Device: {device}. Network: {network}.
# Predicted: {step:.3g} s a step, {speed:,.0f} tokens/s, MFU {mfu:.1%}, {memory:.1f} GiB a rank,
# {token:.3g} ms a token in inference (batch 1).
# Set data.path and data.tokenizer to yours: as it stands it reads Python's own text by bytes.
"""


def view(advice: "Advice") -> RenderableType:
    """The proposals, where a step's time goes, and the rules of the first and the compared."""
    found = advice.proposals
    detailed = [found[0], *(p for p in found if p.name != describe(p.model))]
    source = Text(f"device: {advice.device}\nnetwork: {advice.network}")
    return Group(source, _proposals(found), _times(found), *(_rules(p) for p in detailed))


def _proposals(found: "list[Proposal]") -> Table:
    table = Table(title="Proposals, best first", title_justify="left")
    table.add_column("shape", overflow="fold")
    for name in (
        *("heads/KV x dim", "total", "active", "micro-batch", "dp", "ep", "step", "tokens/s"),
        *("MFU", "GiB/rank", "ms/token", "score"),
    ):
        table.add_column(name, justify="right", overflow="fold")
    for p in found:
        table.add_row(*_cells(p))
    return table


def _cells(p: "Proposal") -> list[str]:
    m, size = p.model, without_tables(p.model)
    shape = describe(m)
    return [
        shape if p.name == shape else f"{p.name}: {shape}",
        f"{m.num_heads}/{m.num_kv_heads} x {m.head_dim}",
        f"{size.total / 1e9:.3g}B",
        f"{size.active / 1e9:.3g}B",
        f"{p.micro_batch}{' (recompute)' if p.recompute else ''}",
        str(p.layout.dp),
        str(p.layout.ep),
        f"{p.step.total:.3g} s",
        f"{p.step.tokens_per_s:,.0f}",
        f"{p.step.mfu:.1%}",
        f"{p.memory.total / GIB:.1f}",
        f"{1e3 * p.token_s:.3g}",
        f"{p.score:.3f}",
    ]


def _times(found: "list[Proposal]") -> Table:
    table = Table(title="Seconds of a step", title_justify="left")
    table.add_column("shape", overflow="fold")
    for label in PARTS.values():
        table.add_column(label, justify="right", overflow="fold")
    for p in found:
        step = asdict(p.step)
        table.add_row(p.name, *(f"{step[part]:.3g}" for part in PARTS))
    return table


def _rules(p: "Proposal") -> Table:
    table = Table(title=f"Rules: {p.name}", title_justify="left", title_style="italic")
    for name in ("", "rule", "here", "source"):
        table.add_column(name, overflow="fold")
    for f in p.findings:
        mark = Text("yes", "green") if f.kept else Text("no", "yellow")
        table.add_row(mark, f.rule, f.text, f.source)
    return table


def draw(advice: "Advice", path: Path) -> None:
    """Write a PNG: training speed against inference latency, and where a step's time goes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(13, 5), layout="constrained")
    try:
        _scatter(axes[0], advice.proposals)
        _bars(axes[1], advice.proposals)
        figure.suptitle(f"{advice.device}\n{advice.network}", fontsize=9, parse_math=False)
        figure.savefig(path, dpi=110, format="png")
    finally:
        pyplot.close(figure)


def _scatter(axis: Any, found: "list[Proposal]") -> None:
    for i, p in enumerate(found):
        x, y = 1e3 * p.token_s, p.step.tokens_per_s
        axis.scatter(x, y, color=f"C{i % 10}", label=p.name)
    axis.set_xlabel("inference: ms / token (batch 1)")
    axis.set_ylabel("training: tokens / s")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)


def _bars(axis: Any, found: "list[Proposal]") -> None:
    steps = [asdict(p.step) for p in reversed(found)]
    names = [p.name for p in reversed(found)]
    left = [0.0] * len(found)
    for part, label in PARTS.items():
        values = [step[part] for step in steps]
        axis.barh(names, values, left=left, label=label)
        left = [a + b for a, b in zip(left, values, strict=True)]
    axis.set_xlabel("seconds of a step")
    axis.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.12))


def recipe(advice: "Advice", p: "Proposal", tokens: float) -> str:
    """A training config of `tokens` with the proposal's shape, micro-batch and layout."""
    question = advice.question
    sequences = question.training.batch_tokens // question.training.seq_len
    steps = max(10, round(tokens / question.training.batch_tokens))
    values = {
        "name": p.name.replace(" ", "-"),
        "steps": steps,
        "model": p.model.model_dump(mode="json"),
        "data": {
            "corpus": "python",
            "path": "runs/data/python",
            "tokenizer": "byte",
            "seq_len": question.training.seq_len,
            "micro_batch_size": p.micro_batch,
            "global_batch_size": sequences,
        },
        "layout": {"dp": p.layout.dp, "ep": p.layout.ep, "zero": p.layout.zero},
        "engine": {
            "name": "native",
            "precision": "bf16",
            "recompute": p.recompute,
            "bucket_mb": question.engine.bucket_mb,
        },
        "optimizer": {"name": "adamw"},
        "schedule": {"name": "wsd", "warmup_steps": min(2000, steps // 10)},
        "cluster": {"launcher": "none" if p.layout.world_size == 1 else "ray"},
    }
    return _header(advice, p) + yaml.safe_dump(values, sort_keys=False)


def _header(advice: "Advice", p: "Proposal") -> str:
    return HEADER.format(
        name=p.name,
        gpus=advice.question.ranks,
        device=advice.device.replace("\n", " "),
        network=advice.network.replace("\n", " "),
        step=p.step.total,
        speed=p.step.tokens_per_s,
        mfu=p.step.mfu,
        memory=p.memory.total / GIB,
        token=1e3 * p.token_s,
    )


def train_command(path: Path) -> str:
    """What a user may run now."""
    return f"look at it: {shlex.join([command(), 'train', str(path), '--dry-run'])}"
