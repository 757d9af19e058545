"""Benchmarks under Ray and torchrun that end badly: who is named, what is kept."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from moelstrom.collectives_bench.schema import BenchReport, read

MAIN = "from moelstrom.launch.cli import main; main()"
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
LONG = ["--set", "max_bytes=16MiB", "--set", "iterations=1000", "--set", "check=false"]
"""A sweep that takes minutes."""


class Bench:
    """A running `moelstrom bench collectives` of two ranks under Ray."""

    def __init__(self, folder: Path, *words: str) -> None:
        command = [sys.executable, "-c", MAIN, "bench", "collectives", "--nproc", "2"]
        command += ["--out", "o", *words]
        self.path = folder / "o/report.json"
        self.process = subprocess.Popen(
            command, cwd=folder, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def wait_for(self, measurements: int) -> BenchReport:
        """Until the report holds so many."""
        deadline = time.monotonic() + 120
        while True:
            report = read(self.path) if self.path.exists() else None
            if report and len(report.collectives) >= measurements:
                return report
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                pytest.fail(f"no {measurements} measurements: {self.process.communicate()}")
            time.sleep(0.1)

    def worker(self, rank: int) -> psutil.Process:
        """The process of a rank."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            words = process.cmdline()
            if "moelstrom.launch.bench.worker" in words and process.environ()["RANK"] == str(rank):
                return process
        pytest.fail(f"no process of rank {rank}")

    def end(self, timeout_s: float = 60) -> tuple[int, str]:
        """Exit code and stderr."""
        try:
            err = self.process.communicate(timeout=timeout_s)[1]
        except subprocess.TimeoutExpired:
            self.process.terminate()
            pytest.fail(f"still running: {self.process.communicate()}")
        assert "Traceback" not in err
        return self.process.returncode, err


@pytest.mark.slow
@pytest.mark.parametrize(
    "rank, number, words",
    [
        (1, signal.SIGKILL, "rank 1 was killed by SIGKILL"),
        (0, signal.SIGKILL, "rank 0 was killed by SIGKILL"),
        (1, signal.SIGSTOP, "rank 1 gave no sign of life for"),
    ],
)
def test_a_lost_rank_is_named_and_results_stay(
    tmp_path: Path, rank: int, number: signal.Signals, words: str
) -> None:
    bench = Bench(tmp_path, *LONG, "--set", "cluster.heartbeat_timeout_s=5")
    before = bench.wait_for(3)
    struck = time.monotonic()
    bench.worker(rank).send_signal(number)
    code, err = bench.end()
    assert code == 1 and words in err, err
    assert time.monotonic() - struck < 30
    report = read(bench.path)
    assert re.fullmatch(rf"failed at \w+ .*: {words}.*", report.ended), report.ended
    assert report.collectives[: len(before.collectives)] == before.collectives
    assert words in (bench.path.parent / "report.html").read_text()


@pytest.mark.slow
def test_a_hung_rank_is_named(tmp_path: Path) -> None:
    patience = ["--set", "timeout_s=10", "--set", "budget_s=1", "--set", "max_bytes=4KiB"]
    bench = Bench(tmp_path, *patience, "--set", "inject=1:all_gather:1000")
    code, err = bench.end(90)
    named = r"at all_gather .*rank 1 did not reach .*all_gather fp32 1 KiB world within 10 s"
    assert code == 1 and re.search(named, err.splitlines()[-1]), err
    report = read(bench.path)
    assert re.match(f"failed {named}", report.ended), report.ended
    assert "Error" not in report.ended
    assert {c.op for c in report.collectives} >= {"all_reduce"}


def test_an_interrupted_run_keeps_its_results(tmp_path: Path) -> None:
    bench = Bench(tmp_path, *LONG)
    bench.wait_for(2)
    bench.process.send_signal(signal.SIGINT)
    code, err = bench.end()
    assert code == 130 and err.endswith("failed: interrupted\n")
    report = read(bench.path)
    assert report.ended == "interrupted" and len(report.collectives) >= 2


@pytest.mark.slow
def test_a_slow_rank_is_named(tmp_path: Path) -> None:
    late = ["--nproc", "3", "--set", "inject=1:*:0.02", "--set", "groups=[world, pairs]"]
    late += ["--set", "ops=[all_reduce, send_recv]", "--set", "max_bytes=64KiB"]
    bench = Bench(tmp_path, *late, "--set", "factor=8", "--set", "iterations=6")
    code, err = bench.end(120)
    assert code == 0, err
    report = read(bench.path)
    slow = [s for s in report.analysis["suspects"] if s["kind"] == "rank"]
    assert [s["ranks"] for s in slow][:1] == [[1]], report.analysis["suspects"]
    assert not any(s["ranks"] in ([0], [2]) for s in slow)
    assert slow[0]["text"] in (bench.path.parent / "report.html").read_text()
