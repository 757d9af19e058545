"""`moelstrom size`: tables, files, and a config that `moelstrom train --dry-run` takes."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_reports import collective, collectives

from moelstrom.collectives_bench.schema import BenchReport, Hardware, Host
from moelstrom.launch import cli
from moelstrom.launch.config import load
from moelstrom.launch.train.plan import make_plan

ZAYA = ["--params", "8.3B", "--active", "760M", "--vocab", "262272", "--gpus", "64"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command in an empty folder; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moelstrom", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = (re.sub(r"\x1b\[[0-9;]*m", "", text) for text in capsys.readouterr())
        assert "Traceback" not in out + err
        return int(ended.value.code or 0), out, err

    return command


def test_the_best_becomes_a_config_that_train_takes(run: Any, tmp_path: Path) -> None:
    code, out, err = run("size", *ZAYA, "--write", "made.yaml", "--out", "made.json")
    assert code == 0, err
    assert "train made.yaml --dry-run" in out
    best = json.loads(Path("made.json").read_text())["proposals"][0]
    code, dry, err = run("train", "made.yaml", "--dry-run", "--json")
    assert code == 0, err
    plan = json.loads(dry)
    assert plan["memory_per_rank_bytes"]["total"] == best["memory"]["total"]
    config = plan["config"]
    assert config["layout"]["dp"] == 64 and config["layout"]["ep"] == best["layout"]["ep"]
    assert config["data"]["micro_batch_size"] == best["micro_batch"]
    assert plan["tokens_per_step"] == 2**22
    # 20 tokens for each active parameter.
    assert plan["config"]["steps"] == pytest.approx(20 * 760e6 / 2**22, rel=0.1)
    assert make_plan(load("made.yaml")).model.model_dump(mode="json") == best["model"]


def test_json_alone_is_printed(run: Any) -> None:
    code, out, err = run("size", *ZAYA, "--json", "--out", "made.json", "--write", "made.yaml")
    assert code == 0, err
    assert json.loads(out) == json.loads(Path("made.json").read_text())


def test_zaya1_is_shown_against_its_alternatives(run: Any) -> None:
    code, out, err = run("size", *ZAYA, "--compare", "zaya1", "--plot", "made.png")
    assert code == 0, err
    lines = " ".join(out.split())
    assert "nothing measured" in lines and "data sheet of MI300X" in lines
    assert "zaya1: d2048 L40 E16 k1 f2048" in lines and lines.count("Rules:") == 2
    for rule in ("multiples of 64", "GFLOP", "spans the node", "MoE width", "fusion buffers"):
        assert lines.count(rule) >= 2, rule
    assert Path("made.png").read_bytes().startswith(b"\x89PNG")


def test_a_budget_of_flops(run: Any) -> None:
    code, _, err = run("size", "--flops", "1e20", "--out", "a.json", "--write", "a.yaml")
    assert code == 0, err
    found = json.loads(Path("a.json").read_text())
    active = (1e20 / 120) ** 0.5
    assert found["budget"]["active"] == pytest.approx(active)
    config = load("a.yaml")
    assert config.steps * 2**22 == pytest.approx(20 * active, rel=0.1)
    assert config.cluster.launcher == "ray" and config.layout.dp == 8


def test_one_device_needs_no_ray(run: Any) -> None:
    code, _, err = run("size", "--params", "1B", "--gpus", "1", "--write", "a.yaml")
    assert code == 0, err
    assert load("a.yaml").cluster.launcher == "none"
    assert run("train", "a.yaml", "--dry-run")[0] == 0


def hardware(**changes: Any) -> BenchReport:
    """A device of 500 TFLOP/s and 3 TB/s."""
    made = BenchReport(
        kind="hardware",
        started="2026-11-25",
        command="bench",
        backend="none",
        world_size=1,
        hosts=[Host("a", [0], "NVIDIA H100 80GB HBM3", 1, 80 * 2**30)],
        versions={},
        config={},
    )
    rows = [("memory", "copy", "fp32", {"bytes": 2**30, "moved": 2**31}, 3e12)]
    for n in (512, 2048, 8192):
        flops = 2 * n**3
        rate = 500e12 * flops / (flops + 1e10)
        rows.append(("gemm", "sweep", "bf16", {"M": n, "N": n, "K": n}, rate))
    shape = {"rows": 65536, "hidden": 2048, "ffn": 1024, "experts": 16}
    rows.append(("experts", "forward+backward", "bf16", shape, 400e12))
    rows += [
        ("attention", "forward+backward", "bf16", {"seq": s, "bytes": s}, r)
        for s, r in ((1024, 2e14), (8192, 4e14))
    ]
    for bench, kind, dtype, sizes, rate in rows:
        unit: Any = "B/s" if bench == "memory" else "FLOP/s"
        s = 2 * sizes.get("M", 0) ** 3 / rate or 1e-3
        times: dict[str, Any] = {"iterations": 5, "p50_s": s, "p95_s": s, "max_s": s}
        names: dict[str, Any] = {
            "bench": bench,
            "kind": kind,
            "dtype": dtype,
            "shape": sizes,
        }
        made.hardware.append(Hardware(**names, rank=0, rate=rate, unit=unit, **times))
    return replace(made, **changes)


def test_measured_curves_decide(run: Any) -> None:
    hardware().write(Path("hw.json"))
    words = ["size", "--params", "3B", "--hardware", "hw.json", "--out", "a.json"]
    code, out, err = run(*words)
    assert code == 0, err
    assert "measured on NVIDIA H100 80GB HBM3" in out
    # A product of 8192 has 1.1e12 FLOPs; 2048 has 17 GFLOP, below 0.9 of the peak.
    answer = json.loads(Path("a.json").read_text())
    best = answer["proposals"][0]
    (size,) = [f for f in best["findings"] if "GEMM" in f["rule"]]
    assert size["rule"] == "a GEMM has about 1,100 GFLOP or more"
    assert "measured (0.9 of the peak)" in size["source"]
    # The links are those of the device that was measured.
    assert "data sheets of H100 SXM" in answer["network"]
    assert 0.2 < best["step"]["mfu"] < 500 / 989
    slow = hardware()
    slow.hardware = [
        replace(h, rate=h.rate / 2) if h.bench != "memory" else h for h in slow.hardware
    ]
    slow.write(Path("hw.json"))
    assert run(*words)[0] == 0
    other = json.loads(Path("a.json").read_text())["proposals"][0]
    assert 1.5 < other["step"]["total"] / best["step"]["total"] < 2.0


def test_measured_collectives_decide_network_and_bucket(run: Any) -> None:
    made = collectives()
    made.hosts = [replace(made.hosts[0], ranks=[0, 1, 2, 3], devices=4)]
    made.collectives = [
        replace(c := collective("all_reduce", 2**i), op=op, busbw=0.75 * c.algbw)
        for op in ("reduce_scatter", "all_gather", "all_to_all")
        for i in range(10, 29, 2)
    ]
    made.write(Path("coll.json"))
    words = ["--params", "1B", "--gpus", "4", "--gpus-per-node", "4", "--write", "a.yaml"]
    code, out, err = run("size", *words, "--collectives", "coll.json")
    assert code == 0, err
    assert "measured with gloo on 4 ranks" in out
    # 20 us + bytes / 2 GB/s: 0.9 of it from 360 KB on, and whole MiB are written.
    assert load("a.yaml").engine.bucket_mb == 1
    assert "reduce_scatter over 4 ranks reaches 90%" in " ".join(out.split())


def test_mistakes_are_explained(run: Any, tmp_path: Path) -> None:
    without = [h for h in hardware().hardware if h.bench != "experts"]
    hardware(hardware=without).write(Path("h.json"))
    hardware(hosts=[Host("a", [0], "AMD EPYC", 1, 2**36)]).write(Path("c.json"))
    unknown = hardware(hosts=[Host("a", [0], "Abacus", 1)])
    unknown.write(Path("u.json"))
    Path("broken.json").write_text("{")
    some = ["--params", "1B"]
    for words, problem in (
        ([], "--params, --flops: give one of both"),
        ([*some, "--flops", "1e20"], "--params, --flops: give one of both"),
        (["--params", "much"], "--params much: give a positive number, such as 8.3B"),
        (["--params", "0"], "--params 0: give a positive number"),
        (["--params", "1e999"], "--params 1e999: give a positive number"),
        ([*some, "--active", "2B"], "--active 2B: not below --params 1B; lower it"),
        (["--flops", "1e20", "--active", "1M"], "--active 1M: --flops decides it; drop one"),
        ([*some, "--batch-tokens", "1k"], "--batch-tokens 1k: 8 devices with a sequence of 4096"),
        ([*some, "--target", "gfx1"], "target gfx1: not known; one of gfx90a"),
        ([*some, "--memory", "lots"], "--memory 'lots' is no size"),
        ([*some, "--memory", "1GiB"], "gpus: 8 devices of 1 GiB hold none of"),
        ([*some, "--compare", "gpt"], "--compare gpt: not known; one of zaya1"),
        ([*some, "--hidden", "64", "--layers", "1"], "params: no shape has about 1e+09"),
        ([*some, "--hardware", "none"], "none: No such file or directory; give a report"),
        ([*some, "--hardware", "broken.json"], "broken.json: no JSON"),
        ([*some, "--collectives", "h.json"], "--collectives h.json: is a report of hardware"),
        ([*some, "--hardware", "h.json"], "--hardware: the report has no experts (forward+back"),
        ([*some, "--hardware", "u.json"], "--memory: Abacus's is not known; give it"),
        ([*some, "--hardware", "c.json"], "--collectives: no data sheet tells the links of the"),
        ([*some, "--write", "broken.json/x"], "--write broken.json/x: "),
    ):
        code, out, err = run("size", *words)
        assert code == 2 and out == "" and err.startswith(f"error: {problem}"), (words, err)
