"""Every file that `bench` and `size` read, changed at random: an answer or a UserError, no more.

Thousands of cases go through the functions behind the commands, in one process.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import bench_reports
import mutants
import network_reports
import numpy as np
import pytest

from moelstrom import UserError
from moelstrom.collectives_bench import bucket
from moelstrom.collectives_bench.compare import compare
from moelstrom.collectives_bench.loads import counts, read_load, shares
from moelstrom.collectives_bench.report import csv, tables
from moelstrom.collectives_bench.schema import BenchReport, read
from moelstrom.launch.bench.predict import default_counts, gaps, predict, table
from moelstrom.launch.bench.report import analyse_into, draw
from moelstrom.launch.config import load
from moelstrom.launch.size import curves, network
from moelstrom.moe.config import EngineConfig

RUN = load("moe-300m")


Use = Callable[[BenchReport, Path], object]


def network_of() -> BenchReport:
    """A node of eight and rails between two, at a few sizes."""
    measured = []
    for op in ("all_reduce", "reduce_scatter", "all_gather", "all_to_all", "all_to_all_v"):
        for group, ranks, alpha, beta in (
            ("node", range(8), 1e-5, 1e11),
            ("rail", (0, 8), 3e-5, 1e10),
        ):
            load_ = "balanced" if op == "all_to_all_v" else None
            measured += [
                network_reports.measurement(
                    op, list(ranks), size, alpha + size / beta, group, load=load_, at_once=8
                )
                for size in (2**10, 2**15, 2**20, 2**25)
            ]
    for pair in ((0, 1), (0, 2), (1, 2)):
        measured.append(network_reports.measurement("send_recv", pair, 2**20, 1e-3, "pairs"))
    return network_reports.report(measured, hosts=2, world=16)


def drawn(report: BenchReport, path: Path) -> None:
    """`bench report` without its pictures, which cost a second each."""
    analyse_into(report, None, 0.1)
    csv.write(report, path.with_name("m.csv"))
    for grid in (*tables.summary(report), *tables.details(report)):
        grid.to_rich()
    report.write(path.with_name("again.json"))


def pictured(report: BenchReport, path: Path) -> None:
    analyse_into(report, None, 0.1)
    draw(report, path.parent)


def predicted(report: BenchReport, path: Path) -> None:
    points = predict(report, RUN, 8, default_counts(8, RUN.layout.ep)[:3])
    seconds = [s for point in points for s in point.known.parts.values() if s is not None]
    assert all(math.isfinite(s) and s >= 0 for s in seconds)
    assert gaps(points) or len(seconds) == 3 * len(points)
    table(points, 1.0).to_rich()


def compared(good: BenchReport) -> list[Use]:
    """Each way around, as `bench compare` shows it."""

    def use(before: BenchReport, after: BenchReport) -> None:
        found = asdict(compare(before, after))
        tables.comparison(found).to_rich()
        json.dumps(found)

    ways = (
        (lambda r, path: use(r, good)),
        (lambda r, path: use(good, r)),
        (lambda r, path: use(r, r)),
    )
    return [*ways]


def advised(report: BenchReport, path: Path) -> None:
    network.measured(report, 8, EngineConfig()).predict(
        RUN.model, RUN.layout, 4096, 1, recompute=False
    )


COLLECTIVES: list[Use] = [
    drawn,
    predicted,
    advised,
    lambda report, path: bucket.choose(report),
    *compared(network_of()),
]
HARDWARE: list[Use] = [
    drawn,
    lambda report, path: curves.measured(report, 2**36),
    lambda report, path: curves.measured(report, None),
    *compared(bench_reports.hardware()),
]


def tried(cases: Iterable[bytes], path: Path, uses: list[Use]) -> Counter[str]:
    """How many files could not be read, and how many uses of the others were answered and refused;
    anything else fails, and keeps the file."""
    found: Counter[str] = Counter()
    for index, data in enumerate(cases):
        path.write_bytes(data)
        for use in [_nothing, *uses]:
            try:
                # Anew: a use may change what it reads.
                use(read(path), path)
                found["answered"] += 1
            except UserError as error:
                assert str(error).strip(), data
                found["unread" if use is _nothing else "refused"] += 1
                if use is _nothing:
                    break
            except Exception as error:
                path.with_name("culprit").write_bytes(data)
                raise AssertionError(f"case {index}: {error!r}, by {use}, see culprit") from error
    return found


def _nothing(report: BenchReport, path: Path) -> None:
    pass


def mutated(report: BenchReport, path: Path, seed: int, count: int) -> Iterable[bytes]:
    report.write(path)
    whole = path.read_bytes()
    yield whole
    yield from mutants.of_bytes(whole, count // 3, seed)
    yield from mutants.of_json(json.loads(whole), count - count // 3, seed)


@pytest.mark.parametrize(
    ("report", "uses"), [(network_of(), COLLECTIVES), (bench_reports.hardware(), HARDWARE)]
)
def test_reports(report: BenchReport, uses: list[Use], tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    found = tried(mutated(report, path, seed=1, count=400), path, uses)
    assert found["unread"] > 50 and found["answered"] > 200 and found["refused"] > 50, found


@pytest.mark.parametrize("report", [bench_reports.collectives(), bench_reports.hardware()])
def test_pictures(report: BenchReport, tmp_path: Path) -> None:
    """A few: each draws a dozen plots."""
    path = tmp_path / "report.json"
    report.write(path)
    whole = json.loads(path.read_bytes())
    found = tried(mutants.of_json(whole, 6, seed=2), path, [pictured])
    assert found["answered"] > 2, found


def spread(path: Path, kind: str) -> None:
    """A load as an all-to-all-v of four ranks sends it."""
    text = f"{kind}:{path}"
    parts = shares(text, read_load(text), 4, seed=0)
    assert np.isfinite(parts).all() and (parts >= 0).all() and parts.sum() > 0
    assert parts.sum(axis=1).max() <= 1 + 1e-9
    whole = counts(parts, 2**20, 4)
    assert (whole >= 0).all() and whole.sum(axis=1).max() <= 2**20


RECORD = {"kind": "router", "step": 3, "expert_load": [[5.0, 1, 2, 0, 3, 3, 1, 9], [1.0] * 8]}
LOG = b"".join(
    json.dumps(record).encode() + b"\n"
    for record in ({"kind": "step", "loss": 2.0}, RECORD, {"kind": "step"}, {**RECORD, "step": 4})
)
MATRIX = b"1 2 3.5 4\n5, 6, 7, 8\n0 0 1e6 2\n9 9 9 9\n"


@pytest.mark.parametrize(
    ("kind", "whole"), [("log", LOG), ("matrix", MATRIX)], ids=["log", "matrix"]
)
def test_loads(kind: str, whole: bytes, tmp_path: Path) -> None:
    """Of 2,500 such files 605 once gave a traceback."""
    path, found = tmp_path / "load", Counter[str]()
    cases = [*mutants.of_bytes(whole, 1000, seed=3)]
    if kind == "log":
        cases += (LOG + line for line in mutants.of_json(RECORD, 1000, seed=4))
    for data in [whole, *cases]:
        path.write_bytes(data)
        try:
            spread(path, kind)
            found["used"] += 1
        except UserError as error:
            assert str(error).startswith(f"loads: {kind}:{path}: ")
            found["refused"] += 1
        except Exception as error:
            raise AssertionError(f"{error!r} of {data!r}") from error
    assert min(found.values()) > 25, found
