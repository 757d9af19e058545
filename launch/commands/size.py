"""`moelstrom size`: what shape, micro-batch and layout to train on given devices."""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ... import UserError
from .. import terminal

if TYPE_CHECKING:
    from ...collectives_bench.schema import BenchReport
    from ...moe.sizing.communication import Communication
    from ...moe.sizing.curves import Curves
    from ...moe.sizing.proposal import Proposal, Question
    from ...moe.sizing.shapes import Budget

_FORM = re.compile(r"(\d+(?:\.\d+)?(?:e\+?\d+)?)\s*([KMBT]?)", re.IGNORECASE)
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_LARGEST = 1e30
DEFAULT_TARGET = "gfx942"


app = typer.Typer(add_completion=False)


@app.command()
def size(
    params: Annotated[
        str | None, typer.Option(help="All parameters but the tables: 8.3B, 300M.")
    ] = None,
    active: Annotated[str | None, typer.Option(help="Of them, those of one token: 760M.")] = None,
    flops: Annotated[str | None, typer.Option(help="Or all FLOPs of the training: 1e21.")] = None,
    hardware: Annotated[
        Path | None, typer.Option(help="Report of `bench hardware`; none: a data sheet.")
    ] = None,
    collectives: Annotated[
        Path | None, typer.Option(help="Report of `bench collectives`; none: a data sheet.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Whose data sheet: sm90...; none: the report's, or gfx942.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, max=2**16, help="Devices to train on.")] = 8,
    gpus_per_node: Annotated[int, typer.Option(min=1, max=1024, help="Devices of a node.")] = 8,
    memory: Annotated[str | None, typer.Option(help="Of a device: 80GiB.")] = None,
    vocab: Annotated[int, typer.Option(min=257, max=2**24, help="Vocabulary.")] = 65_536,
    seq_len: Annotated[int, typer.Option(min=1, max=2**24, help="Tokens of a sequence.")] = 4096,
    batch_tokens: Annotated[str, typer.Option(help="Tokens of an optimizer step, about.")] = "4M",
    context: Annotated[
        int, typer.Option(min=0, max=2**24, help="Tokens behind one that inference makes.")
    ] = 4096,
    hidden: Annotated[int | None, typer.Option(min=64, max=2**16, help="Fix it.")] = None,
    layers: Annotated[int | None, typer.Option(min=1, max=4096, help="Fix it.")] = None,
    experts: Annotated[int | None, typer.Option(min=2, max=4096, help="Fix it.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, max=256, help="Fix it.")] = None,
    head_dim: Annotated[int | None, typer.Option(min=64, max=256, help="Fix it.")] = None,
    compare: Annotated[list[str] | None, typer.Option(help="A known model: zaya1.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=24, help="Proposals to show.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print every figure as JSON.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="PATH", help="File to write the JSON to.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="PATH", help="Draw a PNG here.")] = None,
    write: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Write the best as a YAML for `train`.")
    ] = None,
) -> None:
    """Propose model shapes, micro-batch and layout for a budget, and predict what they cost."""
    from ...moe.sizing.adviser import advise
    from ...moe.sizing.proposal import Question
    from ...moe.sizing.shapes import Fixed
    from ...moe.sizing.step import TrainingWork
    from ..size import show as size_show
    from ..size.advice import Advice

    for option, path in (("--out", out), ("--plot", plot), ("--write", write)):
        terminal.check_writable(option, path)
    budget, rule = _budget(params, active, flops)
    measured = _report(collectives, "collectives")
    engine, bucket_rule = _engine(measured)
    question = Question(
        budget=budget,
        budget_rule=rule,
        vocab_size=vocab,
        training=TrainingWork(_batch(batch_tokens, seq_len, gpus), seq_len),
        ranks=gpus,
        per_node=min(gpus, gpus_per_node),
        context=context,
        engine=engine,
        bucket_rule=bucket_rule,
        fixed=Fixed(hidden, layers, experts, top_k, head_dim),
    )
    device = _report(hardware, "hardware")
    curves = _curves(device, target, memory)
    network = _network(measured, device, target, question)
    found = advise(question, curves, network, compare or (), limit)
    advice = Advice(question, found, curves.label, network.label)
    console = terminal.console()
    terminal.write_json(advice.as_json(), as_json, out)
    if not as_json:
        console.print(size_show.view(advice))
    if plot:
        size_show.draw(advice, plot)
    if write:
        write.write_text(size_show.recipe(advice, found[0], _tokens(flops, found[0])), "utf-8")
    if write and not as_json:
        console.print(size_show.train_command(write), soft_wrap=True)


def parse_count(text: str, option: str) -> float:
    """A positive number such as 8.3B, 760M or 1e21; UserError names the option."""
    found = _FORM.fullmatch(text.strip())
    value = float(found[1]) * _UNITS[found[2].lower()] if found else 0.0
    if not 0 < value <= _LARGEST:
        raise UserError(f"{option} {text}: give a positive number, such as 8.3B, 760M or 1e21")
    return value


def _budget(params: str | None, active: str | None, flops: str | None) -> "tuple[Budget, str]":
    from ...moe.sizing.shapes import SPARSITY, TOKENS_PER_PARAMETER, Budget, flop_budget

    if (params is None) == (flops is None):
        raise UserError("--params, --flops: give one of both, such as --params 8.3B")
    if flops is not None:
        if active is not None:
            raise UserError(f"--active {active}: --flops decides it; drop one of both")
        rule = (
            f"FLOPs = 6 x active x tokens, {TOKENS_PER_PARAMETER:.0f} tokens for each active "
            f"parameter (arXiv 2203.15556), total = {SPARSITY:.0f} x active (ZAYA1's)"
        )
        return flop_budget(parse_count(flops, "--flops")), rule
    total = parse_count(params or "", "--params")
    if active is None:
        return Budget(total, total / SPARSITY), f"as asked; active = total / {SPARSITY:.0f} (ZAYA1)"
    some = parse_count(active, "--active")
    if some >= total:
        raise UserError(f"--active {active}: not below --params {params}; lower it")
    return Budget(total, some), "as asked"


def _batch(text: str, seq_len: int, gpus: int) -> int:
    """The nearest batch of a power of two of sequences for each device."""
    each = parse_count(text, "--batch-tokens") / (seq_len * gpus)
    if not 0.7 <= each <= 2**20:
        raise UserError(
            f"--batch-tokens {text}: {gpus} devices with a sequence of {seq_len} each make "
            f"{seq_len * gpus:,}; give that or more, within 2**20 sequences a device"
        )
    return seq_len * gpus * 2 ** max(0, round(math.log2(each)))


def _report(path: Path | None, kind: str) -> "BenchReport | None":
    from ...collectives_bench.schema import read

    if path is None:
        return None
    report = read(path)
    if report.kind != kind:
        raise UserError(
            f"--{kind} {path}: is a report of {report.kind}; give one of `moelstrom bench {kind}`"
        )
    return report


def _curves(report: "BenchReport | None", target: str | None, memory: str | None) -> "Curves":
    from dataclasses import replace

    from ...kernels.targets import find
    from ...moe.sizing.curves import data_sheet
    from ..size.curves import measured

    room = terminal.parse_bytes("--memory", memory) if memory else None
    if report:
        return measured(report, room)
    sheet = data_sheet(find(target or DEFAULT_TARGET))
    return replace(sheet, capacity=room) if room else sheet


def _network(
    report: "BenchReport | None",
    device: "BenchReport | None",
    target: str | None,
    question: "Question",
) -> "Communication":
    from ...kernels.targets import find
    from ..size.curves import device_target
    from ..size.network import alone, measured, of_data_sheet

    if report:
        return measured(report, question.per_node, question.engine)
    if question.ranks == 1:
        return alone(question.engine)
    links = find(target) if target else device_target(device) if device else find(DEFAULT_TARGET)
    if links is None:
        raise UserError(
            "--collectives: no data sheet tells the links of the device in --hardware; give a "
            "report of `moelstrom bench collectives`, or a --target"
        )
    return of_data_sheet(links, question.per_node, question.engine)


def _engine(report: "BenchReport | None") -> "tuple[Any, str]":
    """The engine's section with the bucket that the report shows, and what that rests on."""
    from ...collectives_bench.bucket import choose
    from ...moe.sizing.proposal import ENGINE

    if report is None:
        return ENGINE, "the default"
    try:
        choice = choose(report)
    except UserError as error:
        return ENGINE, f"the default ({error})"
    rule = f"{choice.op} over {choice.size} ranks reaches {choice.share:.0%} of its bandwidth there"
    return ENGINE.model_copy(update={"bucket_mb": choice.mib}), rule


def _tokens(flops: str | None, proposal: "Proposal") -> float:
    """Of the whole training: what the FLOPs pay for, or `TOKENS_PER_PARAMETER`."""
    from ...moe.sizing.shapes import TOKENS_PER_PARAMETER, without_tables

    active = without_tables(proposal.model).active
    if flops is not None:
        return parse_count(flops, "--flops") / (6 * active)
    return TOKENS_PER_PARAMETER * active
