"""Reports of imagined runs, every figure made from a known law, for tests of what reads them."""

from typing import Any

from moelstrom.collectives_bench.schema import (
    BenchReport,
    Collective,
    Hardware,
    Host,
    RankTimes,
    Skip,
)

ALPHA_S, BETA = 20e-6, 2e9
FACTORS = {"all_reduce": 1.5, "all_to_all_v": 0.75, "send_recv": 1.0}
SIZES = [2**i for i in range(10, 25, 2)]


def collective(op: str, size: int, **changes: Any) -> Collective:
    """A measurement on the line ALPHA_S + size / BETA, `slow` times slower."""
    ranks = changes.pop("ranks", [0, 1, 2, 3])
    s = (ALPHA_S + size / BETA) * changes.pop("slow", 1.0)
    values: dict[str, Any] = {
        **{"op": op, "dtype": "fp32", "in_place": False, "group": "world", "at_once": 1},
        **{"load": None, "bytes": size, "count": size // 4, "iterations": 20, "wrong": 0},
        **{"mean_s": s, "p50_s": s, "p95_s": 1.2 * s, "max_s": 1.5 * s},
        **{"algbw": size / s, "busbw": FACTORS[op] * size / s},
    }
    per_rank = [RankTimes(rank, s, s * (1 + rank / 100), 1.2 * s, 1.5 * s) for rank in ranks]
    return Collective(**{**values, "ranks": ranks, "per_rank": per_rank, **changes})


def collectives() -> BenchReport:
    """Four ranks on two hosts: two operations, two groups at once, pairs with one slow link."""
    report = _report("collectives", backend="gloo")
    for size in SIZES:
        report.collectives += [
            collective("all_reduce", size),
            collective("all_reduce", size, in_place=True),
            collective("all_to_all_v", size, load="zipf:1.2"),
            collective("all_reduce", size, group="node", ranks=[0, 1]),
            collective("all_reduce", size, group="node", ranks=[0, 1], at_once=2, slow=2.0),
        ]
    for one, other in [(0, 1), (2, 3), (0, 2), (1, 3), (0, 3), (1, 2)]:
        slow = 3.0 if (one, other) == (1, 3) else 1.0
        pair = {"group": f"pairs {one}-{other}", "ranks": [one, other], "slow": slow}
        report.collectives.append(collective("send_recv", 2**20, **pair))
    report.skipped.append(Skip("all_reduce fp32 world", 2**33, "needs 16 GiB, 3 GiB are free"))
    report.ended = "complete"
    return report


def hardware() -> BenchReport:
    """Two ranks, every bench, rank 1 a tenth slower."""
    report = _report("hardware", backend="none")
    for rank, share in ((0, 1.0), (1, 0.9)):
        for n in (256, 1024, 4096):
            shapes: dict[tuple[str, str, str], tuple[dict[str, int], float]] = {
                ("memory", "copy", "B/s"): ({"bytes": 4 * n * n, "moved": 8 * n * n}, 2e10),
                ("copy", "to device pinned", "B/s"): ({"bytes": n * n}, 1e10),
                ("gemm", "sweep", "FLOP/s"): ({"M": n, "N": n, "K": n}, 5e11 * n / 4096),
                ("attention", "forward", "FLOP/s"): ({"seq": n, "bytes": n * 4096}, 2e11),
            }
            for (bench, kind, unit), (shape, rate) in shapes.items():
                values: dict[str, Any] = {"bench": bench, "kind": kind, "unit": unit}
                values |= {"dtype": "bf16", "shape": shape, "rank": rank, "iterations": 5}
                times: dict[str, Any] = {"p50_s": 1e-3, "p95_s": 1.1e-3, "max_s": 2e-3}
                report.hardware.append(Hardware(**values, **times, rate=rate * share))
    report.ended = "complete"
    return report


def _report(kind: Any, backend: str) -> BenchReport:
    return BenchReport(
        kind=kind,
        started="2026-11-25T10:00:00+00:00",
        command=f"moelstrom bench {kind}",
        backend=backend,
        world_size=4,
        hosts=[Host("a", [0, 1], "a CPU", 2), Host("b", [2, 3], "a CPU", 2)],
        versions={"torch": "2.13.0"},
        config={"factor": 4},
    )
