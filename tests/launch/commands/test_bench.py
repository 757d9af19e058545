"""`moelstrom bench` on the command line: settings, reports, comparisons, exit codes."""

import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import bench_reports
import network_reports
import pytest

from moelstrom import UserError
from moelstrom.collectives_bench.compare import compare
from moelstrom.collectives_bench.hardware.config import HardwareConfig
from moelstrom.collectives_bench.schema import read
from moelstrom.launch import cli
from moelstrom.launch.bench import config as bench_config
from moelstrom.launch.bench import shapes as bench_shapes
from moelstrom.launch.bench.predict import predict
from moelstrom.launch.commands import bench as bench_cli
from moelstrom.launch.config import load

MAIN = "from moelstrom.launch.cli import main; main()"
QUICK = ["--launcher", "none", "--set", "benches=[memory]", "--set", "kinds=[copy, write]"]
QUICK += ["--set", "max_bytes=256KiB", "--set", "budget_s=0.01"]


@pytest.fixture
def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Run `moelstrom bench` in an empty folder; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def command(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moelstrom", "bench", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = (re.sub(r"\x1b\[[0-9;]*m", "", text) for text in capsys.readouterr())
        assert "Traceback" not in out + err
        return int(ended.value.code or 0), out, err

    return command


def saved(folder: Path, name: str = "a", slow: float = 1.0) -> Path:
    report = bench_reports.collectives()
    report.collectives = [
        bench_reports.collective("all_reduce", size, slow=slow) for size in bench_reports.SIZES
    ]
    path = folder / f"{name}.json"
    report.write(path)
    return path


def test_one_process_leaves_every_file(bench: Any, tmp_path: Path) -> None:
    code, out, err = bench("hardware", "--out", "o", *QUICK)
    assert code == 0, err
    report = read(tmp_path / "o/report.json")
    assert report.ended == "complete" and report.kind == "hardware" and report.world_size == 1
    assert {h.kind for h in report.hardware} == {"copy", "write"}
    assert "bench hardware --out o" in report.command
    assert report.analysis["hardware"]["ranks"][0]["rank"] == 0
    files = {path.name for path in (tmp_path / "o").iterdir()}
    assert files == {"report.json", "report.html", "measurements.csv", "memory.png"}
    assert "memory" in out and "o/report.json" in out


def test_a_baseline_decides_the_exit_code(bench: Any, tmp_path: Path) -> None:
    assert bench("hardware", "--out", "o", *QUICK)[0] == 0
    report = read(tmp_path / "o/report.json")
    # Ten years old: nothing today may be slower. Then a machine that never was.
    for factor, expected in ((100.0, 0), (0.001, 1)):
        report.hardware = [
            h.__class__(**{**h.__dict__, "p50_s": h.p50_s * factor, "p95_s": h.p50_s * factor})
            for h in read(tmp_path / "o/report.json").hardware
        ]
        report.write(tmp_path / "old.json")
        code, out, err = bench("hardware", "--out", "new", "--baseline", "old.json", *QUICK)
        assert code == expected, out + err
        assert ("slower" in err) == bool(expected)
        assert read(tmp_path / "new/report.json").analysis["comparison"]["exit_code"] == expected
        assert "against the baseline" in (tmp_path / "new/report.html").read_text()


def test_a_baseline_of_something_else_costs_no_measurement(bench: Any, tmp_path: Path) -> None:
    report = bench_reports.hardware()
    report.write(tmp_path / "old.json")
    code, _, err = bench("hardware", "--out", "o", "--baseline", "old.json", *QUICK)
    assert code == 2 and "baseline: none of its" in err
    assert read(tmp_path / "o/report.json").ended == "complete"
    assert (tmp_path / "o/report.html").exists()


@pytest.mark.parametrize(
    "text, problem",
    [
        (None, "old.json: No such file or directory; give a report that `moelstrom bench` wrote"),
        ("{", "old.json: no JSON"),
        ("[]", "old.json: schema: must be 'moelstrom.bench/1'"),
        ('{"schema": "moelstrom.bench/0"}', "old.json: schema: must be 'moelstrom.bench/1'"),
        ('{"schema": "moelstrom.bench/1"}', "old.json: kind: "),
        ("\x00\xff", "old.json: no JSON"),
    ],
)
def test_a_corrupt_baseline_is_refused_before_the_run(
    bench: Any, tmp_path: Path, text: str | None, problem: str
) -> None:
    if text is not None:
        (tmp_path / "old.json").write_bytes(text.encode("latin-1"))
    for words in (
        ["hardware", "--out", "o", "--baseline", "old.json", *QUICK],
        ["report", "old.json"],
        ["compare", "old.json", "old.json"],
    ):
        code, out, err = bench(*words)
        assert (code, out) == (2, "") and err.startswith(f"error: {problem}"), err
        assert err.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_compare_tells_what_became_slower(bench: Any, tmp_path: Path) -> None:
    old, new = saved(tmp_path), saved(tmp_path, "b", slow=1.3)
    assert bench("compare", old, old)[0] == 0
    code, out, _ = bench("compare", old, new)
    assert code == 1 and "FAIL" in out and "1.300" in out and "slower" in out
    assert bench("compare", new, old)[0] == 0
    assert bench("compare", old, new, "--threshold", "0.5")[0] == 0
    code, out, _ = bench("compare", old, new, "--json")
    assert code == 1
    assert {row["status"] for row in json.loads(out)["rows"]} == {"slower"}
    hardware = tmp_path / "h.json"
    bench_reports.hardware().write(hardware)
    code, _, err = bench("compare", hardware, new)
    assert code == 2 and "is a report of hardware; give one of collectives" in err


def test_report_draws_again(bench: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    bench_reports.collectives().write(path)
    code, out, _ = bench("report", path, "--out", "drawn")
    assert code == 0 and "1 3" in out  # The slow link.
    names = {p.name for p in (tmp_path / "drawn").iterdir()}
    assert names >= {"report.html", "measurements.csv", "bandwidth.png", "links.png"}
    assert read(path) == bench_reports.collectives()


def test_a_comparison_that_is_none_is_refused(bench: Any, tmp_path: Path) -> None:
    report = bench_reports.collectives()
    for found, said in (([], "Input should be"), ({"rows": [1]}, "comparison.rows.0: ")):
        report.analysis["comparison"] = found
        report.write(tmp_path / "report.json")
        code, _, err = bench("report", tmp_path / "report.json")
        assert code == 2 and "report.json: analysis.comparison" in err and said in err


def test_report_keeps_a_comparison(bench: Any, tmp_path: Path) -> None:
    report = read(saved(tmp_path, slow=1.3))
    report.analysis["comparison"] = asdict(compare(read(saved(tmp_path, "b")), report))
    report.write(tmp_path / "report.json")
    code, out, _ = bench("report", tmp_path / "report.json")
    assert code == 0 and "against the baseline: FAIL" in out


@pytest.mark.parametrize(
    "words, problem",
    [
        (["hardware", "--set", "nope=1"], "nope: no such field; drop it, or choose from nproc"),
        (["hardware", "--set", "budget_s=x"], "budget_s: 'x' does not fit"),
        (["hardware", "--set", "cluster.max_restarts=1"], "cluster.max_restarts: 1 does not fit"),
        (["hardware", "--launcher", "slurm"], "cluster.launcher: 'slurm' does not fit"),
        (["hardware", "--nproc", "0"], "nproc: 0 does not fit; give 1 or more"),
        (["hardware", "--nproc", "2", "--launcher", "none"], "nproc: 2 workers need a launcher"),
        (["hardware", "--address", "127.0.0.1:1"], "nproc: is missing"),
        (["hardware", "--config", "none.yaml"], "none.yaml: no such file"),
        (["hardware", "--model", "none"], "none: no such file"),
        (["hardware", "--out", "file/o"], "output: file/o: Not a directory; give a folder"),
        (["compare", "file", "file", "--threshold", "x"], "Invalid value for '--threshold'"),
    ],
)
def test_mistakes(bench: Any, tmp_path: Path, words: list[str], problem: str) -> None:
    (tmp_path / "file").touch()
    code, _, err = bench(*words)
    assert code == 2 and problem in err, err
    assert not list(tmp_path.glob("runs/*/report.json"))


def test_no_cluster_at_the_address(tmp_path: Path) -> None:
    # A process of its own: the Ray of another test may live in this one, and would be used.
    words = ["hardware", "--address", "127.0.0.1:1", "--nproc", "2"]
    command = [sys.executable, "-c", MAIN, "bench", *words]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert ran.returncode == 2 and "cluster.address '127.0.0.1:1': no answer" in ran.stderr
    assert "Traceback" not in ran.stderr and not list(tmp_path.glob("runs/*/report.json"))


def test_workers_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for cores, ranks in ((2, 2), (64, bench_config.MAX_LOCAL)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert bench_config.load("hardware", None, []).ranks == ranks
    assert bench_config.load("hardware", None, ["nproc=3"]).ranks == 3
    assert bench_config.load("hardware", None, ["cluster.launcher=none"]).ranks == 1
    monkeypatch.setenv("RAY_ADDRESS", "h:1")
    with pytest.raises(UserError, match="nproc"):
        _ = bench_config.load("hardware", None, []).ranks


def test_a_report_holds_no_environment() -> None:
    """The workers' environment may hold secrets."""
    run = bench_config.load("hardware", None, ["cluster.env={PLAIN: secret}", "budget_s=0.5"])
    own = bench_config.own_config(run)
    assert type(own) is HardwareConfig and own.budget_s == 0.5
    assert "secret" not in own.model_dump_json()


def test_a_models_shapes() -> None:
    run = bench_config.load("hardware", None, bench_shapes.settings("tiny"))
    assert isinstance(run, bench_config.HardwareRun)
    shapes = {name: sizes for name, *sizes in run.model_shapes}
    assert shapes["q"] == [2048, 128, 128] and shapes["head"] == [2048, 320, 128]
    assert run.expert_shapes == ((4096, 128, 192, 4),)
    assert (run.heads, run.kv_heads, run.head_dim, run.seq_lens) == (4, 2, 32, (256,))


def test_the_bucket_goes_into_the_training_config(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = bench_reports.collectives()
    monkeypatch.setattr(bench_cli, "_bench", lambda *arguments: report)
    path = tmp_path / "my.yaml"
    path.write_text("steps: 10  # a few\nengine:\n  bucket_mb: 999\n")
    code, out, err = bench("collectives", "--bucket-into", path)
    assert code == 0, err
    mib = load(str(path)).engine.bucket_mb
    assert mib < 999 and f"engine.bucket_mb: {mib} (" in out and "# a few" in path.read_text()
    code, _, err = bench("collectives", "--bucket-into", "none.yaml")
    assert code == 2 and "none.yaml: no such file" in err


def network(folder: Path) -> Path:
    """A node of 8, and rails between nodes at a tenth of its bandwidth, as a report."""
    measured = []
    for op in ("all_reduce", "reduce_scatter", "all_gather", "all_to_all", "all_to_all_v"):
        for group, ranks, alpha, beta in (
            ("node", range(8), 10e-6, 100e9),
            ("rail", (0, 8), 30e-6, 10e9),
        ):
            time = lambda size, a=alpha, b=beta: a + size / b  # noqa: E731
            load = "balanced" if op == "all_to_all_v" else None
            measured += network_reports.sweep(op, list(ranks), time, group, load=load, at_once=8)
    path = folder / "net.json"
    network_reports.report(measured, hosts=2, world=16).write(path)
    return path


def test_predict_after_a_sweep_of_one_host(bench: Any, tmp_path: Path) -> None:
    """What stays on the host is predicted; what leaves it is named, part by part."""
    report = read(network(tmp_path))
    report.collectives = [c for c in report.collectives if c.group == "node"]
    report.write(tmp_path / "one.json")
    code, out, err = bench("predict", tmp_path / "one.json", "moe-300m", "--json")
    assert code == 0, err
    first, *others = json.loads(out)
    assert first["ranks"] == 8 and first["total_s"] > 0 and first["missing"] == []
    assert first["total_s"] == sum(first[part] for part in ("gradients", "weights", "tokens"))
    assert others[0]["ranks"] == 16 and others[-1]["ranks"] == 10_000
    wanted = "report: no fit of reduce_scatter between hosts; measure it there, over three sizes"
    for point in others:
        assert point["gradients"] is point["weights"] is point["total_s"] is None
        assert any(text.startswith(wanted) for text in point["missing"])
    code, out, _ = bench("predict", tmp_path / "one.json", "moe-300m", "--compute-s", "1")
    assert code == 0
    assert "not predicted on 16 to 10000 ranks: no fit of reduce_scatter between hosts" in out
    code, _, err = bench("predict", tmp_path / "one.json", "moe-300m", "--ranks", 16)
    assert code == 2 and err.startswith(f"error: {wanted}")
    # Experts whose exchange stays on the host: their part is known at any count.
    sizes = ["layout.ep=8", "layout.dp=8", "data.global_batch_size=256"]
    run = load("moe-300m", sizes)
    eight, sixteen = (p.as_json() for p in predict(report, run, 8, [8, 16]))
    assert sixteen["tokens"] == pytest.approx(eight["tokens"]) and eight["tokens"] > 0
    assert sixteen["gradients"] is sixteen["total_s"] is None and eight["total_s"] > 0


def test_json_is_a_flag_and_out_a_file(bench: Any, tmp_path: Path) -> None:
    old, new, source = saved(tmp_path), saved(tmp_path, "b", slow=1.3), network(tmp_path)
    for words, code in (
        (["compare", old, new], 1),
        (["predict", source, "moe-300m", "--ranks", 16], 0),
    ):
        path = tmp_path / "made/here.json"
        shown = bench(*words, "--out", path)
        assert shown[0] == code and "{" not in shown[1]
        written = json.loads(path.read_text())
        again = bench(*words, "--json")
        assert again[0] == code and json.loads(again[1]) == written
        (tmp_path / "file").touch()
        code, out, err = bench(*words, "--out", tmp_path / "file/x")
        assert code == 2 and out == "" and "--out" in err and "give a file to write" in err


def test_predict_goes_to_ten_thousand_ranks(bench: Any, tmp_path: Path) -> None:
    source = network(tmp_path)
    code, out, err = bench("predict", source, "moe-300m", "--json")
    assert code == 0, err
    points = json.loads(out)
    assert [p["ranks"] for p in points] == [8 * 2**i for i in range(11)] + [10_000]
    assert points[-1]["nodes"] == 1250
    totals = [p["total_s"] for p in points]
    assert totals[0] > 0 and totals[1] > 2 * totals[0]  # The rails' tenth.
    assert totals[1:] == sorted(totals[1:])
    code, out, _ = bench("predict", source, "moe-300m", "--ranks", 16, "--compute-s", "1")
    assert code == 0 and "step, all overlapped" in out and "16" in out
    code, _, err = bench("predict", source, "moe-300m", "--ranks", 12)
    assert code == 2 and err.startswith("error: --ranks 12: does not fill whole nodes of 8")
