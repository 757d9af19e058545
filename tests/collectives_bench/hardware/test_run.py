"""The whole run: events, skips, several ranks, and the summary of what was found."""

from typing import Any

import pytest
import torch
from ranks import run_ranks

from moelstrom.collectives_bench.hardware import run as module
from moelstrom.collectives_bench.hardware.config import HardwareConfig
from moelstrom.collectives_bench.hardware.overhead import compare
from moelstrom.collectives_bench.hardware.run import planned, run
from moelstrom.collectives_bench.hardware.summary import summarise
from moelstrom.collectives_bench.schema import BenchReport, Hardware, read

CPU = torch.device("cpu")
SMALL = HardwareConfig(
    budget_s=0.001,
    min_bytes=4096,
    max_bytes=4096,
    kinds=("copy", "read"),
    gemm_shapes=((16, 16, 16),),
    expert_shapes=((32, 16, 16, 4),),
    seq_lens=(16, 32),
    head_dim=16,
)


def events(config: HardwareConfig) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    run(config, CPU, lambda kind, **fields: found.append((kind, fields)))
    return found


def test_every_case_is_announced_and_measured(tmp_path: Any) -> None:
    (first, header), *rest = events(SMALL)
    report = BenchReport(**{k: v for k, v in header["report"].items() if k != "hosts"}, hosts=[])
    assert first == "header" and report.kind == "hardware" and report.world_size == 1
    assert report.backend == "none" and report.config["max_bytes"] == 4096
    kinds = [kind for kind, _ in rest]
    assert kinds == ["step", "measurement"] * planned(SMALL, CPU)
    values = [fields["value"] for kind, fields in rest if kind == "measurement"]
    assert [(v["bench"], v["kind"], v["dtype"]) for v in values] == [
        ("memory", "copy", "fp32"),
        ("memory", "read", "fp32"),
        ("gemm", "sweep", "bf16"),
        ("gemm", "sweep", "fp32"),
        ("experts", "forward", "bf16"),
        ("experts", "forward+backward", "bf16"),
        *[("attention", "forward", "bf16")] * 2,
        *[("attention", "forward+backward", "bf16")] * 2,
    ]
    copy, gemm = Hardware(**values[0]), Hardware(**values[2])
    assert copy.rate * copy.p50_s == pytest.approx(2 * 4096) and copy.unit == "B/s"
    assert gemm.rate * gemm.p50_s == pytest.approx(2 * 16**3) and gemm.unit == "FLOP/s"
    assert copy.p50_s <= copy.p95_s <= copy.max_s and copy.iterations >= 5
    report.hardware = [Hardware(**value) for value in values]
    report.write(tmp_path / "r.json")
    assert read(tmp_path / "r.json").hardware == report.hardware


def test_what_does_not_fit_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda device: 10_000)
    found = events(SMALL.model_copy(update={"benches": ("memory",)}))
    (skip,) = [fields["value"] for kind, fields in found if kind == "skip"]
    assert skip["what"] == "memory copy fp32 bytes 4096 moved 8192, rank 0"
    assert skip["bytes"] == 8192 and skip["reason"] == "needs 8,192 bytes, and 6,000 may be used"
    assert [kind for kind, _ in found].count("measurement") == 1


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no room"), RuntimeError("no kernel")])
def test_what_fails_is_skipped_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    real = module.measure
    left = [error]

    def measure(*args: Any) -> Any:
        if left:
            raise left.pop()
        return real(*args)

    monkeypatch.setattr(module, "measure", measure)
    found = events(SMALL)
    (skip,) = [fields["value"] for kind, fields in found if kind == "skip"]
    assert skip["reason"] == f"{type(error).__name__}: {error}"
    assert [kind for kind, _ in found].count("measurement") == planned(SMALL, CPU) - 1


def of_rank() -> list[tuple[str, dict[str, Any]]]:
    return events(SMALL.model_copy(update={"benches": ("gemm",), "gemm_dtypes": ("fp32",)}))


def test_each_rank_measures_its_own_device() -> None:
    first, second = run_ranks(2, of_rank)
    assert [kind for kind, _ in first] == ["header", "step", "measurement", "measurement"]
    assert [fields["value"]["rank"] for _, fields in first[2:]] == [0, 1]
    assert [kind for kind, _ in second] == ["step"]
    header = first[0][1]["report"]
    assert header["world_size"] == 2 and header["backend"] == "gloo"
    assert header["hosts"][0]["ranks"] == [0, 1] and header["hosts"][0]["devices"] == 2


def test_overhead_compares_the_same_calls() -> None:
    rows = compare(CPU, rounds=1)
    assert len(rows) == 9 and all(row["harness_s"] > 0 < row["bare_s"] for row in rows)


def row(bench: str, kind: str, shape: dict[str, int], work: float, rate: float, **more: Any) -> Any:
    seconds = work / rate
    unit: Any = "B/s" if bench in ("memory", "copy") else "FLOP/s"
    given: dict[str, Any] = {"dtype": "bf16", "rank": 0, **more}
    times: dict[str, Any] = {"iterations": 5, "p50_s": seconds, "p95_s": seconds, "max_s": seconds}
    return Hardware(bench=bench, kind=kind, shape=shape, rate=rate, unit=unit, **times, **given)


def square(n: int, rate: float, rank: int = 0) -> Hardware:
    return row("gemm", "sweep", {"M": n, "N": n, "K": n}, 2 * n**3, rate, rank=rank)


def attention(seq: int, rate: float) -> Hardware:
    flops, moved = 2 * 8 * seq**2 * 128, 4 * seq * 128 * 10
    return row("attention", "forward", {"seq": seq, "bytes": moved}, flops, rate)


def test_summary_of_a_device() -> None:
    rows = [
        row("memory", "copy", {"bytes": 2**16, "moved": 2**17}, 2**17, 9e12),
        row("memory", "copy", {"bytes": 2**32, "moved": 2**33}, 2**33, 3e12),
        square(1024, 300e12),
        square(4096, 620e12),
        square(8192, 600e12),
        square(2048, 560e12),
        *[attention(s, r) for s, r in ((512, 1e14), (1024, 2e14), (4096, 3.6e14), (8192, 4e14))],
        row("copy", "h2d pinned", {"bytes": 2**28}, 2**28, 5e10),
    ]
    (found,) = summarise(rows)["ranks"]
    assert found["memory"]["copy"]["rate"] == 3e12
    gemm = found["gemm"]["bf16"]
    assert gemm["peak"] == 620e12 and gemm["shape"]["M"] == 4096
    # 560 is 0.903 of the peak: the smallest that is near it.
    assert gemm["near_peak"]["shape"]["M"] == 2048
    assert gemm["near_peak"]["flops"] == pytest.approx(2 * 2048**3)
    assert found["ridge"] == pytest.approx(620 / 3)
    # 16 S / 40 FLOPs a byte pass 207 from S = 517 on.
    assert found["attention"]["forward"] == {"peak": 4e14, "saturates": 4096, "roofline": 1024}
    assert found["copy"] == {"h2d pinned": 5e10} and found["experts"] == {}


def test_the_memorys_rate_is_no_caches() -> None:
    """A copy of 256 KiB at 194 GB/s is the cache's, whatever the memory's own sets give."""
    mib = 2**20
    rates = {mib // 2: 194e9, 30 * mib: 90e9, 100 * mib: 20e9, 144 * mib: 12e9, 512 * mib: 11e9}
    rows = [
        row("memory", "copy", {"bytes": moved // 2, "moved": moved}, moved, rate, dtype="fp32")
        for moved, rate in rates.items()
    ]
    found = summarise(rows, {0: 36 * mib})
    (device,) = found["ranks"]
    places = [entry["place"] for entry in device["memory"]["copy"]["sets"]]
    assert places == ["cache", "cache", "between", "memory", "memory"]
    assert [entry["bytes"] for entry in device["memory"]["copy"]["sets"]] == [*rates]
    assert device["memory"]["copy"]["rate"] == 11e9 and found["notes"] == []
    found = summarise([*rows[:3], square(64, 1e12)], {0: 36 * mib})
    (device,) = found["ranks"]
    assert device["memory"]["copy"]["rate"] is None and device["ridge"] is None
    assert found["notes"] == [
        "memory: no working set of 4 times the last cache (36 MiB), so the memory's own rate is "
        "not known; measure up to max_bytes 144 MiB"
    ]
    # A report from before the cache was noted: the largest set.
    assert summarise(rows[:3])["ranks"][0]["memory"]["copy"]["rate"] == 20e9


def test_a_slow_device_is_named() -> None:
    rows = [square(n, 6e14 * (0.8 if rank == 2 else 1), rank) for rank in range(4) for n in (64, 8)]
    assert summarise(rows)["slow"] == [{"rank": 2, "share": pytest.approx(0.8)}]
    assert summarise([r for r in rows if r.rank != 2])["slow"] == []
    assert summarise([]) == {"ranks": [], "slow": [], "notes": []}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_measures_everything() -> None:
    found: list[tuple[str, dict[str, Any]]] = []
    device = torch.device("cuda")
    run(SMALL, device, lambda kind, **fields: found.append((kind, fields)))
    kinds = [kind for kind, _ in found]
    assert kinds[0] == "header" and kinds[1:] == ["step", "measurement"] * planned(SMALL, device)
