"""`moelstrom kernels`: the portability gate, the benchmark and the tuning of tiles."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ... import UserError
from .. import terminal

if TYPE_CHECKING:
    from rich.table import Table

    from ...kernels.check import CompileJob, Verdict
    from ...kernels.roofline import Estimate

    Row = tuple[Verdict, Estimate | None]

app = typer.Typer(help="The Triton kernels.", no_args_is_help=True, add_completion=False)


@app.callback()
def _group() -> None:
    """The Triton kernels."""


@app.command()
def check(
    target: Annotated[
        list[str] | None, typer.Option(help="For example gfx942 or sm90; none: all.")
    ] = None,
    operator: Annotated[
        list[str] | None, typer.Option(help="For example grouped_mlp; none: all.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every fact as JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="File to write the JSON to.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; none: one a core.")] = None,
) -> None:
    """Compile every kernel for every target without a GPU; 1 if any breaks a rule."""
    _need_triton()
    from ...kernels import registry
    from ...kernels.check import jobs
    from ...kernels.targets import TARGETS, find

    terminal.check_writable("--out", out)
    targets = [find(name).name for name in target] if target else list(TARGETS)
    todo = jobs(targets, registry.modules(operator))
    results = _run(todo, workers)
    rows = [(verdict, _estimate(job, verdict)) for job, verdict in results]
    failed = sum(bool(verdict.problems) for verdict, _ in rows)
    terminal.write_json(_as_json(targets, rows), as_json, out)
    if not as_json:
        console = terminal.console()
        console.print(_table(rows))
        console.print(f"{len(rows)} compiled forms, {failed} failed")
    if failed:
        raise typer.Exit(1)


@app.command()
def bench(
    quick: Annotated[bool, typer.Option(help="Fewer shapes, rounds and peers.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="JSON file; a plot lies beside it. None: kernels/results/.")
    ] = None,
) -> None:
    """Time the kernels against peers on this machine's GPU; 1 if any result is wrong."""
    _need_gpu("bench", "the benchmark")
    _need_triton()
    terminal.check_writable("--out", out)
    from ...kernels.bench import report
    from ...kernels.bench.run import KernelBench, talker

    def keep(results: dict[str, Any]) -> Path:
        return _save(results, out, "", "-quick" if quick else "")

    results = KernelBench(quick, talker(), keep).run()
    path = keep(results)
    report.plot(results, path.with_suffix(".png"))
    console = terminal.console()
    for table in report.tables(results):
        console.print(table)
    for failure in results["failed"]:
        console.print(f"not measured: {failure['what']}: {failure['reason']}", markup=False)
    console.print(f"{path}, {path.with_suffix('.png').name}", markup=False)
    if results["out_of_tolerance"] or not all(results["repeats"].values()):
        raise typer.Exit(1)


@app.command()
def tune(
    operator: Annotated[
        list[str] | None, typer.Option(help="For example grouped_mlp.gate_up; none: all.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON file. None: tune-<gpu>.json in kernels/results/.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Also put the winners into kernels/tuning/.")
    ] = False,
) -> None:
    """Find the expert MLP's fastest tiles on this machine's GPU; 1 if any operator has none."""
    _need_gpu("tune", "tuning")
    _need_triton()
    terminal.check_writable("--out", out)
    from ...kernels import tuning
    from ...kernels.bench import report
    from ...kernels.bench.run import talker
    from ...kernels.bench.tune import Tune, select
    from ...kernels.targets import current

    operators, target = select(operator), current()
    results = Tune(operators, target, talker()).run()
    path = _save(results, out, "tune-", "")
    console = terminal.console()
    console.print(report.tuning(results))
    for failure in results["failed"]:
        console.print(f"not measured: {failure['what']}: {failure['reason']}", markup=False)
    console.print(f"{path}; {len(results['dropped'])} configs dropped", markup=False)
    if write and results["winners"]:
        console.print(f"{tuning.commit(results['winners'], target)}", markup=False)
    if len(results["winners"]) < len(operators):
        raise typer.Exit(1)


def _need_gpu(command: str, subject: str) -> None:
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            f"kernels {command}: torch sees no GPU, and {subject} times one; run it on a machine "
            "with an AMD or NVIDIA GPU (`moelstrom kernels check` needs none)"
        )


def _save(results: dict[str, Any], out: Path | None, prefix: str, suffix: str) -> Path:
    """Write the record to `out`, or to kernels/results/ under the GPU's name."""
    from ...kernels import registry

    name = prefix + results["gpu"]["name"].lower().replace(" ", "-") + suffix
    path = out or Path(registry.__file__).parent / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return partial.replace(path)


def _need_triton() -> None:
    try:
        import triton
    except ImportError:
        raise UserError("triton is not installed: pip install 'moelstrom[gpu]'") from None
    if triton.knobs.runtime.interpret:
        raise UserError("TRITON_INTERPRET=1 interprets kernels: unset it to compile them")


def _run(todo: "list[CompileJob]", workers: int | None) -> "list[tuple[CompileJob, Verdict]]":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    from ...kernels.check import check_all

    columns = TextColumn("compiling"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    found: dict[CompileJob, Verdict] = {}
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(todo))
        for job, verdict in check_all(todo, workers):
            found[job] = verdict
            progress.advance(task)
    return [(job, found[job]) for job in todo]


def _estimate(job: "CompileJob", verdict: "Verdict") -> "Estimate | None":
    from ...kernels.check import forms
    from ...kernels.roofline import estimate
    from ...kernels.targets import TARGETS

    if verdict.found is None:
        return None
    return estimate(forms(job.target, job.module)[job.index], verdict.found, TARGETS[job.target])


def _table(rows: "list[Row]") -> "Table":
    from rich.table import Table

    from ...kernels.roofline import LABEL

    table = Table(title="Portability gate", title_justify="left")
    for name in ("operator", "shape", "config", "target"):
        table.add_column(name, overflow="fold")
    for name in ("shared", "registers", "per CU", "load B"):
        table.add_column(name, justify="right")
    table.add_column("instruction", overflow="fold")
    table.add_column(f"{LABEL}", justify="right")
    table.add_column("verdict", overflow="fold")
    for verdict, expected in rows:
        table.add_row(*_cells(verdict, expected), style="red" if verdict.problems else None)
    return table


def _cells(verdict: "Verdict", expected: "Estimate | None") -> list[str]:
    found = verdict.found
    facts = ["-"] * 5
    if found:
        instruction = found.instructions[0] if found.instructions else "-"
        numbers = [found.registers, found.occupancy, found.load_bytes]
        facts = [f"{found.shared:,}", *map(str, numbers), instruction]
    names = [verdict.operator, verdict.key, verdict.config, verdict.target]
    return [*names, *facts, _rate(expected), "; ".join(verdict.problems) or "ok"]


def _rate(expected: "Estimate | None") -> str:
    if expected is None:
        return "-"
    if expected.flops_rate:
        return f"{expected.flops_rate / 1e12:,.0f} TFLOP/s"
    return f"{expected.byte_rate / 1e9:,.0f} GB/s"


def _as_json(targets: list[str], rows: "list[Row]") -> dict[str, Any]:
    import triton

    from ...kernels.targets import TARGETS

    return {
        "triton": triton.__version__,
        "targets": {name: asdict(TARGETS[name]) for name in targets},
        "variants": [
            {**asdict(verdict), "expected": asdict(expected) if expected else None}
            for verdict, expected in rows
        ],
        "failed": sum(bool(verdict.problems) for verdict, _ in rows),
    }
