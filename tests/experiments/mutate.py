"""Plant small errors in the package, one at a time, and see whether the tests find them.

    nice -n 10 python tests/experiments/mutate.py --count 80 --out mutants.jsonl
    python tests/experiments/mutate.py --out mutants.jsonl --table

Every folder's mutants (see mutants.py) are put in an order that `--seed` draws, and the first
`--count` of them run against the tests that mirror the folder: the file of the module's own name
first, then the nearest in the tree and by imports, within `--budget` seconds. Tests that start
processes are for `--deep`: it gives them to the mutants that survived (with a larger `--budget`).
Results are appended to `--out` line by line; what is there for the same source is not run again, so
a killed run goes on.

Each job has a copy of the working tree and one process that has imported torch and the like; it
forks for each mutant, and the mutated file stands in the copy meanwhile, so that processes which a
test starts see it too. A test that fails must pass where nothing is planted, and a long one must
fail twice; else it counts for nothing.
"""

import argparse
import difflib
import hashlib
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mutant_job import ROOT, Job
from mutants import Mutant, mutants

FOLDERS = ("cluster", "collectives_bench", "kernels", "launch", "moe")
LEFT_OUT = """kernels/bench/* kernels/tuning/* kernels/*/fused.py kernels/*/kernels.py
kernels/grouped_mlp/launch.py kernels/grouped_mlp/ops.py kernels/grouped_mlp/routing.py
moe/checkpoint/reshape/bench.py moe/checkpoint/reshape/peers.py"""
"""They measure, or are results, or run in Triton alone, whose interpreter takes minutes."""
REASONS = Path(__file__).parent / "results" / "mutants.json"
"""Survivors that no test can find, with the reason, and the last table."""


def chosen(folders: Iterable[str], prefix: str, count: int, seed: int) -> list[Mutant]:
    """The first `count` of each folder's mutants in an order by hash, the folders in turn. A file
    that changes leaves the sample of the others as it is."""
    queues = []
    for folder in folders:
        found = []
        for file in sorted((ROOT / folder).rglob("*.py")):
            path = str(file.relative_to(ROOT))
            if path.startswith(prefix) and not any(map(Path(path).match, LEFT_OUT.split())):
                found += mutants(path, file.read_bytes())
        found.sort(key=lambda m: hashlib.sha1(f"{seed}/{m.key}".encode()).digest())
        queues.append(found[:count])
    longest = max(map(len, queues), default=0)
    return [queue[i] for i in range(longest) for queue in queues if i < len(queue)]


def read(out: Path) -> dict[str, dict[str, Any]]:
    """The last result for each mutant."""
    lines = out.read_text().splitlines() if out.exists() else []
    return {row["key"]: row for row in map(json.loads, lines)}


def work(args: argparse.Namespace, number: int, tasks: Any) -> None:
    """One job's process: takes mutants until there are none."""
    with tempfile.TemporaryDirectory(prefix="mutate-") as base:
        job = Job(Path(base), args.budget, args.deep)
        while (mutant := tasks.get()) is not None:
            began = time.monotonic()
            row = {"key": mutant.key, **asdict(mutant), **job.judge(mutant), "deep": args.deep}
            row["seconds"] = round(time.monotonic() - began, 1)
            with args.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            place = f"{mutant.path}:{mutant.line} {mutant.operator}"
            print(f"[{number}] {row['outcome']:8} {row['seconds']:6} s  {place}", flush=True)


def run(args: argparse.Namespace) -> None:
    """Judge what has no result yet."""
    done = read(args.out)
    wanted = chosen(args.folders, args.only, args.count, args.seed)
    if args.deep:
        wanted = [m for m in wanted if done.get(m.key, {}).get("outcome") == "survived"]
        wanted = [m for m in wanted if not done[m.key]["deep"]]
    else:
        wanted = [m for m in wanted if m.key not in done]
    print(f"{len(wanted)} mutants to judge, {len(done)} judged before")
    context = multiprocessing.get_context("spawn")
    tasks = context.Queue()
    for mutant in wanted + [None] * args.jobs:
        tasks.put(mutant)
    jobs = [context.Process(target=work, args=(args, n, tasks)) for n in range(args.jobs)]
    for process in jobs:
        process.start()
    for process in jobs:
        process.join()


def table(args: argparse.Namespace) -> None:
    """Per folder how many were found, then every survivor that has no reason."""
    reasons = json.loads(REASONS.read_text())["equivalent"] if REASONS.exists() else {}
    current = {m.key for m in chosen(FOLDERS, "", 10**9, 0)}
    rows = [row for row in read(args.out).values() if row["key"] in current]
    print(
        f"{'folder':20}{'mutants':>8}{'found':>7}{'no test can':>12}{'survived':>10}{'found %':>9}"
    )
    for name in [*FOLDERS, ""]:
        mine = [row for row in rows if row["path"].startswith(name)]
        found = sum(row["outcome"] == "found" for row in mine)
        listed = sum(row["outcome"] != "found" and row["key"] in reasons for row in mine)
        share = 100 * found / max(len(mine) - listed, 1)
        counts = f"{len(mine):8}{found:7}{listed:12}{len(mine) - found - listed:10}{share:9.1f}"
        print(f"{name or 'all':20}{counts}")
    for row in sorted(rows, key=lambda row: (row["path"], row["line"])):
        if row["outcome"] != "found" and row["key"] not in reasons:
            print(f"\n{row['key']} {row['path']}:{row['line']} ({row['operator']})\n{diff(row)}")


def diff(row: dict[str, Any]) -> str:
    """The lines that a mutant changes."""
    mutant = Mutant(**{name: row[name] for name in Mutant.__dataclass_fields__})
    good = (ROOT / mutant.path).read_bytes()
    before, after = (text.decode().splitlines() for text in (good, mutant.apply(good)))
    return "\n".join(list(difflib.unified_diff(before, after, lineterm="", n=0))[3:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("mutants.jsonl"))
    parser.add_argument("--folders", nargs="+", default=FOLDERS, choices=FOLDERS)
    parser.add_argument("--only", default="", help="a path's beginning, such as moe/optim")
    parser.add_argument("--count", type=int, default=80, help="mutants of each folder")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--budget", type=float, default=20.0, help="seconds of tests for each mutant"
    )
    parser.add_argument(
        "--deep", action="store_true", help="long and slow tests too, for survivors"
    )
    parser.add_argument("--table", action="store_true", help="only print what is known")
    args = parser.parse_args()
    if not args.table:
        run(args)
    table(args)


if __name__ == "__main__":
    main()
